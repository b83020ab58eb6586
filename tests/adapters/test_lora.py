"""LoRA adapters of a denoiser: their bits depend on their own members alone, and they learn."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from faulty_lora import GlobalClip, with_stacks
from small_denoisers import pixel_jobs, pixel_records, shared_denoiser, tiny_lora

from gen_unlearn.adapters import lora
from gen_unlearn.adapters.family import (
    AdapterState,
    FitJob,
    HeadShape,
    PixelFamily,
    digest_adapter,
    has_weights,
)
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.models.frozen_denoiser import NULL_CLASS
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors, adapted, lora_layers
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_state, keyed_order, torch_generator

SHAPE = HeadShape(16, 3)
SEED = 3

LORA = {
    "usual": tiny_lora(batch_size=3, epochs=1),
    "pairs": tiny_lora(stack=2, horizontal_flip=True, weight_decay=0.1),
    "unconditional": tiny_lora(
        0, "v_prediction", max_grad_norm=0.0, targets=("conv2", "time_emb_proj"), epochs=1
    ),
}


@pytest.fixture(params=LORA)
def family(request: pytest.FixtureRequest) -> LoraAdapters:
    return LORA[request.param]


def digests(family: LoraAdapters, jobs: list[FitJob], seed: int = SEED) -> dict[int, str]:
    states = family.fit(jobs, SHAPE, seed)
    return {job.adapter: digest_adapter(state) for job, state in zip(jobs, states, strict=True)}


def among_strangers(job: FitJob, place: int) -> list[FitJob]:
    """Return a stack in which others of the same size have the other places."""
    others = [FitJob(100 + n, pixel_records(len(job.members), seed=50 + n)) for n in range(4)]
    others[place] = job
    return others


def test_an_adapter_is_the_same_alone_and_among_others_in_every_place(family: LoraAdapters) -> None:
    jobs = pixel_jobs(5, 6, 1, 4)
    together = digests(family, jobs)
    assert len(set(together.values())) == len(jobs)
    assert digests(family, jobs[::-1]) == together
    job = jobs[0]
    assert digests(family, [job]) == {job.adapter: together[job.adapter]}, "beside empty places"
    for place in range(4):
        assert digests(family, among_strangers(job, place))[job.adapter] == together[job.adapter]


def test_one_norm_for_the_whole_stack_would_break_that() -> None:
    family = with_stacks(LORA["usual"], GlobalClip)
    job = pixel_jobs(5)[0]
    found = {digests(family, jobs)[7] for jobs in ([job], among_strangers(job, 0), among_strangers(job, 2))}
    assert len(found) > 1


def test_threads_and_draws_of_others_are_immaterial(family: LoraAdapters) -> None:
    jobs = pixel_jobs(5, 3)
    expected = digests(family, jobs)
    torch.manual_seed(5)
    torch.rand(7)
    state, others = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    torch.set_num_threads(2)
    try:
        assert digests(family, jobs) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tobytes() == others


@pytest.mark.parametrize("part", ["pixels", "labels", "a member"])
def test_a_member_changes_only_the_adapter_that_had_it(part: str) -> None:
    jobs = pixel_jobs(6, 4, 5)
    before = digests(LORA["usual"], jobs)
    members = jobs[1].members
    assert members.pixels is not None
    changed = {
        "pixels": replace(members, pixels=255 - members.pixels),
        "labels": replace(members, labels=(members.labels + 1) % 3),
        "a member": members.select(slice(1, None)),
    }[part]
    after = digests(LORA["usual"], [jobs[0], FitJob(jobs[1].adapter, changed), jobs[2]])
    assert {adapter for adapter in before if before[adapter] != after[adapter]} == {jobs[1].adapter}


def test_codes_are_for_routing_alone() -> None:
    job = pixel_jobs(5)[0]
    others = FitJob(job.adapter, replace(job.members, codes=job.members.codes + 1))
    assert digests(LORA["usual"], [job]) == digests(LORA["usual"], [others])


def test_seed_and_number_decide_too() -> None:
    job = pixel_jobs(5)[0]
    first = LORA["usual"].fit([job], SHAPE, 3)[0]
    for adapter, seed in ((job.adapter, 4), (job.adapter + 1, 3), (job.adapter - 1, 4)):
        other = LORA["usual"].fit([FitJob(adapter, job.members)], SHAPE, seed)[0]
        assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_a_stack_of_another_size_learns_the_same_in_other_bits() -> None:
    job = pixel_jobs(5)[0]
    states = [tiny_lora(batch_size=3, stack=stack).fit([job], SHAPE, SEED)[0] for stack in (1, 4)]
    assert max(np.abs(states[0][name] - states[1][name]).max() for name in states[0]) < 1e-4


def test_denoiser_and_members_are_left_as_they_are(family: LoraAdapters) -> None:
    network, jobs = family.denoiser().network, pixel_jobs(5, 3)
    before = digest_state(network.state_dict()), [job.members.digest for job in jobs]
    pixels = [job.members.pixels.copy() for job in jobs]  # type: ignore[union-attr]
    digests(family, jobs)
    assert (digest_state(network.state_dict()), [job.members.digest for job in jobs]) == before
    assert all(np.array_equal(copy, job.members.pixels) for copy, job in zip(pixels, jobs, strict=True))
    assert not network.training
    assert all(part.grad is None and not part.requires_grad for part in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_factors_start_as_those_of_peft_and_move() -> None:
    job = pixel_jobs(5)[0]
    still, moved = (tiny_lora(learning_rate=rate).fit([job], SHAPE, SEED)[0] for rate in (1e-30, 1e-2))
    for name in still:
        if name.endswith(UP):
            assert np.abs(still[name]).max() < 1e-20
            assert np.abs(moved[name]).max() > 1e-3
        else:
            bound = math.prod(still[name].shape[1:]) ** -0.5
            assert 0.8 * bound < np.abs(still[name]).max() <= bound
            assert 1e-5 < np.abs(moved[name] - still[name]).max() < 0.1


def mean_loss(state: AdapterState, scale: float, members: Records) -> float:
    """Return the error of the denoiser with an adapter over fixed draws."""
    denoiser = shared_denoiser()
    draw = torch.Generator().manual_seed(99)
    clean = denoiser.encode(members.pixels).repeat(8, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=draw)
    timesteps = torch.randint(0, 100, (len(clean),), generator=draw)
    names = {name.removesuffix(DOWN).removesuffix(UP) for name in state}
    layers = {name: denoiser.network.get_submodule(name) for name in names}
    parts = {
        name: Factors(*(torch.from_numpy(state[name + end])[None] for end in (DOWN, UP))) for name in names
    }
    with torch.no_grad(), adapted(layers, parts, scale):  # type: ignore[arg-type]
        noisy = denoiser.noise.add_noise(clean, noise, timesteps)
        predicted = denoiser.predict(noisy, timesteps, np.tile(members.labels, 8))
    return float((predicted - noise).square().mean())


def test_the_loss_falls() -> None:
    targets = ("to_q", "to_v", "conv1", "conv2")
    family = tiny_lora(epochs=30, learning_rate=0.02, targets=targets, rank=4, batch_size=8, stack=1)
    job = pixel_jobs(8)[0]
    trained = family.fit([job], SHAPE, SEED)[0]
    before = mean_loss({name: np.zeros_like(array) for name, array in trained.items()}, 1.0, job.members)
    after = mean_loss(trained, family.config.scale, job.members)
    assert after < 0.7 * before, (before, after)


def draws(members: Records, **settings: Any) -> dict[bytes, list[tuple[Any, ...]]]:
    """Return what an adapter is trained with: image, noise, timestep and label, by member and epoch."""
    config = replace(LORA["usual"].config, batch_size=4, **settings)
    stack = lora._Stack(config, shared_denoiser(), {}, [FitJob(2, members)], SEED)
    found: dict[bytes, list[tuple[Any, ...]]] = {}
    for step in range(len(stack.plan.rows)):
        rows = stack._rows(step)
        for row, member in enumerate(stack.plan.rows[step, 0]):
            if member >= 0:
                drawn = rows.clean[row], rows.noise[row], int(rows.timesteps[row]), int(rows.labels[row])
                found.setdefault(members.ids[member].tobytes(), []).append(drawn)
    return found


def same(some: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
        for a, b in zip(some, others, strict=True)
    )


def test_all_draws_are_by_sample_id() -> None:
    members = pixel_records(11, seed=4)
    settings = {"horizontal_flip": True, "label_dropout": 0.5, "epochs": 12}
    whole, rest = draws(members, **settings), draws(members.select(slice(1, None, 2)), **settings)
    assert len(rest) == 5
    assert all(same(rest[sample], whole[sample]) for sample in rest)


def test_flips_dropped_labels_and_timesteps_are_as_likely_as_they_should_be() -> None:
    members = pixel_records(12, seed=4)
    found = draws(members, horizontal_flip=True, label_dropout=0.25, epochs=40)
    flips, dropped, timesteps, noise = [], [], [], []
    for row in range(len(members)):
        clean = to_model_input(members.pixels[row : row + 1])[0]  # type: ignore[index]
        mirrored = clean.flip(-1)
        assert len(found[members.ids[row].tobytes()]) == 40
        for image, drawn, timestep, label in found[members.ids[row].tobytes()]:
            assert torch.equal(image, clean) or torch.equal(image, mirrored)
            assert label in (members.labels[row], NULL_CLASS)
            flips.append(torch.equal(image, mirrored))
            dropped.append(label == NULL_CLASS)
            timesteps.append(timestep)
            noise.append(drawn)
    assert abs(np.mean(flips) - 0.5) < 4 * (0.25 / 480) ** 0.5
    assert abs(np.mean(dropped) - 0.25) < 4 * (0.1875 / 480) ** 0.5
    assert abs(np.mean(np.array(flips) & np.array(dropped)) - 0.125) < 4 * (0.11 / 480) ** 0.5
    assert min(timesteps) < 5
    assert 95 <= max(timesteps) < 100
    assert len(set(timesteps)) > 90
    drawn = torch.stack(noise)
    assert len({part.numpy().tobytes() for part in noise}) == len(noise)
    assert abs(float(drawn.mean())) < 0.03
    assert abs(float(drawn.std()) - 1) < 0.03


def test_nothing_is_mirrored_or_dropped_without_being_asked_for() -> None:
    members = pixel_records(6, seed=4)
    found = draws(members, label_dropout=0.0, epochs=6)
    for row in range(6):
        clean = to_model_input(members.pixels[row : row + 1])[0]  # type: ignore[index]
        for image, _, _, label in found[members.ids[row].tobytes()]:
            assert torch.equal(image, clean)
            assert label == members.labels[row]


def test_the_learning_rate_falls_over_the_steps_of_the_adapter_itself() -> None:
    config = replace(LORA["usual"].config, batch_size=4, epochs=4, learning_rate=0.5)
    stack = lora._Stack(config, shared_denoiser(), {}, pixel_jobs(16, 4, 5), SEED)
    assert stack.plan.lengths == [16, 4, 8]
    rates = torch.stack([stack._rates(step) for step in range(16)])
    for place, length in enumerate(stack.plan.lengths):
        cosine = [0.25 * (1 + math.cos(math.pi * step / length)) for step in range(length)]
        assert torch.allclose(rates[:length, place], torch.tensor(cosine))
        assert not rates[length:, place].any()
    assert not rates[:, 3].any()


def by_peft(family: LoraAdapters, job: FitJob, seed: int) -> dict[str, torch.Tensor]:
    """Train like `LoraAdapters.fit`, with peft's layers and torch's optimiser, nothing stacked or padded."""
    config, denoiser = family.config, family.denoiser()
    network, noise = deepcopy(denoiser.network), denoiser.noise
    names = list(lora_layers(network, config.targets))
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names)
    peft.inject_adapter_in_model(settings, network)
    network.eval()
    for name in names:
        draw = torch_generator(seed, "adapter", job.adapter, name)
        down = network.get_submodule(name).lora_A["default"].weight
        first = torch.rand(down.shape, generator=draw)
        down.data = (2 * first - 1) / math.prod(down.shape[1:]) ** 0.5
    parameters = [part for part in network.parameters() if part.requires_grad]
    assert len(parameters) == 2 * len(names)
    optimizer = torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    ids, pixels = job.members.ids, job.members.pixels
    assert pixels is not None
    order = [
        np.split(keyed_order(ids, seed, "order", job.adapter, epoch), range(4, len(ids), 4))
        for epoch in range(2)
    ]
    steps = [(epoch, batch) for epoch, batches in enumerate(order) for batch in batches]
    for step, (epoch, batch) in enumerate(steps):
        losses = []
        for member in batch:
            draw = torch_generator(seed, "lora", job.adapter, epoch, ids[member].tobytes())
            timestep = torch.randint(0, 100, (), generator=draw)
            drawn = torch.randn((1, 8, 8), generator=draw)[None]
            flipped, dropped = torch.rand(2, generator=draw).tolist()
            clean = to_model_input(pixels[member][None])
            clean = clean.flip(-1) if config.horizontal_flip and flipped < 0.5 else clean
            label = 3 if dropped < config.label_dropout else int(job.members.labels[member])
            noisy = noise.add_noise(clean, drawn, timestep[None])
            classes = torch.tensor([label]) if denoiser.classes else None
            target = drawn if noise.config.prediction_type == "epsilon" else clean
            if noise.config.prediction_type == "v_prediction":
                target = noise.get_velocity(clean, drawn, timestep[None])
            predicted = network(noisy, timestep, class_labels=classes).sample
            losses.append(torch.nn.functional.mse_loss(predicted, target))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = (
            config.learning_rate * (1 + math.cos(math.pi * step / len(steps))) / 2
        )
        optimizer.step()
    return dict(peft.get_peft_model_state_dict(network))


@pytest.mark.parametrize(
    "family",
    [
        tiny_lora(weight_decay=0.1, max_grad_norm=0.2, label_dropout=0.5, horizontal_flip=True),
        tiny_lora(0, "v_prediction", max_grad_norm=0.0, targets=("conv2", "time_emb_proj", "to_out.0")),
        tiny_lora(3, "sample", rank=3, learning_rate=0.003),
    ],
    ids=["epsilon", "v_prediction", "sample"],
)
def test_training_is_that_of_peft_and_torch_one_image_after_the_other(family: LoraAdapters) -> None:
    jobs = pixel_jobs(6, 7)
    fitted = family.fit(jobs, SHAPE, SEED)[0]
    expected = by_peft(family, jobs[0], SEED)
    assert fitted.keys() == expected.keys(), "files have peft's names"
    for name, weight in expected.items():
        assert fitted[name].dtype == np.float32
        assert fitted[name].shape == weight.shape
        assert np.abs(fitted[name] - weight.numpy()).max() < 1e-4


def test_visits_count_every_epoch() -> None:
    family = tiny_lora(epochs=3, batch_size=4)
    stack = lora._Stack(family.config, shared_denoiser(), {}, pixel_jobs(10), SEED)
    assert family.visits(10) == 30 == (stack.plan.rows >= 0).sum()


def test_a_shortened_family_trains_two_epochs() -> None:
    family = tiny_lora(epochs=30)
    assert isinstance(family, PixelFamily)
    assert family.shortened() == replace(family, config=replace(family.config, epochs=2))
    assert tiny_lora(epochs=1).shortened() == tiny_lora(epochs=1)
    assert family.device() == torch.device("cpu")


def test_the_denoiser_is_known_by_its_digest() -> None:
    assert tiny_lora() == replace(tiny_lora(), denoiser=lambda: shared_denoiser())
    assert tiny_lora() != tiny_lora(0)
    assert "denoiser=" not in repr(tiny_lora())


def test_a_fitted_adapter_is_complete() -> None:
    assert has_weights(LORA["usual"].fit(pixel_jobs(2), SHAPE, SEED)[0])


def test_members_without_pixels_are_refused() -> None:
    job = pixel_jobs(3)[0]
    without = FitJob(job.adapter, replace(job.members, pixels=None))
    with pytest.raises(ValueError, match="expected members with pixels"):
        LORA["usual"].fit([without], SHAPE, SEED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank of at least 1, got 0"),
        ({"epochs": 0}, "epochs of at least 1"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"stack": 0}, "stack of at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"learning_rate": math.nan}, "learning_rate above 0"),
        ({"weight_decay": -0.1}, "weight_decay of at least 0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm of at least 0"),
        ({"label_dropout": 1.0}, "label_dropout from 0 to below 1"),
        ({"targets": ()}, "expected targets"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


def test_a_training_that_diverges_is_refused() -> None:
    family = tiny_lora(learning_rate=1e38, max_grad_norm=0.0)
    with pytest.raises(ValueError, match=r"nan or infinity in adapter 3 .* lower lora.learning_rate"):
        family.fit([FitJob(3, pixel_records(6))], HeadShape(4, 3), 0)
