"""Images of a frozen denoiser with many adapters: which adapters, in which composition, and which never."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import peft
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from random_lora import CLASSES, TARGETS, random_adapter, tiny_network, tiny_noise
from torch import Tensor, nn

from gen_unlearn.adapters.encoding import block_codes, set_public_statistics
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.peft_files import load_adapter, save_adapter
from gen_unlearn.adapters.records import STEPS
from gen_unlearn.adapters.serving import NO_ADAPTER, ServedAdapters
from gen_unlearn.data import Split
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.pipelines.lora_composition import merged
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.lora_mixture import KeyAffinity, predicted_clean
from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.pipelines.sampling_config import Sampler, SamplingConfig
from gen_unlearn.samples import SamplePlan

LORA = LoraConfig(rank=2, alpha=4.0, targets=TARGETS)
MEMBERS = np.array([[8, 1, 0], [3, 0, 0], [0, 9, 1], [5, 5, 0], [2, 0, 0], [0, 0, 0]], dtype=np.int64)
WAITING = 4
LABELS: tuple[int | None, ...] = (0, 1, 2, 0, None, 1, 0)


@pytest.fixture(scope="module")
def public(digits_split: Split) -> IndexedImages:
    return digits_split.train.select(np.arange(40))


@pytest.fixture(scope="module")
def router(public: IndexedImages) -> AdapterBackbone:
    torch.manual_seed(0)
    made = AdapterBackbone(encoder_architecture(EncoderConfig(width=4, depth=0), (1, 8, 8)), len(MEMBERS))
    set_public_statistics(made, public, seed=0)
    return made


def ensemble(
    router: AdapterBackbone | None,
    sampler: Sampler = "ddim",
    embeddings: int | None = CLASSES + 1,
) -> AdapterEnsembleDDPMPipeline:
    """Make a pipeline of five adapters, one of which waits."""
    network = tiny_network(embeddings)
    pipeline = AdapterEnsembleDDPMPipeline(
        network,
        build_sampler(sampler, tiny_noise()),
        router,
        class_names=("a", "b", "c"),
        rank=LORA.rank,
        alpha=LORA.alpha,
        targets=TARGETS,
    )
    states = {number: random_adapter(network, LORA, number) for number in range(4)}
    pipeline.adapters = ServedAdapters(states, MEMBERS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: AdapterEnsembleDDPMPipeline,
    labels: Sequence[int | None],
    images: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Sample unclamped images; image `i` has noise and seed number `i`."""
    numbers = list(range(len(labels)) if images is None else images)
    settings = {"num_inference_steps": 3, "output_type": "latent", "adapter_seed": numbers, **options}
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    return pipeline(labels, generator=generators, **settings).images


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def evaluations(network: nn.Module) -> list[int]:
    """Return a list that grows by the rows of each evaluation of a network."""
    rows: list[int] = []
    network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    return rows


def by_peft(pipeline: AdapterEnsembleDDPMPipeline, adapter: int, folder: Path) -> nn.Module:
    """Return a network with one of the adapters, as peft computes it."""
    save_adapter(pipeline.adapters.states[adapter], LORA, folder / str(adapter))
    network = tiny_network(pipeline.unet.config.num_class_embeds)
    return peft.PeftModel.from_pretrained(network, folder / str(adapter)).eval()


@pytest.mark.parametrize(
    ("sampler", "composition"),
    [*((sampler, "route") for sampler in get_args(Sampler)), ("ddim", "mean"), ("dpm-solver++", "mixture")],
)
def test_an_image_does_not_depend_on_its_batch(
    router: AdapterBackbone, sampler: Sampler, composition: str
) -> None:
    pipeline = ensemble(router, sampler)
    options = {"composition": composition, "eta": 0.5}
    whole = sample(pipeline, LABELS, **options)
    assert whole.isfinite().all()
    assert whole.shape == (7, 1, 8, 8)
    assert min(float((whole[i] - whole[j]).abs().max()) for i in range(7) for j in range(i)) > 1e-2
    for size in (1, 3):
        for start in range(0, len(LABELS), size):
            part = slice(start, start + size)
            assert_same(sample(pipeline, LABELS[part], range(7)[part], **options), whole[part])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_image_is_what_its_adapter_says(
    router: AdapterBackbone, tmp_path: Path, guidance: float
) -> None:
    pipeline = ensemble(router)
    labels, adapters = [0, 2, 1, 0], [3, 0, 3, 1]
    noisy, time = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(40)
    predicted = pipeline.noise_predictor(labels, guidance, adapters=adapters)(noisy, time)
    for row, (label, adapter) in enumerate(zip(labels, adapters, strict=True)):
        network = by_peft(pipeline, adapter, tmp_path)
        with torch.no_grad():
            told, untold = (
                network(noisy[[row]], time, class_labels=torch.tensor([known])).sample
                for known in (label, CLASSES)
            )
        assert_same(predicted[[row]], untold + guidance * (told - untold))
    one = pipeline.noise_predictor(labels, guidance, adapters=[3] * 4)(noisy, time)
    assert_same(one[[0, 2]], predicted[[0, 2]])


