"""The speed of unlearning methods: a step of each, against a loop by hand of the same method.

Both take their steps in turns, one by one, with one thread on the same core. Of every step the fastest of a
few repeats counts, as what disturbs one only makes it longer, and of all steps the median, with its standard
error. The first step does not count, and with it copies of networks, masks, Fisher information and
adversarial examples, which come before it. A loop against itself shows how much of a ratio is chance.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Semaphore, local
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from evaluation import handwritten_classifier_loops, handwritten_diffusion_loops
from evaluation.method_world import digits_denoiser, noise_request, placed, small_classifier
from evaluation.step_phases import phase_rows
from evaluation.timing import Row, one_core, seconds_of, synchronise
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.table import build_method as classifier_method
from gen_unlearn.methods.diffusion.table import build_method as diffusion_method
from gen_unlearn.methods.float_images import FloatImages
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.method import UnlearningMethod
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import torch_generator

TARGET = 1.05

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "fine-tune": {"epochs": 2},
    "l1-sparse": {"epochs": 2},
    "gradient-ascent": {"epochs": 7},
    "neggrad-plus": {"epochs": 1},
    "random-labels": {"epochs": 2},
    "salun": {"epochs": 2},
    "salun-soft": {"epochs": 2},
    "scrub": {"epochs": 2},
    "bad-teacher": {"epochs": 3},
    "cf-k": {"epochs": 4},
    "eu-k": {"epochs": 4},
    "msg": {"epochs": 2},
    "ct": {"epochs": 2},
    "fcs": {"epochs": 2},
    "unsir": {"epochs": 1, "noise_steps": 0, "copies": 8},
    "boundary-shrink": {"epochs": 7},
    "boundary-expand": {"epochs": 7},
    "amun": {"epochs": 1, "epsilon": 1.0},
    "task-arithmetic": {"epochs": 7},
    "negmerge": {"epochs": 2},
    "regun": {"epochs": 1},
}
"""Settings that give about 30 steps; all have batches of 64."""

PHASED = ("eu-k", "fine-tune")
"""Methods whose steps are taken apart; they evaluate the network once in a step."""

DENOISE = {"steps": 11, "batch_forget": 16, "batch_retain": 16}
DENOISERS: dict[str, dict[str, Any]] = {
    "erasediff": {"steps": 5},
    "selective-amnesia": {
        "replay_per_class": 15,
        "fisher_samples": 10,
        "fisher_draws": 1,
        "sampler_steps": 2,
    },
    "sfr-on": {"fisher_samples": 10},
}
"""Settings besides those of all."""


@one_core()
@one_thread()
def method_rows(repeats: int) -> list[Row]:
    """Time a step of every method that takes steps, for classifiers and for denoisers."""
    network, noise = small_classifier(), noise_request()
    repeats = min(repeats, 3)
    classifiers = [
        _timed(
            f"step of {name}, classifier",
            _classifier_method(name),
            network,
            noise,
            loop,
            repeats,
        )
        for name, loop in handwritten_classifier_loops.LOOPS.items()
    ]
    model, digits = digits_denoiser()
    denoisers = [
        _timed(
            f"step of {name}, denoiser",
            diffusion_method(name, DENOISE | DENOISERS.get(name, {})),
            model,
            digits,
            loop,
            repeats,
        )
        for name, loop in handwritten_diffusion_loops.LOOPS.items()
    ]
    return [
        _chance(network, noise, repeats),
        *_summary("classifier", classifiers),
        *_summary("denoiser", denoisers),
        *(times.row for times in classifiers + denoisers),
        *(row for name in PHASED for row in _phases(name, network, noise, repeats)),
        _exchange(noise),
    ]


@dataclass(frozen=True)
class StepTimes:
    """How long the steps of a method took.

    Attributes:
        row: of the ratio.
        overhead: seconds that a step takes more than one by hand.
    """

    row: Row
    overhead: float


def _timed(
    work: str,
    method: UnlearningMethod,
    model: nn.Module,
    data: UnlearnData,
    loop: Callable[..., None],
    repeats: int,
) -> StepTimes:
    """Time a method and its loop; their first run does not count."""
    accelerator, seen, request = Accelerator(), data.only(method.needs), placed(data)

    def ours() -> None:
        method(model, seen, accelerator=accelerator, seed=0, budget=Budget())

    def by_hand() -> None:
        loop(copy.deepcopy(model), request, method)

    own, hand = _fastest_steps(ours, by_hand, repeats)
    usual, overhead = float(np.median(hand)), float(np.median(own - hand))
    pairs = list(zip(own.tolist(), hand.tolist(), strict=True))
    reason = f"{1000 * overhead:.2f} ms a step more"
    row = Row.of_ratio(work, f"a loop by hand, {1000 * usual:.1f} ms a step", pairs, TARGET, reason=reason)
    return StepTimes(row.with_error_of_median(len(pairs)), overhead)


def _classifier_method(name: str) -> UnlearningMethod:
    return classifier_method(name, {"batch_forget": 64, "batch_retain": 64} | CLASSIFIERS[name])


def _phases(name: str, network: nn.Module, noise: UnlearnData, repeats: int) -> list[Row]:
    """Return how much longer each phase of a step is than by hand."""
    method, by_hand = _classifier_method(name), handwritten_classifier_loops.LOOPS[name]
    return phase_rows(name, method, network, noise.only(method.needs), placed(noise), by_hand, repeats)


def _exchange(noise: UnlearnData) -> Row:
    """Return how long AMUN takes to put its float images in the place of those of a batch."""
    images = to_model_input(join(noise.forget, noise.retain).all_images())
    floats = FloatImages.one_each(images[: len(noise.forget)])
    parts = torch.randperm(len(images), generator=torch_generator(0, "exchange")).split(64)
    batches = [(images[part], part.numpy()) for part in parts] * 3
    seconds = [seconds_of(partial(floats.put, *batch)) for batch in batches]
    share = len(noise.forget) / len(images)
    title = "float images put in the place of those of a batch of 64"
    return Row.of(title, f"in each step of amun; {share:.0%} are exchanged", 1e6 * np.array(seconds), " us")


def _fastest_steps(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of every step of both but the first, the fastest of some runs after another one.

    Who begins changes from run to run, as the memory of one thread can be slower than that of the other.
    """
    turns = []
    for number in range(repeats + 1):
        begun = _Turns().seconds(*((second, first) if number % 2 else (first, second)))
        turns.append(begun[::-1] if number % 2 else begun)
    own, other = (np.min([turn[side][1:] for turn in turns[1:]], axis=0) for side in (0, 1))
    return own, other


