"""Whether adapters come out the same, to the bit, however they are fit on this machine, and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import ID_BYTES, numpy_generator, software_versions

_SHAPE = HeadShape(features=72, classes=5)
_SIZES = (40, 3, 90, 17)
_PROBED = 7


def is_deterministic(family: AdapterFamily) -> bool:
    """Return whether an adapter of a small fixed problem comes out the same, to the bit, in every way.

    It is fit alone, with others before it and behind it, with more threads, and after random draws, once
    for each family and settings. A family that passes may promise that a deletion equals a fresh fit, in
    bytes, on this machine.

    Args:
        family: a frozen dataclass.
    """
    return _passes(family)  # type: ignore[arg-type]  # A frozen dataclass has a hash.


@cache
def _passes(family: AdapterFamily) -> bool:
    jobs = _jobs()
    ways = [_digest(family, [jobs[0]]), _digest(family, jobs), _digest(family, jobs[::-1])]
    with _threads(2):
        ways.append(_digest(family, jobs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ways.append(_digest(family, [jobs[1], jobs[0]]))
    return len(set(ways)) == 1


def environment() -> dict[str, str]:
    """Return what decides the last bits of floating-point arithmetic: libraries, builds and processor."""
    found = {"scipy": scipy.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    builds = [
        f"{library['prefix']} {library['version']} {library.get('architecture', '')}".strip()
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return dict(sorted((software_versions() | found | {"blas": ", ".join(sorted(set(builds)))}).items()))


def _jobs() -> list[FitJob]:
    """Make a fixed problem: a few adapters with members of random codes."""
    draw = numpy_generator("self-test of adapters")
    jobs = []
    for adapter, size in enumerate(_SIZES, start=_PROBED):
        codes = draw.integers(-1000, 1000, (size, _SHAPE.features)).astype(np.int16)
        labels = draw.integers(0, _SHAPE.classes, size)
        ids = draw.integers(0, 256, (size, ID_BYTES)).astype(np.uint8)
        ids[:, 0] = np.arange(size)
        jobs.append(FitJob(adapter, Records(codes, labels, ids)))
    return jobs


def _digest(family: AdapterFamily, jobs: Sequence[FitJob]) -> str:
    """Return the digest of the adapter that is probed, fit with the others."""
    states = family.fit(jobs, _SHAPE, 0)
    return next(
        digest_adapter(state) for job, state in zip(jobs, states, strict=True) if job.adapter == _PROBED
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch and the BLAS libraries use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
