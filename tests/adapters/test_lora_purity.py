"""The purity check passes LoRA adapters, and names what leaks in faulty ones, each with one fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from faulty_lora import (
    GlobalClip,
    GlobalNoise,
    GlobalShuffle,
    MeanOverTheBatch,
    OrderOfPositions,
    with_stacks,
)
from small_denoisers import pixel_jobs, pixel_records, shared_denoiser, tiny_lora

from gen_unlearn.adapters import lora, stacks
from gen_unlearn.adapters.family import FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.purity import (
    EnsembleMethod,
    assert_pure,
    find_leaks,
    shared_streams,
    unstable_orders,
)
from gen_unlearn.adapters.purity_checks import in_order
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.models.frozen_denoiser import NULL_CLASS
from gen_unlearn.processes import process_state
from gen_unlearn.repro import derive_seed, keyed_order

RECORDS, PUBLIC = pixel_records(18, 0), pixel_records(10, 1)
TARGETS = ("conv1", "time_emb_proj")
HONEST = tiny_lora(channels=(8,), epochs=1, batch_size=3, targets=TARGETS, learning_rate=0.01)
SHAPE = HeadShape(16, 3)


@dataclass(frozen=True)
class FaultyMethod(EnsembleMethod):
    """An ensemble with something wrong in how members are gathered: subclasses change one method."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> dict[int, str]:
        records = self.sorted(records)
        rows = members_of(self.routes(records, public), self.adapters)
        jobs = [FitJob(adapter, self.members(records, rows, adapter)) for adapter in adapters]
        fitted = self.family_for(records).fit(jobs, SHAPE, self.seed)
        return {job.adapter: digest_adapter(state) for job, state in zip(jobs, fitted, strict=True)}

    def sorted(self, records: Records) -> Records:
        return in_order(records)

    def members(self, records: Records, rows: list[np.ndarray], adapter: int) -> Records:
        return records.select(rows[adapter])

    def family_for(self, records: Records) -> LoraAdapters:  # noqa: ARG002
        return self.family  # type: ignore[return-value]


class NotSorted(FaultyMethod):
    def sorted(self, records: Records) -> Records:
        return records


class DrawsByIndex(FaultyMethod):
    """Draws and orders by the row number among all records, in place of the sample id."""

    def sorted(self, records: Records) -> Records:
        records, ids = in_order(records), np.zeros_like(records.ids)
        ids[:, 0] = np.arange(len(records))
        return Records(records.codes, records.labels, ids, records.pixels)


class EpochsFromAll(FaultyMethod):
    """As many epochs as give a fixed number of visits."""

    def family_for(self, records: Records) -> LoraAdapters:
        return replace(HONEST, config=replace(HONEST.config, epochs=(2 * len(RECORDS) - 1) // len(records)))


class PaddedWithNeighbours(FaultyMethod):
    """Batches are filled up with real rows, of the next adapter."""

    def members(self, records: Records, rows: list[np.ndarray], adapter: int) -> Records:
        missing = -len(rows[adapter]) % 3 or 3
        more = np.setdiff1d(rows[(adapter + 1) % self.adapters], rows[adapter])[:missing]
        return records.select(np.append(rows[adapter], more))


class EvenBatches(FaultyMethod):
    """Members repeated until they divide among the processes."""

    def members(self, records: Records, rows: list[np.ndarray], adapter: int) -> Records:
        own, count = rows[adapter], process_state().num_processes
        return records.select(np.append(own, own[: (count - 1) * (1 + len(own) % 2)]))


def method(family: LoraAdapters = HONEST, kind: type[EnsembleMethod] = EnsembleMethod) -> EnsembleMethod:
    return kind(family, adapters=4, neighbours=1, classes=3)


@pytest.mark.parametrize("settings", [{}, {"stack": 2, "horizontal_flip": True, "epochs": 2}], ids=str)
def test_lora_adapters_are_pure(settings: dict[str, int]) -> None:
    family = replace(HONEST, config=replace(HONEST.config, **settings))  # type: ignore[arg-type]
    assert_pure(method(family), RECORDS, PUBLIC, processes=1)


def test_without_classes_too() -> None:
    family = tiny_lora(0, epochs=1, batch_size=3, targets=("to_q",))  # With attention.
    assert_pure(method(family), RECORDS, PUBLIC, processes=1)


def test_the_method_that_faulty_ones_are_made_from_is_pure() -> None:
    assert_pure(method(with_stacks(HONEST, lora._Stack), NotSorted), RECORDS, PUBLIC, processes=1)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (GlobalNoise, {"global generators", "partners"}),
        (GlobalShuffle, {"global generators"}),
        (GlobalClip, {"partners", "other adapters' records"}),
        (MeanOverTheBatch, {"partners", "other adapters' records"}),
    ],
)
def test_names_what_leaks_in_a_stack(kind: type[lora._Stack], named: set[str]) -> None:
    found = find_leaks(method(with_stacks(HONEST, kind)), RECORDS, PUBLIC, processes=1).leaks
    assert named <= {leak.input for leak in found}
    assert all(leak.adapters and leak.explanation for leak in found)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (DrawsByIndex, {"an unrelated record"}),
        (EpochsFromAll, {"an unrelated record"}),
        (PaddedWithNeighbours, {"other adapters' records"}),
    ],
)
def test_names_what_leaks_in_the_gathering_of_members(kind: type[EnsembleMethod], named: set[str]) -> None:
    found = {leak.input for leak in find_leaks(method(kind=kind), RECORDS, PUBLIC, processes=1).leaks}
    assert named <= found
    assert found <= {"other adapters' records", "an unrelated record", "a far record"}


