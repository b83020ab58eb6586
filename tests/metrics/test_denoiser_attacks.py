from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from scipy import stats
from torch import Tensor

from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.metrics.denoiser_attacks import (
    Denoiser,
    attack_scores,
    epsilon_denoiser,
    loss_score,
    pia_score,
    pian_score,
    secmi_score,
)
from gen_unlearn.metrics.likelihood_ratio import likelihood_ratio_score
from gen_unlearn.metrics.membership import membership_result
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import torch_generator

ALPHAS = NoiseConfig().build().alphas_cumprod
ATTACKS = ("loss", "secmi", "pia", "pian")
LABELS: list[int | None] = [0, 1, 2, None, 1, 0, None]


def draw(count: int, seed: int, *shape: int) -> Tensor:
    """Draw images of independent uniform pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, *(shape or (1, 8, 8))), generator=generator) * 2 - 1


def noise_given(clean: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """Make a denoiser from ``E[x0 | x_t]``, a float64 function of the noisy images and ``alphas_cumprod``."""

    def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
        signal, wide = ALPHAS[timestep].double(), noisy.double()
        return ((wide - signal.sqrt() * clean(wide, signal)) / (1 - signal).sqrt()).float()

    return denoiser


def memorised(training: Tensor) -> Denoiser:
    """Make the best denoiser of the empirical distribution of some images."""
    flat = training.double().flatten(1)

    def clean(noisy: Tensor, signal: Tensor) -> Tensor:
        distances = torch.cdist(noisy.flatten(1), signal.sqrt() * flat).square()
        return (torch.softmax(-distances / (2 * (1 - signal)), dim=1) @ flat).reshape(noisy.shape)

    return noise_given(clean)


def of_a_gaussian(variance: float) -> Denoiser:
    """Make the best denoiser of independent normal pixels."""
    return noise_given(
        lambda noisy, signal: noisy * signal.sqrt() * variance / (signal * variance + 1 - signal)
    )


def area(members: np.ndarray, outsiders: np.ndarray) -> float:
    labels = np.zeros(len(members), dtype=np.int64), np.zeros(len(outsiders), dtype=np.int64)
    return membership_result(members, labels[0], outsiders, labels[1]).auc.value


def test_all_attacks_find_what_a_model_has_memorised() -> None:
    members, fresh = draw(12, 0), draw(15, 1)
    model = memorised(members)
    scores = attack_scores(torch.cat([members, fresh]), range(27), lambda _: model, ALPHAS)
    assert tuple(scores) == ATTACKS
    for found in scores.values():
        assert (found.shape, found.dtype) == ((27,), np.float64)
        assert area(found[:12], found[12:]) == 1


def test_no_attack_finds_members_in_a_model_of_the_distribution() -> None:
    images = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.5
    scores = attack_scores(images, range(300), lambda _: of_a_gaussian(0.25), ALPHAS)
    for found in scores.values():
        assert np.ptp(found) > 0
        assert abs(area(found[:150], found[150:]) - 0.5) < 4 / np.sqrt(12 * 75)


def test_clid_is_what_the_condition_takes_off_the_loss() -> None:
    """A model that memorised images under a condition, and has the distribution without it."""
    members, fresh = draw(12, 0), draw(15, 1)
    images, keys = torch.cat([members, fresh]), range(27)
    model, null = memorised(members), of_a_gaussian(1 / 3)
    short = AttackConfig(batch_size=10)
    scores = attack_scores(images, keys, lambda _: model, ALPHAS, short, null_denoiser_of=lambda _: null)
    assert tuple(scores) == (*ATTACKS, "clid")
    expected = loss_score(images, keys, model, ALPHAS) - loss_score(images, keys, null, ALPHAS)
    np.testing.assert_allclose(scores["clid"], expected, rtol=1e-5, atol=1e-9)
    assert area(scores["clid"][:12], scores["clid"][12:]) == 1
    same = attack_scores(images, keys, lambda _: model, ALPHAS, null_denoiser_of=lambda _: model)
    assert not same["clid"].any()


def test_loss_is_the_error_of_the_predicted_noise() -> None:
    images, keys = draw(3, 3, 3, 4, 4), [5, b"an id", "a name"]
    config = AttackConfig(loss_timesteps=(120, 230), loss_draws=3, seed=7)
    found = loss_score(images, keys, of_a_gaussian(0.3), ALPHAS, config)
    for row, key in enumerate(keys):
        noises = torch.randn(2, 3, 3, 4, 4, generator=torch_generator("membership", 7, key)).double()
        total = 0.0
        for timestep, draws in zip((120, 230), noises, strict=True):
            signal = float(ALPHAS[timestep])
            for noise in draws:
                noisy = signal**0.5 * images[row].double() + (1 - signal) ** 0.5 * noise
                # (noisy - sqrt(a) E[x0]) / sqrt(1 - a) of a Gaussian, simplified
                predicted = noisy * (1 - signal) ** 0.5 / (signal * 0.3 + 1 - signal)
                total += float((predicted - noise).square().mean()) / 6
        assert found[row] == pytest.approx(-total, rel=1e-5)


def test_secmi_and_pia_of_a_linear_denoiser_are_their_formulas() -> None:
    """With ``e(x, t) = c_t x``, every step of DDIM multiplies by a number."""
    images, alphas = draw(4, 4, 3, 4, 4), ALPHAS.double().numpy()
    pixels = images.double().flatten(1).numpy()

    def model(noisy: Tensor, timestep: Tensor) -> Tensor:
        return (0.3 + timestep / 250) * noisy

    def factor(start: int, end: int) -> float:
        a, b, c = alphas[start], alphas[end], 0.3 + start / 250
        return np.sqrt(b / a) * (1 - c * np.sqrt(1 - a)) + c * np.sqrt(1 - b)

    there = np.prod([factor(timestep, timestep + 10) for timestep in range(0, 100, 10)])
    drift = there * (factor(100, 110) * factor(110, 100) - 1)
    expected = -np.square(drift * pixels).sum(axis=1)
    np.testing.assert_allclose(secmi_score(images, model, ALPHAS), expected, rtol=1e-3)

    signal, scale = np.sqrt(alphas[200]), np.sqrt(1 - alphas[200])
    quartic = np.power(np.abs(pixels), 4).sum(axis=1) ** 0.25
    expected = -np.abs(0.3 - 1.1 * (signal + 0.3 * scale)) * quartic
    np.testing.assert_allclose(pia_score(images, model, ALPHAS), expected, rtol=1e-4)
    start = pixels * np.sqrt(2 / np.pi) / np.abs(pixels).mean(axis=1, keepdims=True)
    again = 1.1 * (signal * pixels + scale * start)
    expected = -(np.power(np.abs(start - again), 4).sum(axis=1) ** 0.25)
    np.testing.assert_allclose(pian_score(images, model, ALPHAS), expected, rtol=1e-4)


def test_an_exact_denoiser_of_one_image_leaves_no_error() -> None:
    image = draw(1, 5)
    other = torch.cat([image, draw(3, 6)])
    scores = attack_scores(other, range(4), lambda _: memorised(image), ALPHAS)
    np.testing.assert_allclose(scores["secmi"], 0, atol=1e-7)  # DDIM is straight, from any image
    for name in ATTACKS:
        assert scores[name][0] == pytest.approx(0, abs=1e-3)
    assert (scores["loss"][1:] < -0.1).all()


def test_a_denoiser_that_predicts_no_noise_has_a_score() -> None:
    images = draw(2, 7)
    assert pian_score(images, lambda noisy, _: torch.zeros_like(noisy), ALPHAS).tolist() == [0, 0]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_do_not_depend_on_the_batch(batch_size: int) -> None:
    images, keys = draw(11, 8), [f"image {number}" for number in range(11)]
    model = memorised(draw(6, 9))
    expected = attack_scores(images, keys, lambda _: model, ALPHAS)
    order = np.random.default_rng(0).permutation(11)[:9]
    config = AttackConfig(batch_size=batch_size)
    scores = attack_scores(
        images[torch.from_numpy(order)], [keys[row] for row in order], lambda _: model, ALPHAS, config
    )
    for name in ATTACKS:
        np.testing.assert_allclose(scores[name], expected[name][order], rtol=1e-5, atol=1e-9)
    other = attack_scores(images, keys, lambda _: model, ALPHAS, AttackConfig(seed=1))
    assert (other["loss"] != expected["loss"]).all()
    assert (other["pia"] == expected["pia"]).all()


def test_a_velocity_becomes_the_same_noise() -> None:
    training, images = draw(5, 10), draw(7, 11)
    model = memorised(training)

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        signal, noise = ALPHAS[timestep].double(), model(noisy, timestep).double()
        clean = (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()
        return (signal.sqrt() * noise - (1 - signal).sqrt() * clean).float()

    same = epsilon_denoiser(model, ALPHAS, "epsilon")
    converted = epsilon_denoiser(velocity, ALPHAS, "v_prediction")
    for timestep in (0, 10, 200, 900):
        expected = model(images, torch.tensor(timestep))
        assert torch.equal(same(images, torch.tensor(timestep)), expected)
        torch.testing.assert_close(converted(images, torch.tensor(timestep)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'sample'"):
        epsilon_denoiser(model, ALPHAS, "sample")  # type: ignore[arg-type]


def class_conditional() -> ClassConditionalDDPMPipeline:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=4,
        **blocks,
    )
    pipeline = ClassConditionalDDPMPipeline(unet.eval(), build_sampler("ddim", NoiseConfig().build()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=["semi-parametric", "class-conditional"])
def pipeline(
    request: pytest.FixtureRequest, tiny_pipeline: SemiParametricDDPMPipeline
) -> SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline:
    return tiny_pipeline if request.param == "semi-parametric" else class_conditional()


@pytest.mark.parametrize("guidance_scale", [1.0, 1.3])
def test_the_predictor_is_what_sampling_denoises_with(
    pipeline: SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline, guidance_scale: float
) -> None:
    start = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"guidance_scale": guidance_scale}
    sampled = pipeline(LABELS, num_inference_steps=2, latents=start, output_type="latent", **options).images
    predict, scheduler = pipeline.noise_predictor(LABELS, **options), pipeline.scheduler
    scheduler.set_timesteps(2)
    expected = start
    for timestep in scheduler.timesteps:
        prediction = predict(expected, timestep)
        assert not prediction.requires_grad
        expected = scheduler.step(prediction, timestep, expected, use_clipped_model_output=True).prev_sample
    assert torch.equal(sampled, expected)
    null = pipeline.noise_predictor([None] * 7, **options)(start, torch.tensor(50))
    prediction = predict(start, torch.tensor(50))
    torch.testing.assert_close(prediction[[3, 6]], null[[3, 6]])
    assert ((prediction - null)[[0, 1, 2, 4, 5]].abs().amax(dim=(1, 2, 3)) > 1e-4).all()
    with pytest.raises(ValueError, match=r"expected 7 noisy images, .* got 1"):
        predict(start[:1], torch.tensor(50))
    with pytest.raises(ValueError, match="class labels from 0 to 2"):
        pipeline.noise_predictor([-1])


def test_attacks_run_on_pipelines(
    few_images: IndexedImages, pipeline: SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline
) -> None:
    images = to_model_input(few_images.images[:7])
    keys = [sample_id.tobytes() for sample_id in few_images.ids[:7]]
    labels: list[int | None] = [*few_images.labels[:5].tolist(), None, None]

    def denoiser_of(rows: slice) -> Denoiser:
        return epsilon_denoiser(pipeline.noise_predictor(labels[rows], guidance_scale=1), ALPHAS, "epsilon")

    whole = attack_scores(images, keys, denoiser_of, ALPHAS)
    parts = attack_scores(images, keys, denoiser_of, ALPHAS, AttackConfig(batch_size=3))
    for name in ATTACKS:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4)
        assert (whole[name] < 0).all()


def test_a_predictor_keeps_its_exemplars_and_a_new_one_has_none(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline
) -> None:
    noisy, timestep = draw(2, 12), torch.tensor(100)
    old = tiny_pipeline.noise_predictor([1, 1])
    before, null = old(noisy, timestep), tiny_pipeline.noise_predictor([None, None])(noisy, timestep)
    tiny_pipeline.delete(ForgetSet.from_classes(few_images, ["b"], "test"))
    assert torch.equal(old(noisy, timestep), before)
    with pytest.raises(ValueError, match="no exemplar is left"):
        tiny_pipeline.noise_predictor([1, 1])
    after = tiny_pipeline.noise_predictor([1, 1], on_empty_class="null")(noisy, timestep)
    assert torch.equal(after, null)
    assert not torch.allclose(before, null, atol=1e-4)


def test_likelihood_ratio_is_a_difference_in_standard_deviations() -> None:
    generator = np.random.default_rng(0)
    difficulty, references = generator.normal(0, 10, 400), generator.normal(0, 2, (6, 400))
    target = difficulty + generator.normal(0, 2, 400)
    target[:200] += 6
    found = likelihood_ratio_score(target, difficulty + references)
    pooled = np.sqrt(np.mean([np.var(column, ddof=1) for column in references.T]))
    expected = (target - difficulty - references.mean(axis=0)) / pooled
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert area(target[:200], target[200:]) < 0.75
    truth = stats.norm.cdf(6 / np.sqrt(2 * 4 * (1 + 1 / 6)))
    assert area(found[:200], found[200:]) == pytest.approx(truth, abs=0.03)
    single = likelihood_ratio_score(target, difficulty[None])
    np.testing.assert_array_equal(single, target - difficulty)


def test_likelihood_ratio_refuses_what_it_cannot_compare() -> None:
    for message, target, references in [
        (r"\(3,\) and \(2, 4\)", np.zeros(3), np.zeros((2, 4))),
        (r"\(3,\) and \(0, 3\)", np.zeros(3), np.zeros((0, 3))),
        ("NaN", np.full(3, np.nan), np.zeros((1, 3))),
        ("different references", np.zeros(3), np.ones((2, 3))),
    ]:
        with pytest.raises(ValueError, match=message):
            likelihood_ratio_score(target, references)


def test_bad_requests_are_refused() -> None:
    images, model = draw(2, 13), of_a_gaussian(1.0)
    with pytest.raises(ValueError, match="one key for each of 2 images, got 3"):
        loss_score(images, [1, 2, 3], model, ALPHAS)
    with pytest.raises(ValueError, match="float32"):
        secmi_score(images.double(), model, ALPHAS)
    with pytest.raises(ValueError, match="timesteps from 0 to 99, got 100"):
        secmi_score(images, model, ALPHAS[:100])
    with pytest.raises(ValueError, match="timesteps from 0 to 99, got 200"):
        pia_score(images, model, ALPHAS[:100])
    for message, options in [
        ("at least one for the loss", {"loss_timesteps": ()}),
        ("at least 0", {"pia_timestep": -1}),
        ("loss_draws must be at least 1", {"loss_draws": 0}),
        ("multiple of secmi_stride, got 100 and 30", {"secmi_stride": 30}),
    ]:
        with pytest.raises(ValueError, match=message):
            AttackConfig(**options)


def test_only_what_is_wanted_is_run() -> None:
    images, asked = torch.zeros(3, 1, 4, 4), []

    def counted(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.append(int(timestep))
        return noisy / 2

    found = attack_scores(images, range(3), lambda _: counted, ALPHAS, wanted=("pia", "clid"))
    assert list(found) == ["pia"], "clid takes a denoiser without a condition"
    assert asked == [0, AttackConfig().pia_timestep]
    everything = attack_scores(
        images, range(3), lambda _: counted, ALPHAS, null_denoiser_of=lambda _: lambda noisy, _: noisy / 3
    )
    clid = attack_scores(
        images,
        range(3),
        lambda _: counted,
        ALPHAS,
        null_denoiser_of=lambda _: lambda noisy, _: noisy / 3,
        wanted=("clid",),
    )
    assert list(clid) == ["clid"]
    assert np.array_equal(clid["clid"], everything["clid"])