def test_one_evaluation_for_each_step(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    rows = evaluations(pipeline.unet)
    for composition, guidance, expected in [
        ("route", 1.0, [7] * 3),
        ("route", 1.3, [14] * 3),
        ("mean", 1.3, [14] * 3),
        ("mixture", 1.3, [14] * 6),
    ]:
        rows.clear()
        sample(pipeline, LABELS, composition=composition, guidance_scale=guidance)
        assert rows == expected, composition


def test_a_mean_is_that_of_the_changes_and_not_of_the_factors(tmp_path: Path) -> None:
    network = tiny_network()
    states = [random_adapter(network, LORA, seed) for seed in range(3)]
    names = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in states[0]})
    model = None
    for number, state in enumerate(states):
        save_adapter(state, LORA, tmp_path / str(number))
        if model is None:
            model = peft.PeftModel.from_pretrained(tiny_network(), tmp_path / "0", adapter_name="0")
        else:
            model.load_adapter(tmp_path / str(number), adapter_name=str(number))
    assert model is not None
    errors: dict[str, list[float]] = {"cat": [], "linear": []}
    for kind in errors:
        model.add_weighted_adapter(["0", "1", "2"], [1 / 3] * 3, kind, combination_type=kind)
    for name in names:
        factors = Factors(
            *(torch.from_numpy(np.stack([s[name + end] for s in states])) for end in (DOWN, UP))
        )
        made = merged(factors, torch.tensor([[0, 1, 2]]), torch.full((1, 3), 1 / 3))
        expected = sum(
            factors.up[i].flatten(1).double() @ factors.down[i].flatten(1).double() / 3 for i in range(3)
        )
        change = made.up[0].flatten(1).double() @ made.down[0].flatten(1).double()
        assert (change - expected).norm() <= 1e-6 * expected.norm()
        for kind, found in errors.items():
            layer = model.get_submodule(f"base_model.model.{name}")
            delta = layer.get_delta_weight(kind).flatten(1).double() / LORA.scale
            found.append(float((delta - expected).norm() / expected.norm()))
    assert max(errors["cat"]) < 1e-5
    assert min(errors["linear"]) > 0.1


