"""The self-test finds families whose bits depend on what they should not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from gen_unlearn.adapters import determinism
from gen_unlearn.adapters.determinism import environment, is_deterministic
from gen_unlearn.adapters.family import AdapterFamily, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads

SEEN: list[tuple[int, HeadShape]] = []


@dataclass(frozen=True)
class Faulty:
    """Heads that take up something besides their members.

    `SEEN` is what the global generator was seeded with in every fit, and the sizes.
    """

    fault: str = "none"

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
        found = []
        SEEN.append((torch.initial_seed(), shape))
        for place, job in enumerate(jobs):
            extra = {
                "none": seed,
                "place": place,
                "partners": len(jobs),
                "threads": torch.get_num_threads(),
                "stream": float(torch.rand(())) if self.fault == "stream" else 0,
                "wide": place if shape.features > 100 else 0,
            }[self.fault]
            found.append({"weights": np.full((shape.features, shape.classes), extra + len(job.members))})
        return found

    def scores(self, state: AdapterState, codes: np.ndarray) -> np.ndarray:
        return codes @ state["weights"]

    def visits(self, members: int) -> int:
        return members


FAMILIES = [
    RidgeHeads(),
    RidgeHeads(solver="portable"),
    SgdHeads(),
    SgdHeads(hidden=24),
    SgdHeads(optimizer="adamw", batch_size=7, stack=3),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_the_families_pass(family: AdapterFamily) -> None:
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    determinism._passes.cache_clear()
    assert is_deterministic(family)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert is_deterministic(family)
    assert determinism._passes.cache_info().hits == 1


@pytest.mark.parametrize("fault", ["place", "partners", "threads", "stream"])
def test_faults_are_found(fault: str) -> None:
    assert is_deterministic(Faulty())
    assert not is_deterministic(Faulty(fault))


def test_faults_that_show_with_other_sizes_are_found_with_these() -> None:
    assert is_deterministic(Faulty("wide"))
    assert is_deterministic(Faulty("wide"), HeadShape(100, 5))
    assert not is_deterministic(Faulty("wide"), HeadShape(101, 5))


def test_sizes_are_those_of_the_run_and_bounded() -> None:
    determinism._passes.cache_clear()
    SEEN.clear()
    is_deterministic(Faulty(), HeadShape(300, 17))
    assert {shape for _, shape in SEEN} == {HeadShape(300, 17)}
    count = len(SEEN)
    is_deterministic(Faulty(), HeadShape(300, 17))
    assert len(SEEN) == count, "once for each family and sizes"
    SEEN.clear()
    is_deterministic(Faulty(), HeadShape(5000, 2))
    assert {shape for _, shape in SEEN} == {HeadShape(512, 2)}


def test_the_global_generator_is_left_to_others() -> None:
    determinism._passes.cache_clear()
    SEEN.clear()
    seed = torch.initial_seed()
    is_deterministic(Faulty())
    assert {found for found, _ in SEEN} == {seed}


def test_the_environment_names_what_computes() -> None:
    found = environment()
    assert found == environment()
    assert {"numpy", "scipy", "torch", "python", "platform", "blas", "cpu_capability"} <= found.keys()
    assert found["numpy"] == np.__version__
    assert found["torch"] == torch.__version__.split("+")[0]
    assert "blas" in found["blas"].lower() or "mkl" in found["blas"].lower()
    assert "/" not in found["blas"], "no folder of this machine"
