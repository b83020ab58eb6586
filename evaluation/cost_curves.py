"""Measure how time and memory grow, and fit exponents.

    python -m evaluation.cost_curves

Each curve varies one number over a factor of 32: the exemplars of a store, the adapters of an ensemble, the
adapters that each image goes to, the exemplars per class that an image is sampled with. Exponents are least
squares on both logarithms, of the total: what costs the same at every size is not taken out. Writes
``evaluation/results/cost_curves.json`` and ``cost_curves.png``. Runs on Linux, which tells peaks of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from evaluation.adapter_speed import random_records
from evaluation.cost_curve_plots import draw_curves
from evaluation.deletion_speed import noise_images, run_of
from evaluation.timing import scratch_folder, seconds_of
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.atomic import write_text
from gen_unlearn.bank import ExemplarBank
from gen_unlearn.config import load_config
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import ids_to_hex, numpy_generator, software_versions

ROOT = Path(__file__).parent
REPEATS = 5
STORE_SIZES = (4_000, 8_000, 16_000, 32_000, 64_000, 128_000)
ADAPTERS = (32, 64, 128, 256, 512, 1024)
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
PER_CLASS = (4, 8, 16, 32, 64, 128)

_CLASSES = 10
_CHILD = """
import re, sys, time
from pathlib import Path
from gen_unlearn.commands.forget import forget
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import ids_from_hex
from gen_unlearn.runs import RunFolder
run, requests = RunFolder.open(Path(sys.argv[1])), [ForgetSet(ids_from_hex([id]), "") for id in sys.argv[2:]]
def timed(work):
    started = time.perf_counter()
    work()
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)
    sys.stdout.write(f"{time.perf_counter() - started} {peak}\\n")
for request in requests:
    timed(lambda: forget(run, request))
for _ in requests:
    timed(lambda: ExemplarStore.from_pretrained(run.exemplars_path))
"""


@dataclass(frozen=True)
class Exponent:
    """An exponent with its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Curve:
    """What some work costs at several sizes.

    Attributes:
        variable: what the sizes count.
        work: what is done.
        sizes: ascending.
        seconds: median of each.
        memory: bytes of each.
        memory_is: what the bytes are: of arrays, or the peak of what a fresh process had in memory.
    """

    variable: str
    work: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    memory: tuple[int, ...]
    memory_is: str

    @property
    def time_exponent(self) -> Exponent:
        """Of the seconds."""
        return fitted_exponent(self.sizes, self.seconds)

    @property
    def memory_exponent(self) -> Exponent:
        """Of the bytes."""
        return fitted_exponent(self.sizes, self.memory)


def main() -> None:
    """Measure all curves, and write and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="times that everything is timed")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write")
    arguments = parser.parse_args()
    curves = cost_curves(arguments.repeats)
    for curve in curves:
        sys.stdout.write(f"{describe(curve)}\n")
    write_curves(curves, arguments.results)


def cost_curves(repeats: int = REPEATS) -> list[Curve]:
    """Measure all curves."""
    return [*store_curves(repeats), *ensemble_curves(repeats), sampling_curve(repeats)]


def write_curves(curves: Sequence[Curve], folder: Path) -> None:
    """Write curves with their exponents as ``cost_curves.json``, and draw them as ``cost_curves.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    described = [
        asdict(curve)
        | {"time_exponent": asdict(curve.time_exponent), "memory_exponent": asdict(curve.memory_exponent)}
        for curve in curves
    ]
    result = {
        "command": "python -m evaluation.cost_curves",
        "device": process_state().device.type,
        "versions": software_versions(),
        "curves": described,
    }
    write_text(folder / "cost_curves.json", json.dumps(result, indent=2) + "\n")
    draw_curves(curves, folder / "cost_curves.png")


def describe(curve: Curve) -> str:
    """Write a curve's exponents in one line."""
    both = (curve.time_exponent, curve.memory_exponent)
    exponents = [f"{each.value:.2f} ± {each.standard_error:.2f}" for each in both]
    span = f"{curve.sizes[0]:,} to {curve.sizes[-1]:,} {curve.variable}"
    return f"{curve.work:<34} {span:<46} time {exponents[0]}, memory {exponents[1]} ({curve.memory_is})"


def fitted_exponent(sizes: Sequence[int], values: Sequence[float]) -> Exponent:
    """Fit ``log(values) = exponent * log(sizes) + constant`` by least squares; at least three sizes."""
    x, y = np.log(sizes), np.log(values)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - slope * x
    return Exponent(slope, float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))))


