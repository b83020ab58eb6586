"""The loop of all methods with gradients."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_requests import flat, same_state, small_images
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.logits import Batch, cross_entropy
from gen_unlearn.methods.loop import LoopSettings, Pass, Term
from gen_unlearn.methods.unlearn_data import UnlearnData


def fit(settings: LoopSettings, model: nn.Module, passes: list[Pass], seed: int = 0) -> nn.Module:
    student = copy.deepcopy(model)
    settings.run(
        student,
        lambda _: passes,
        accelerator=Accelerator(cpu=True),
        seed=seed,
        budget=Budget(),
        after_step=None,
    )
    return student


WORDS = ({"optimizer": "sgdd"}, {"decay": "cos"}, {"bn_mode_forget": "evl"})
"""Words that no setting knows; the last one used to pass as the default."""


class Recorder:
    """A loss that remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.batches.append(batch)
        return cross_entropy(model, batch)

    def ids(self, epoch: int) -> np.ndarray:
        return np.concatenate([batch.ids for batch in self.batches if batch.epoch == epoch])


def test_every_epoch_shows_every_image_once(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    seen = Recorder()
    fit(LoopSettings(epochs=2), tiny_mlp, [[Term(request_data.forget, seen, 5)]])
    assert [len(batch.ids) for batch in seen.batches] == [5, 5, 2] * 2
    for epoch in range(2):
        assert sorted(map(bytes, seen.ids(epoch))) == sorted(map(bytes, request_data.forget.ids))
    assert not np.array_equal(seen.ids(0), seen.ids(1))


def test_terms_of_a_pass_are_stepped_on_together(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    short, long = Recorder(), Recorder()
    both = [Term(request_data.retain, long, 16), Term(request_data.forget, short, 8)]
    fit(LoopSettings(epochs=1), tiny_mlp, [both])
    assert [len(batch.ids) for batch in long.batches] == [16, 16, 16]
    assert [len(batch.ids) for batch in short.batches] == [8, 4, 8]
    assert np.array_equal(short.batches[0].ids, short.batches[2].ids)


def test_the_learning_rate_falls_at_milestones(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    settings = LoopSettings(lr=0.1, epochs=3, momentum=0.0, milestones=(1, 2))
    weights = [flat(tiny_mlp)]
    student = copy.deepcopy(tiny_mlp)
    weight = torch.ones_like(flat(student))

    def slope(model: nn.Module, _: Batch) -> Tensor:
        return sum((p.sum() for p in model.parameters()), torch.zeros(()))

    settings.run(
        student,
        lambda _: [[Term(request_data.forget, slope, 12)]],
        accelerator=Accelerator(cpu=True),
        seed=0,
        budget=Budget(),
        after_epoch=lambda _: weights.append(flat(student)),
    )
    moved = [(before - after) for before, after in itertools.pairwise(weights)]
    for step, rate in zip(moved, (0.1, 0.01, 0.001), strict=True):
        assert torch.allclose(step, rate * weight, atol=1e-6)


def test_batch_normalisation_follows_its_term(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData
) -> None:
    def statistics(model: nn.Module) -> Tensor:
        return torch.cat([buffer.double().reshape(-1) for buffer in model.buffers()])

    own = statistics(tiny_batch_norm_cnn)
    settings, frozen = LoopSettings(epochs=1), LoopSettings(epochs=1, freeze_bn_stats=True)
    forget = settings.forget_term(request_data.forget, cross_entropy)
    retain = settings.retain_term(request_data.retain, cross_entropy)
    assert torch.equal(statistics(fit(settings, tiny_batch_norm_cnn, [[forget]])), own)
    assert not torch.equal(statistics(fit(settings, tiny_batch_norm_cnn, [[retain]])), own)
    assert torch.equal(statistics(fit(frozen, tiny_batch_norm_cnn, [[retain]])), own)
    asked = LoopSettings(bn_mode_forget="train").forget_term(request_data.forget, cross_entropy)
    assert not torch.equal(statistics(fit(settings, tiny_batch_norm_cnn, [[asked]])), own)


def test_a_batch_of_one_image_is_normalised_by_the_averages(request_data: UnlearnData) -> None:
    """One value per channel has no deviation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    retain = LoopSettings(batch_retain=47, epochs=2).retain_term(request_data.retain, cross_entropy)
    found = fit(LoopSettings(epochs=2), network, [[retain]])
    assert found.get_buffer("2.num_batches_tracked").item() == 2
    assert flat(found).isfinite().all()


def test_after_a_step_its_rate_is_known(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    seen: list[tuple[int, float]] = []
    settings = LoopSettings(lr=0.1, epochs=2, decay="cosine", milestones=(1,))
    settings.run(
        copy.deepcopy(tiny_mlp),
        lambda _: [[Term(request_data.forget, cross_entropy, 6)]],
        accelerator=Accelerator(cpu=True),
        seed=0,
        budget=Budget(),
        after_step=lambda epoch, lr: seen.append((epoch, lr)),
    )
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1]
    expected = [0.1 ** (1 + step // 2) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [lr for _, lr in seen] == pytest.approx(expected)


def test_clips_the_gradient(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    clipped = LoopSettings(lr=1.0, epochs=1, momentum=0.0, clip=1e-3)
    found = fit(clipped, tiny_mlp, [[Term(request_data.forget, cross_entropy, 12, -1.0)]])
    assert (flat(found) - flat(tiny_mlp)).norm() == pytest.approx(1e-3, rel=1e-3)


def test_runs_that_fail_say_so(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    with pytest.raises(ValueError, match="not finite in epoch 1"):
        fit(LoopSettings(), tiny_mlp, [[Term(request_data.forget, lambda m, b: cross_entropy(m, b) / 0, 5)]])
    with pytest.raises(ValueError, match="got none"):
        fit(LoopSettings(), tiny_mlp, [])
    for broken in ({"lr": 0.0}, {"lr": math.nan}, {"epochs": 0}, {"momentum": -1.0}, {"clip": 0.0}, *WORDS):
        with pytest.raises(ValueError, match="expected"):
            LoopSettings(**broken)


def test_the_seed_decides_the_order(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    passes = [[Term(request_data.retain, cross_entropy, 16)]]
    first = fit(LoopSettings(), tiny_mlp, passes)
    assert same_state(first, fit(LoopSettings(), tiny_mlp, passes))
    assert not same_state(first, fit(LoopSettings(), tiny_mlp, passes, seed=1))


def test_joined_images_are_both() -> None:
    first, second = small_images(5, seed=4), small_images(7, seed=5)
    joined = join(first, second)
    assert len(joined) == 12
    both = np.concatenate([first.all_images(), second.all_images()])
    assert np.array_equal(joined.all_images(), both)
    chosen = joined.select(np.array([6, 0, 11]))
    assert np.array_equal(chosen.ids, joined.ids[[6, 0, 11]])