def _chance(network: nn.Module, noise: UnlearnData, repeats: int) -> Row:
    """Return the ratios of the same loop by hand to itself."""
    settings = classifier_method("fine-tune", {"batch_retain": 64} | CLASSIFIERS["fine-tune"])
    request = placed(noise)

    def by_hand() -> None:
        handwritten_classifier_loops.LOOPS["fine-tune"](copy.deepcopy(network), request, settings)

    both = [_fastest_steps(by_hand, by_hand, repeats) for _ in range(3)]
    ratios = [float(np.median(first / second)) for first, second in both]
    return Row.of("step of fine-tune, classifier, by hand", "itself; its spread is chance", ratios, " x")


class _Turns:
    """Two trainings, each in a thread of its own, that take their optimiser steps in turns.

    So a machine whose speed drifts slows both, and both have the same share of its caches.
    """

    def __init__(self) -> None:
        self._may_go = (Semaphore(1), Semaphore(0))
        self._over = [False, False]
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._place = local()

    def seconds(
        self, first: Callable[[], object], second: Callable[[], object]
    ) -> tuple[list[float], list[float]]:
        """Return the seconds of every step of both, the preparation in those of the first step.

        Raises:
            ValueError: they did not take the same number of steps.
        """
        handle = register_optimizer_step_post_hook(lambda *_: self._hand_over())
        try:
            with ThreadPoolExecutor(2) as threads:
                both = [threads.submit(self._run, place, work) for place, work in enumerate((first, second))]
            for one in both:
                one.result()
        finally:
            handle.remove()
        if len(self._seconds[0]) != len(self._seconds[1]):
            raise ValueError(f"expected as many steps by hand, got {[len(one) for one in self._seconds]}")
        return self._seconds

    def _run(self, place: int, work: Callable[[], object]) -> None:
        self._place.number = place
        self._wait()
        try:
            work()
        finally:
            self._over[place] = True
            self._may_go[1 - place].release()

    def _wait(self) -> None:
        self._may_go[self._place.number].acquire()
        self._place.started = time.perf_counter()

    def _hand_over(self) -> None:
        synchronise()
        place = self._place.number
        self._seconds[place].append(time.perf_counter() - self._place.started)
        if self._over[1 - place]:
            self._place.started = time.perf_counter()
            return
        self._may_go[1 - place].release()
        self._wait()


def _summary(family: str, times: list[StepTimes]) -> list[Row]:
    """Return the worst and the median ratio of all methods of a family, and what a step costs more."""
    worst = max(times, key=lambda one: one.row.value).row
    missed = sum(not one.row.met for one in times)
    title = f"step of {len(times)} methods for a {family}"
    ratios = [one.row.value for one in times]
    extra = [1e6 * one.overhead for one in times]
    return [
        Row.of(f"{title}, the median", "loops by hand; spread over the methods", ratios, " x"),
        replace(worst, work=f"{title}, the worst", compared_with=f"{worst.work}; {missed} miss the target"),
        Row.of(f"{title}, what it costs more, the median", "loops by hand; spread as above", extra, " us"),
    ]