def store_curves(repeats: int) -> Iterator[Curve]:
    """Measure deletions of one image in memory and on disk, and opening the store."""
    in_memory: list[tuple[float, int]] = []
    forgetting, opening = list[tuple[float, int]](), list[tuple[float, int]]()
    for count in STORE_SIZES:
        data = noise_images(count)
        store = ExemplarStore.from_images(data)
        leaving = numpy_generator(0, "leaving").permutation(count)[: 5 * repeats + 1]
        requests = [ForgetSet(data.ids[[row]], "costs") for row in leaving[repeats:]]
        in_memory.append(
            (_median_of_later(partial(store.delete, each) for each in requests), _bytes_of(store))
        )
        with scratch_folder() as scratch:
            run = run_of(store, scratch / "run")
            found = _in_a_child(run.path, ids_to_hex(data.ids[leaving[:repeats]]))
        forgetting.append(_median_and_peak(found[:repeats]))
        opening.append(_median_and_peak(found[repeats:]))
    peak = "process peak"  # Of one that deletes, and then opens the store.
    yield _curve("exemplars", "delete 1 in memory", STORE_SIZES, in_memory, "arrays")
    yield _curve("exemplars", "delete 1 on disk", STORE_SIZES, forgetting, peak)
    yield _curve("exemplars", "open the store", STORE_SIZES, opening, peak)


def ensemble_curves(repeats: int) -> Iterator[Curve]:
    """Measure deletions of one image from ridge heads: of more adapters, and with more that it went to."""
    records = random_records(8_000, 64)
    names = tuple(map(str, range(_CLASSES)))

    def cost(adapters: int, neighbours: int) -> tuple[float, int]:
        keys = public_keys(records.codes, records.ids, adapters, "public-samples", 0)
        ensemble = AdapterEnsemble.fit(EnsembleRecipe(keys, RidgeHeads(), neighbours, names, 0), records)
        leaving = numpy_generator(0, "leaving").permutation(len(records))[: 4 * repeats + 1]
        requests = [ForgetSet(records.ids[[row]], "costs") for row in leaving]
        seconds = _median_of_later(partial(ensemble.delete, each) for each in requests)
        arrays = [array for state in ensemble.states.values() for array in state.values()]
        return seconds, sum(array.nbytes for array in (*arrays, ensemble.routes))

    memory = "arrays of adapters and routes"
    by_adapters = [cost(adapters, 4) for adapters in ADAPTERS]
    yield _curve("adapters", "delete 1 from 4 of them", ADAPTERS, by_adapters, memory)
    by_neighbours = [cost(128, neighbours) for neighbours in NEIGHBOURS]
    yield _curve("adapters per image", "delete 1 from 128 adapters", NEIGHBOURS, by_neighbours, memory)


def sampling_curve(repeats: int) -> Curve:
    """Measure sampling an image of every class with the network of the digits' recipe, fresh weights."""
    config, device = load_config(ROOT.parent / "configs" / "digits_spm.yaml"), process_state().device
    unet = build_denoiser(config.model, (8, 8, 1), _CLASSES).eval().to(device)
    assert isinstance(unet, SemiParametricUNet2DModel)
    found = []
    for count in PER_CLASS:
        store = ExemplarStore.from_images(_digits(count))
        sampler = build_sampler(config.sampling.sampler, config.noise.build())
        pipeline = SemiParametricDDPMPipeline(unet, sampler, store)
        pipeline.set_progress_bar_config(disable=True)
        sample = partial(pipeline, list(range(_CLASSES)), count, num_inference_steps=10, output_type="uint8")
        tokens = ExemplarBank.build(store, unet).tokens
        parts = {part.data_ptr(): part.nbytes for part in (tokens.keys, tokens.values)}
        found.append((_median_of_later([sample] * (repeats + 1)), sum(parts.values())))
    memory = "encoded exemplars"
    return _curve("exemplars per class", "sample 10 images, 10 steps", PER_CLASS, found, memory)


def _digits(per_class: int) -> IndexedImages:
    """Return so many random images of each class, of the digits' size."""
    draws, count = numpy_generator(0, "digits", per_class), per_class * _CLASSES
    pixels = draws.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    ids = draws.integers(0, 256, (count, 16), dtype=np.uint8)
    names = tuple(map(str, range(_CLASSES)))
    return IndexedImages(pixels, np.arange(count) % _CLASSES, ids, names, ("",) * count)


def _in_a_child(run: Path, ids: Sequence[str]) -> list[tuple[float, int]]:
    """Forget images one by one and then open the store as often: seconds, and peak bytes until then."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(run), *ids], check=True, capture_output=True, text=True
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return [(float(seconds), 1024 * int(kilobytes)) for seconds, kilobytes in lines]


def _median_and_peak(found: Sequence[tuple[float, int]]) -> tuple[float, int]:
    seconds, peaks = zip(*found, strict=True)
    return float(np.median(seconds[1:])), peaks[0]


def _median_of_later(works: Iterator[Callable[[], object]] | Sequence[Callable[[], object]]) -> float:
    """Return the median of the seconds of all but the first."""
    return float(np.median([seconds_of(work) for work in works][1:]))


def _bytes_of(store: ExemplarStore) -> int:
    return store.images.nbytes + store.labels.nbytes + store.ids.nbytes


def _curve(
    variable: str, work: str, sizes: tuple[int, ...], costs: Sequence[tuple[float, int]], memory_is: str
) -> Curve:
    seconds, memory = zip(*costs, strict=True)
    return Curve(variable, work, sizes, seconds, memory, memory_is)


if __name__ == "__main__":
    main()