def test_a_mean_of_one_is_that_one(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    mean = sample(pipeline, LABELS, composition="mean", adapters_per_image=1)
    assert_same(mean, sample(pipeline, LABELS))
    assert_same(sample(pipeline, LABELS, composition="mixture", adapters_per_image=1), mean)
    two = pipeline([2, 0], composition="mean", adapters_per_image=2, num_inference_steps=1)
    assert two.adapters[0].tolist() == [2, NO_ADAPTER]
    assert (two.adapters[1] != NO_ADAPTER).all()
    assert_same(
        sample(pipeline, [2], composition="mean", adapters_per_image=2), sample(pipeline, [2], adapters=[2])
    )


def test_a_mixture_weights_scores_by_members_and_keys(router: AdapterBackbone, public: IndexedImages) -> None:
    pipeline = ensemble(router)
    noisy, time = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(40)
    pairs = np.array([[0, 3], [3, 0]])
    actual = pipeline.noise_predictor([0, 1], 1.0, adapters=pairs, composition="mixture")(noisy, time)
    each = {
        number: pipeline.noise_predictor([0, 1], 1.0, adapters=[number] * 2)(noisy, time) for number in (0, 3)
    }
    kept = tiny_noise().alphas_cumprod[40]
    keys = router.key_codes.double() / STEPS
    gaps = torch.cdist(keys, keys).square() + torch.diag(torch.full((len(keys),), torch.inf))
    spacing = gaps.amin(dim=1).median()
    for row, (numbers, label) in enumerate(zip(pairs, (0, 1), strict=True)):
        prior = torch.tensor(MEMBERS[numbers, label] / MEMBERS[numbers, label].sum())
        parts = torch.stack([each[number][row] for number in numbers.tolist()]).double()
        clean = (noisy[row] - (1 - kept).sqrt() * torch.einsum("k,kchw->chw", prior, parts)) / kept.sqrt()
        features = (router(clean.clamp(-1, 1).float()[None]) - router.mean) / router.deviation
        distances = (features.double() - keys[numbers]).square().sum(dim=1)
        weights = (prior.log() - distances / (2 * spacing)).softmax(dim=0)
        assert_same(actual[row].double(), torch.einsum("k,kchw->chw", weights, parts))
    affinity = KeyAffinity(router, lambda samples: samples)
    with torch.no_grad():
        near = affinity(
            torch.from_numpy(public.all_images() / 127.5 - 1).permute(0, 3, 1, 2), np.full((40, 1), 2)
        )
    codes = block_codes(router, public.all_images())
    exact = np.square((codes / STEPS) - keys[2].numpy()).sum(axis=1)
    np.testing.assert_allclose(-near[:, 0] * 2 * affinity.spacing, exact, rtol=0.02, atol=0.05)
    assert float(near.max()) > -0.01


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predicted_clean_undoes_the_noise(kind: str) -> None:
    noise = tiny_noise()
    noise.register_to_config(prediction_type=kind)
    clean, drawn = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    time = torch.tensor(30)
    noisy = noise.add_noise(clean, drawn, time)
    told = {"epsilon": drawn, "sample": clean, "v_prediction": noise.get_velocity(clean, drawn, time)}[kind]
    torch.testing.assert_close(predicted_clean(noise, told, noisy, time), clean, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        predicted_clean(noise, told, noisy, torch.tensor(30.2)), clean, rtol=0, atol=1e-4
    )


def test_adapters_are_drawn_by_members_and_marked(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    labels: list[int | None] = [0, None] * 40
    found = pipeline(labels, num_inference_steps=1, guidance_scale=1.0)
    assert found.adapters.shape == (80, 1)
    assert found.adapters.dtype == np.int64
    assert set(found.adapters[::2, 0].tolist()) == {0, 1, 3}
    assert set(found.adapters.ravel().tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(found.masked_shares, [2 / 18, 2 / 34] * 40)
    again = pipeline(labels, num_inference_steps=1, guidance_scale=1.0, return_dict=False)
    np.testing.assert_array_equal(again[1], found.adapters)
    other = pipeline(labels, num_inference_steps=1, guidance_scale=1.0, adapter_seed=1)
    assert (other.adapters != found.adapters).any()
    assert served_classes(pipeline) == [0, 1, 2]


def test_query_images_ask_the_nearest_that_answer(router: AdapterBackbone, public: IndexedImages) -> None:
    pipeline = ensemble(router)
    images = public.all_images()
    codes = block_codes(router, images)
    keys = router.key_codes.numpy().astype(np.int64)
    order = np.square(codes[:, None].astype(np.int64) - keys).sum(axis=2).argsort(axis=1, kind="stable")
    expected = [[a for a in row if a in (0, 1, 2, 3)][:2] for row in order.tolist()]
    options = {"query_images": images, "num_inference_steps": 1}
    found = pipeline([None] * 40, **options)
    assert found.adapters[:, 0].tolist() == [row[0] for row in expected]
    assert len(set(found.adapters[:, 0].tolist())) > 2
    assert WAITING in order[:, 0], "some image is nearest to the adapter that waits"
    assert pipeline([None] * 40, composition="mean", **options).adapters.tolist() == expected
    assert set(pipeline([2] * 40, **options).adapters[:, 0].tolist()) == {2}


def test_a_swap_changes_the_images_of_one_adapter(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    before = sample(pipeline, [0] * 4, adapters=[0, 1, 2, 3])
    kept = pipeline.noise_predictor([0], 1.0, adapters=[1])
    noisy, time = torch.zeros(1, 1, 8, 8), torch.tensor(10)
    first = kept(noisy, time)
    pipeline.swap(1, random_adapter(pipeline.unet, LORA, 77), np.array([2, 0, 0]))
    after = sample(pipeline, [0] * 4, adapters=[0, 1, 2, 3])
    assert_same(after[[0, 2, 3]], before[[0, 2, 3]])
    assert (after[1] - before[1]).abs().max() > 1e-2
    assert torch.equal(kept(noisy, time), first)
    pipeline.swap(2, None, np.array([0, 9, 0]))
    assert pipeline.served_classes == [0, 1]
    with pytest.raises(ValueError, match=r"adapters that answer, got \[2\]"):
        sample(pipeline, [0], adapters=[2])
    with pytest.raises(ValueError, match="no image of class 2 is left"):
        sample(pipeline, [2])
    assert 2 not in pipeline([1] * 30, num_inference_steps=1).adapters


def test_threads_do_not_share_adapters(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    noisy, time = torch.zeros(1, 1, 8, 8), torch.tensor(10)
    predictors = {number: pipeline.noise_predictor([0], adapters=[number]) for number in (0, 1, 2, 3)}
    expected = {number: predict(noisy, time) for number, predict in predictors.items()}
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(predictors[number](noisy, time), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in predictors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_denoisers_without_classes_or_without_a_null_class(router: AdapterBackbone) -> None:
    unconditional = ensemble(router, embeddings=None)
    found = sample(unconditional, LABELS, guidance_scale=1.0)
    assert found.isfinite().all()
    chosen = unconditional([2] * 5, guidance_scale=1.0, num_inference_steps=1).adapters
    assert set(chosen.ravel().tolist()) == {2}
    with pytest.raises(ValueError, match=r"guidance_scale 1 for a denoiser without a null class.*got 1\.3"):
        sample(unconditional, LABELS)
    told = ensemble(router, embeddings=CLASSES)
    assert sample(told, [0, 1], guidance_scale=1.0).isfinite().all()
    with pytest.raises(ValueError, match="guidance_scale 1"):
        sample(told, [0, 1])
    with pytest.raises(ValueError, match="a class for each image"):
        sample(told, [0, None], guidance_scale=1.0)


def test_requests_that_cannot_be_met_are_refused(router: AdapterBackbone, public: IndexedImages) -> None:
    pipeline, bare = ensemble(router), ensemble(None)
    queries = public.all_images()[:2]
    for message, options in [
        ("query_images or adapters, got both", {"query_images": queries, "adapters": [0, 1]}),
        ("2 query images, one for each image, got 1", {"query_images": queries[:1]}),
        ("one adapter seed or 2", {"adapter_seed": [1]}),
        ("one exemplar seed or 2", {"exemplar_seed": [1]}),
        ("composition route or mean or mixture, got 'sum'", {"composition": "sum"}),
        ("at least 1 adapter per image", {"composition": "mean", "adapters_per_image": 0}),
        (r"that answer, got \[4\]", {"adapters": [0, WAITING]}),
        (r"that answer, got \[-1\]", {"adapters": [0, -1]}),
        ("for each of 2 images", {"adapters": [0]}),
        ("for each of 2 images", {"adapters": [[0, 1], [1, 2]]}),
        ("for each of 2 images", {"adapters": [0.5, 1.5]}),
    ]:
        with pytest.raises(ValueError, match=message):
            sample(pipeline, [0, 1], **options)
    with pytest.raises(ValueError, match=r"from 0 to 2, got \[3\]"):
        sample(pipeline, [0, 3])
    for options in ({"query_images": queries}, {"composition": "mixture"}):
        with pytest.raises(ValueError, match="with a router"):
            sample(bare, [0, 1], **options)
    assert sample(bare, [0, 1]).isfinite().all()
    with pytest.raises(ValueError, match="members of 3 classes"):
        pipeline.adapters = ServedAdapters({}, MEMBERS[:, :2].copy())
    with pytest.raises(ValueError, match="6 adapters, one for each key"):
        pipeline.adapters = ServedAdapters({}, MEMBERS[:4].copy())
    states = {0: random_adapter(pipeline.unet, LoraConfig(rank=2, targets=("to_q",)), 0)}
    pipeline.adapters = ServedAdapters(states, MEMBERS)
    with pytest.raises(ValueError, match="another network or other targets"):
        sample(pipeline, [0])


def test_adapters_travel_only_if_asked(router: AdapterBackbone, tmp_path: Path) -> None:
    pipeline = ensemble(router)
    expected = sample(pipeline, LABELS, composition="mixture")
    pipeline.save_pretrained(tmp_path / "public")
    bare = AdapterEnsembleDDPMPipeline.from_pretrained(tmp_path / "public", local_files_only=True)
    assert not any(
        "lora" in path.name or path.name == "adapters" for path in (tmp_path / "public").rglob("*")
    )
    with pytest.raises(ValueError, match="or it was not loaded; load a run"):
        sample(bare, [0])
    with pytest.raises(ValueError, match="include_adapters=True"):
        bare.load_adapters(tmp_path / "public")
    pipeline.save_pretrained(tmp_path / "all", include_adapters=True)
    again = AdapterEnsembleDDPMPipeline.from_pretrained(tmp_path / "all", local_files_only=True)
    again.load_adapters(tmp_path / "all")
    again.set_progress_bar_config(disable=True)
    assert again.lora == pipeline.lora
    assert again.config.class_names == ["a", "b", "c"]
    assert torch.equal(sample(again, LABELS, composition="mixture"), expected)
    np.testing.assert_array_equal(again.adapters.members, MEMBERS)
    pipeline.swap(2, None, np.array([0, 8, 1]))
    with pytest.raises(ValueError, match="holds adapters of an earlier save"):
        pipeline.save_pretrained(tmp_path / "all")
    pipeline.save_pretrained(tmp_path / "all", include_adapters=True)
    saved = sorted(path.name for path in (tmp_path / "all" / "adapters").iterdir())
    assert saved == ["00000", "00001", "00003", "members.json"]
    again.load_adapters(tmp_path / "all")
    assert again.adapters.masked_share(1) == 8 / 14
    assert set(load_adapter(tmp_path / "all" / "adapters" / "00003", LORA)) == set(
        pipeline.adapters.states[3]
    )
    (tmp_path / "other" / "adapters").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not replaced"):
        pipeline.save_pretrained(tmp_path / "other", include_adapters=True)


def test_a_replaced_network_is_the_one_that_denoises(router: AdapterBackbone) -> None:
    pipeline, other = ensemble(router), ensemble(router)
    before = sample(pipeline, LABELS)
    pipeline.unet = tiny_network(seed=5)
    other.unet.load_state_dict(pipeline.unet.state_dict())
    after = sample(pipeline, LABELS)
    assert_same(after, sample(other, LABELS))
    assert (after - before).abs().max() > 1e-2


def test_any_scheduler(router: AdapterBackbone) -> None:
    pipeline = ensemble(router)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    for composition in ("route", "mixture"):
        assert sample(pipeline, LABELS, composition=composition).isfinite().all()


@pytest.mark.parametrize("composition", ["route", "mean"])
def test_sampling_is_a_function_of_label_and_index(router: AdapterBackbone, composition: Any) -> None:
    pipeline = ensemble(router)
    config = SamplingConfig(num_inference_steps=2, batch_size=4, composition=composition)
    labels, indices = [0, 1, 0, None, 2, 0], [0, 0, 1, 0, 0, 2]
    whole = sample_images(pipeline, labels, indices, config)
    assert whole.shape == (6, 8, 8, 1)
    assert whole.dtype == np.uint8
    alone = sample_images(pipeline, [0], [2], config)
    assert np.abs(alone[0].astype(int) - whole[5]).max() <= 1
    assert np.abs(whole[0].astype(int) - whole[2]).max() > 1


def test_digests_of_samples_stay_what_they_were() -> None:
    digest = SamplePlan(3, 2, 0, SamplingConfig()).digest
    assert digest == "470f4a00361e19211e948925d8d4a43cc8bcc8e6c19623b48e301c66d8b6d692"
    for config in (SamplingConfig(batch_size=9), SamplingConfig(adapters_per_image=5)):
        assert SamplePlan(3, 2, 0, config).digest == digest
    mean = SamplePlan(3, 2, 0, SamplingConfig(composition="mean")).digest
    three = SamplePlan(3, 2, 0, SamplingConfig(composition="mean", adapters_per_image=3)).digest
    assert len({digest, mean, three}) == 3


def test_sampling_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="composition route or mean or mixture, got 'linear'"):
        SamplingConfig(composition="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapters_per_image must be at least 1"):
        SamplingConfig(adapters_per_image=0)