def test_names_an_order_by_position() -> None:
    found = find_leaks(
        method(with_stacks(HONEST, OrderOfPositions), NotSorted), RECORDS, PUBLIC, processes=1
    ).leaks
    assert [leak.input for leak in found] == ["order of rows"]


@pytest.mark.slow
def test_names_rows_that_are_repeated_for_other_processes_and_nothing_else() -> None:
    found = find_leaks(method(kind=EvenBatches), RECORDS, PUBLIC, processes=2)
    assert [leak.input for leak in found.leaks] == ["number of processes"]
    assert found.skipped == {}


@pytest.mark.slow
def test_two_processes_change_nothing() -> None:
    assert find_leaks(method(), RECORDS, PUBLIC, processes=2).leaks == ()


def first_noise(adapter: int, epoch: int) -> bytes:
    """Return what an adapter draws in an epoch for one and the same image."""
    job = FitJob(adapter, RECORDS.select(slice(0, 1)))
    config = replace(HONEST.config, epochs=4, batch_size=1, stack=1)
    return lora._Stack(config, shared_denoiser(), {}, [job], 0)._rows(epoch).noise.numpy().tobytes()


def test_no_two_adapters_and_epochs_draw_the_same() -> None:
    assert shared_streams(first_noise, range(12), range(4)) is None


def test_names_seeds_that_are_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def summed(seed: int, name: str, adapter: int, epoch: int, sample: bytes) -> torch.Generator:
        return torch.Generator().manual_seed(seed + adapter + epoch + derive_seed(name, sample) % 1000)

    monkeypatch.setattr(lora, "torch_generator", summed)
    leak = shared_streams(first_noise, range(3), range(4))
    assert leak is not None
    assert (leak.input, leak.adapters) == ("seeds", (0, 1, 2))
    assert "adapter 1 draws in epoch 0 what adapter 0 draws in epoch 1" in leak.explanation


def test_a_removal_leaves_the_others_in_order_and_a_shuffle_by_position_does_not() -> None:
    def planned(ids: np.ndarray, adapter: int) -> np.ndarray:
        members = Records(RECORDS.codes[: len(ids)], RECORDS.labels[: len(ids)], ids)
        rows = stacks.StackPlan.of([FitJob(adapter, members)], 1, 4, 4, 0).rows[:, 0]
        return rows[rows != stacks.EMPTY]

    def shuffled(ids: np.ndarray, adapter: int) -> np.ndarray:
        return torch.randperm(len(ids), generator=torch.Generator().manual_seed(adapter)).numpy()

    assert unstable_orders(planned, RECORDS.ids[:12], range(6)) is None
    assert unstable_orders(lambda ids, a: keyed_order(ids, a), RECORDS.ids[:12], range(3)) is None
    leak = unstable_orders(shuffled, RECORDS.ids[:12], range(6))
    assert leak is not None
    assert (leak.input, leak.adapters) == ("order of reading", tuple(range(6)))


def test_each_member_is_read_once_in_an_epoch_and_padding_counts_nothing() -> None:
    jobs = pixel_jobs(7, 3, 4)
    stack = lora._Stack(
        replace(HONEST.config, epochs=2, batch_size=4, stack=4), shared_denoiser(), {}, jobs, 0
    )
    for place, job in enumerate(jobs):
        for epoch in range(2):
            chosen = stack.plan.rows[:, place][stack.plan.epochs[:, place] == epoch]
            real = chosen[chosen != stacks.EMPTY]
            if epoch:  # Rows before an adapter's first step and behind its last are of epoch 0.
                assert sorted(real) == list(range(len(job.members)))
    rows = stack._rows(1)
    padding = torch.from_numpy(stack.plan.rows[1] == stacks.EMPTY).view(-1)
    assert padding.any()
    assert not rows.shares[padding].any()
    assert not rows.clean[padding].any()
    assert not rows.noise[padding].any()
    assert NULL_CLASS not in rows.labels[padding.numpy()]
