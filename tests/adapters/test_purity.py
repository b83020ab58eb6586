"""The purity check passes what is pure, and names what leaks in faulty methods, each with one fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small_ensembles import clustered_records

from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.purity import EnsembleMethod, assert_pure, find_leaks, shared_streams
from gen_unlearn.adapters.purity_checks import in_order
from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import members_of, public_keys, route
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.processes import process_state
from gen_unlearn.repro import derive_seed, digest_arrays, keyed_order, torch_generator

RECORDS, PUBLIC = clustered_records(48, 0), clustered_records(30, 1)


@dataclass
class Honest:
    """Softmax heads, trained alone; faulty methods change one line of it."""

    adapters: int = 5

    def routes(self, records: Records, public: Records) -> np.ndarray:
        return route(records.codes, public_keys(public.codes, public.ids, 5, "public-samples", 0), 2)

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        records = in_order(records)
        rows = members_of(self.routes(records, public), self.adapters)
        return {
            adapter: digest_arrays(self.train(records, rows, adapter).numpy())
            for adapter in adapters
            if len(rows[adapter])
        }

    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        own = records.select(rows[adapter])
        return self.descend(self.initial(adapter), torch.from_numpy(own.codes / STEPS), own.labels)

    def initial(self, adapter: int) -> torch.Tensor:
        return torch.randn(6, 3, generator=torch_generator("initial", adapter), dtype=torch.float64)

    def descend(self, weights: torch.Tensor, inputs: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        targets = torch.eye(3, dtype=torch.float64)[torch.from_numpy(labels)]
        for _ in range(3):
            errors = (inputs @ weights).softmax(dim=1) - targets
            weights = weights - 0.1 * (inputs.T @ errors) / len(inputs)
        return weights


class UnseededInitial(Honest):
    def initial(self, adapter: int) -> torch.Tensor:  # noqa: ARG002
        return torch.randn(6, 3, dtype=torch.float64)


class SharedGenerator(Honest):
    """One generator for all adapters, which draw from it as they are made."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        self.generator = torch.Generator().manual_seed(0)
        return super().fit(records, public, adapters)

    def initial(self, adapter: int) -> torch.Tensor:  # noqa: ARG002
        return torch.randn(6, 3, generator=self.generator, dtype=torch.float64)


@dataclass
class KeptGenerator(Honest):
    """A generator that goes on where the last fit stopped."""

    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def initial(self, adapter: int) -> torch.Tensor:  # noqa: ARG002
        return torch.randn(6, 3, generator=self.generator, dtype=torch.float64)


class PaddedWithNeighbours(Honest):
    """Batches are filled up to a round size with rows of the next adapter, though they count nothing."""

    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        missing = -len(rows[adapter]) % 4 or 4
        own = records.select(np.append(rows[adapter], rows[(adapter + 1) % 5][:missing]))
        return self.descend(self.initial(adapter), torch.from_numpy(own.codes / STEPS), own.labels)


class StandardisedWithAll(Honest):
    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        own = records.select(rows[adapter])
        inputs = torch.from_numpy((own.codes - records.codes.mean(axis=0)) / records.codes.std(axis=0))
        return self.descend(self.initial(adapter), inputs, own.labels)


class RateFromNumberOfRecords(Honest):
    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        return super().train(records, rows, adapter) * len(records)


class SummedByThread(Honest):
    """Sums of as many parts as there are threads, as parallel kernels make them."""

    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        weights = super().train(records, rows, adapter)
        return sum(part.sum() for part in weights.flatten().chunk(torch.get_num_threads())) + weights


class KeysFromTheData(Honest):
    def routes(self, records: Records, public: Records) -> np.ndarray:  # noqa: ARG002
        return super().routes(records, in_order(records))


