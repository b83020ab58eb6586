"""Whether adapters come out the same, to the bit, however they are fit on this machine, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import scipy.linalg  # With NumPy it loads the BLAS libraries whose builds are listed below.
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape, PixelFamily, digest_adapter
from gen_unlearn.adapters.one_thread import one_thread, pinned_threads
from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import ID_BYTES, numpy_generator, software_versions

_USUAL = HeadShape(features=72, classes=5)
_OF_IMAGES = HeadShape(features=1, classes=1)
_MOST_FEATURES = 512
_SIZES = (40, 3, 70)
_SIZES_OF_IMAGES = (5, 2, 9)
_PROBED = 7


def is_deterministic(family: AdapterFamily, shape: HeadShape | None = None) -> bool:
    """Return whether an adapter of a small fixed problem comes out the same, to the bit, in every way.

    It is fit alone, with others before it and behind it, with more threads, and time and again, so that what
    draws from a global generator shows; once for each family, settings and sizes. A family that passes may
    promise that a deletion equals a fresh fit, in bytes, on this machine. Other Python threads cannot fit
    meanwhile; no global generator is touched here.

    A family whose adapters are fit on images is tried out on a few random ones, with a shortened training.

    Args:
        family: a frozen dataclass.
        shape: sizes of the adapters, which decide how a library computes; more than 512 features are tried
            out with 512. By default 72 features and 5 classes, for images of one class.
    """
    usual = _OF_IMAGES if isinstance(family, PixelFamily) else _USUAL
    wanted = usual if shape is None else shape
    tried = wanted._replace(features=min(wanted.features, _MOST_FEATURES))
    return _passes(family, tried, computing_device(family))  # type: ignore[arg-type]  # Frozen, so hashable.


def computing_device(family: AdapterFamily) -> torch.device:
    """Return where a family computes adapters: on the CPU, unless they are fit on images."""
    return family.device() if isinstance(family, PixelFamily) else torch.device("cpu")


@cache
def _passes(family: AdapterFamily, shape: HeadShape, device: torch.device) -> bool:  # noqa: ARG001, a key
    if isinstance(family, PixelFamily):
        family, jobs = family.shortened(), _jobs(shape, _SIZES_OF_IMAGES, family.image_shape)
    else:
        jobs = _jobs(shape, _SIZES)
    with one_thread():
        ways = [_digest(family, some, shape) for some in (jobs[:1], jobs, jobs[1::-1])]
        with pinned_threads(2), threadpool_limits(2):
            ways.append(_digest(family, jobs[::-1], shape))
    return len(set(ways)) == 1


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Return what decides the last bits of floating-point arithmetic: libraries, builds and processor.

    Args:
        device: where adapters are computed, see `computing_device`; a graphics processor is named, with its
            libraries. The CPU by default.
    """
    found = {"scipy": scipy.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if device is not None and device.type != "cpu":
        found |= _accelerator(device)
    builds = [
        f"{library['prefix']} {library['version']} {library.get('architecture', '')}".strip()
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return dict(sorted((software_versions() | found | {"blas": ", ".join(sorted(set(builds)))}).items()))


def _accelerator(device: torch.device) -> dict[str, str]:
    """Return what decides the bits on a device: cuBLAS goes by the number of multiprocessors."""
    if device.type != "cuda":
        return {"device": device.type}
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return {
        "device": f"{torch.cuda.get_device_name(device)}, {units} multiprocessors",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def _jobs(
    shape: HeadShape, sizes: Sequence[int], image_shape: tuple[int, int, int] | None = None
) -> list[FitJob]:
    """Make a fixed problem: a few adapters with members of random codes and, if asked for, random pixels."""
    draw = numpy_generator("self-test of adapters")
    jobs = []
    for adapter, size in enumerate(sizes, start=_PROBED):
        codes = draw.integers(-1000, 1000, (size, shape.features)).astype(np.int16)
        labels = draw.integers(0, shape.classes, size)
        ids = draw.integers(0, 256, (size, ID_BYTES)).astype(np.uint8)
        ids[:, 0] = np.arange(size)
        pixels = None
        if image_shape is not None:
            pixels = draw.integers(0, 256, (size, *image_shape)).astype(np.uint8)
        jobs.append(FitJob(adapter, Records(codes, labels, ids, pixels)))
    return jobs


def _digest(family: AdapterFamily, jobs: Sequence[FitJob], shape: HeadShape) -> str:
    """Return the digest of the adapter that is probed, fit with the others."""
    states = family.fit(jobs, shape, 0)
    return next(
        digest_adapter(state) for job, state in zip(jobs, states, strict=True) if job.adapter == _PROBED
    )
