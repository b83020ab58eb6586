"""The self-test finds families whose bits depend on what they should not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from faulty_lora import GlobalClip, GlobalNoise, GlobalShuffle, MeanOverTheBatch, with_stacks
from small_denoisers import tiny_lora

from gen_unlearn.adapters import determinism, lora
from gen_unlearn.adapters.determinism import computing_device, environment, is_deterministic
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


LORA = tiny_lora(channels=(8,), targets=("conv1",), epochs=50, label_dropout=0.5, learning_rate=0.01)


def test_adapters_of_images_are_tried_out_with_a_short_training() -> None:
    determinism._passes.cache_clear()
    streams = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    assert is_deterministic(LORA, HeadShape(9, 3))
    assert is_deterministic(with_stacks(LORA, lora._Stack), HeadShape(9, 3))
    assert is_deterministic(LORA), "with sizes of its own"
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.random.get_state()[1].tobytes() == streams[1]


@pytest.mark.parametrize("kind", [GlobalNoise, GlobalShuffle, GlobalClip, MeanOverTheBatch])
def test_faults_of_adapters_of_images_are_found(kind: type[lora._Stack]) -> None:
    assert not is_deterministic(with_stacks(LORA, kind), HeadShape(9, 3))


class Elsewhere(Faulty):
    """Adapters of images that are computed elsewhere."""

    image_shape, stack = (2, 3, 1), 1

    def device(self) -> torch.device:
        return torch.device("meta")

    def shortened(self) -> Elsewhere:
        return self

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
        assert all(job.members.pixels.shape == (len(job.members), 2, 3, 1) for job in jobs)  # type: ignore[union-attr]
        assert max(len(job.members) for job in jobs) < 10
        return super().fit(jobs, shape, seed)


def test_families_say_where_they_compute() -> None:
    assert computing_device(RidgeHeads()) == computing_device(LORA) == torch.device("cpu")
    assert computing_device(Elsewhere()) == torch.device("meta")
    assert is_deterministic(Elsewhere(), HeadShape(4, 2))
    assert not is_deterministic(Elsewhere("place"), HeadShape(4, 2))


@pytest.mark.gpu
def test_the_environment_names_a_graphics_processor() -> None:
    device = torch.device("cuda", 0)
    found = environment(device)
    assert found["device"].startswith(torch.cuda.get_device_name(device))
    assert found["cuda"] == torch.version.cuda
    assert found["cudnn"].isdigit()
    assert {name: found[name] for name in environment()} == environment()


def test_the_environment_names_what_computes() -> None:
    assert environment(torch.device("cpu")) == environment()
    found = environment()
    assert found == environment()
    assert {"numpy", "scipy", "torch", "python", "platform", "blas", "cpu_capability"} <= found.keys()
    assert found["numpy"] == np.__version__
    assert found["torch"] == torch.__version__.split("+")[0]
    assert "blas" in found["blas"].lower() or "mkl" in found["blas"].lower()
    assert "/" not in found["blas"], "no folder of this machine"