class ShuffledRows(Honest):
    """Members in the order of the rows, shuffled by position."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        rows = members_of(self.routes(records, public), self.adapters)
        return {
            adapter: digest_arrays(self.train(records, rows, adapter).numpy())
            for adapter in adapters
            if len(rows[adapter])
        }


class EvenBatches(Honest):
    """Members repeated until they divide among the processes."""

    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        missing = -len(rows[adapter]) % (2 * process_state().num_processes - 1)
        return super().train(records, [np.append(own, own[:missing]) for own in rows], adapter)


@dataclass
class CachedByIndex(Honest):
    """A cache whose key says which rows were used, and not what is in them."""

    cache: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        key = (adapter, *rows[adapter])
        if key not in self.cache:
            self.cache[key] = super().train(records, rows, adapter)
        return self.cache[key]


@dataclass
class CachedByCount(CachedByIndex):
    def train(self, records: Records, rows: list[np.ndarray], adapter: int) -> torch.Tensor:
        key = (adapter, len(rows[adapter]) // 20)
        if key not in self.cache:
            self.cache[key] = Honest.train(self, records, rows, adapter)
        return self.cache[key]


def test_what_is_pure_passes_and_says_what_was_left_out() -> None:
    findings = find_leaks(Honest(), RECORDS, PUBLIC, processes=1)
    assert findings.leaks == ()
    assert findings.skipped == {"number of processes": "one process was asked for"}


@pytest.mark.parametrize(
    "family",
    [RidgeHeads(), SgdHeads(epochs=3, batch_size=8), SgdHeads(hidden=5, epochs=2, optimizer="adamw")],
    ids=["ridge", "sgd", "perceptron"],
)
@pytest.mark.parametrize("source", ["public-samples", "public-kmeans"])
def test_both_families_are_pure(family: AdapterFamily, source: str) -> None:
    method = EnsembleMethod(family, adapters=5, neighbours=2, classes=3, source=source)
    assert_pure(method, RECORDS, PUBLIC, processes=1)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (UnseededInitial(), {"global generators", "creation order", "partners"}),
        (SharedGenerator(), {"creation order", "partners"}),
        (KeptGenerator(), {"earlier fits"}),
        (StandardisedWithAll(), {"other adapters' records", "an unrelated record", "a far record"}),
        (RateFromNumberOfRecords(), {"an unrelated record", "a far record"}),
        (SummedByThread(), {"number of threads"}),
        (KeysFromTheData(), {"keys"}),
        (ShuffledRows(), {"order of rows"}),
        (CachedByIndex(), {"earlier fits"}),
        (CachedByCount(), {"earlier fits"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_the_input_that_leaks(method: Honest, named: set[str]) -> None:
    found = find_leaks(method, RECORDS, PUBLIC, processes=1)
    assert {leak.input for leak in found.leaks} == named
    assert all(leak.adapters and leak.explanation for leak in found.leaks)


def test_names_padding_with_rows_of_others() -> None:
    found = {leak.input for leak in find_leaks(PaddedWithNeighbours(), RECORDS, PUBLIC, processes=1).leaks}
    assert "other adapters' records" in found
    assert found <= {"other adapters' records", "an unrelated record", "a far record"}


def test_a_stale_adapter_after_a_deletion_is_what_an_index_cache_gives() -> None:
    """The deletion that the check stands for: the same rows, other members."""
    method = CachedByCount()
    before = method.fit(RECORDS, PUBLIC, range(5))
    assert method.fit(RECORDS.select(slice(0, -1)), PUBLIC, range(5)) == before
    assert CachedByCount().fit(RECORDS.select(slice(0, -1)), PUBLIC, range(5)) != before


class EvenBesideShared:
    """Heads that the processes share, and five with faulty batches besides."""

    adapters = 10

    def __init__(self) -> None:
        heads = SgdHeads(epochs=2, batch_size=8)
        self.shared = EnsembleMethod(heads, adapters=5, neighbours=2, classes=3)
        self.even = EvenBatches()

    def routes(self, records: Records, public: Records) -> np.ndarray:
        return np.hstack([self.shared.routes(records, public), self.even.routes(records, public) + 5])

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        first = self.shared.fit(records, public, [adapter for adapter in adapters if adapter < 5])
        second = self.even.fit(records, public, [adapter - 5 for adapter in adapters if adapter >= 5])
        return {**first, **{adapter + 5: digest for adapter, digest in second.items()}}


def test_names_duplicates_that_depend_on_the_number_of_processes_and_no_shared_heads() -> None:
    found = find_leaks(EvenBesideShared(), RECORDS, PUBLIC, processes=2)
    assert [leak.input for leak in found.leaks] == ["number of processes"]
    assert set(found.leaks[0].adapters) <= set(range(5, 10)), "those that are shared are pure"
    assert found.skipped == {}


def test_says_why_a_method_is_not_tried_in_other_processes() -> None:
    class Local(Honest):
        pass

    found = find_leaks(Local(), RECORDS, PUBLIC, processes=2)
    assert found.leaks == ()
    assert "top level" in found.skipped["number of processes"]


class Broken(Honest):
    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        if process_state().num_processes > 1:
            raise SystemExit(3)
        return super().fit(records, public, adapters)


@pytest.mark.slow
def test_a_process_that_stops_is_an_error() -> None:
    with pytest.raises(ValueError, match="one that stopped"):
        find_leaks(Broken(), RECORDS, PUBLIC, processes=2)


def test_a_leak_fails_an_assertion_that_names_it() -> None:
    with pytest.raises(AssertionError, match=r"keys .*make keys from public data"):
        assert_pure(KeysFromTheData(), RECORDS, PUBLIC, processes=1)


def test_sums_of_seeds_collide_and_hashes_do_not() -> None:
    leak = shared_streams(lambda adapter, epoch: 42 + adapter + epoch, range(4), range(3))
    assert leak is not None
    assert leak.input == "seeds"
    assert leak.adapters == (0, 1, 2, 3)
    assert "adapter 1 draws in epoch 0 what adapter 0 draws in epoch 1" in leak.explanation
    assert shared_streams(lambda a, e: derive_seed(42, "order", a, e), range(200), range(50)) is None


def test_no_two_epochs_of_sgd_heads_have_the_same_order() -> None:
    def order(adapter: int, epoch: int) -> bytes:
        return keyed_order(RECORDS.ids, 0, "order", adapter, epoch).tobytes()

    assert shared_streams(order, range(30), range(20)) is None
