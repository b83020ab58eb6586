"""Where a step of an unlearning method takes longer than one of a loop by hand.

Hooks of the network and of the optimiser say when each of them begins and ends. Both loops run whole, one
after the other, in turns; of every step the fastest of some runs counts, and of all steps the median.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from evaluation.handwritten_training import Images, Request
from evaluation.timing import Row
from gen_unlearn.methods import loop
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.method import UnlearningMethod
from gen_unlearn.methods.unlearn_data import UnlearnData

PHASES = ("before the network", "in the network", "in losses and gradients", "in the optimiser")


def phase_rows(
    name: str,
    method: UnlearningMethod,
    network: nn.Module,
    data: UnlearnData,
    request: Request,
    by_hand: Callable[..., None],
    repeats: int,
) -> list[Row]:
    """Say how much longer a step of a method is in each of its phases, and what making its batch takes.

    Args:
        name: of the method.
        method: evaluates the network once in a step.
        network: what both train copies of.
        data: what the method sees.
        request: what the loop by hand sees, on the device.
        by_hand: the loop.
        repeats: how often each is run, once more than what counts.
    """
    accelerator = Accelerator()
    sides = (
        lambda: method(network, data, accelerator=accelerator, seed=0, budget=Budget()),
        lambda: by_hand(copy.deepcopy(network), request, method),
    )
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with _marking(network) as seconds_of_steps:
        for number in range(repeats + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                found[side].append(seconds_of_steps(sides[side]))
    ours, theirs = (1e6 * np.min(runs[1:], axis=0) for runs in found)
    extra = ours - theirs
    batches = f"a batch takes {np.median(ours[:, -1]):.0f} us, by hand {np.median(theirs[:, -1]):.0f}"
    return [
        Row.of(
            f"step of {name}, classifier, {phase}",
            f"how much longer it is than by hand{f': {batches}' if number == 0 else ''}",
            extra[:, number].tolist(),
            " us",
        ).with_error_of_median(len(extra))
        for number, phase in enumerate(PHASES)
    ]


@contextmanager
def _marking(network: nn.Module) -> Iterator[Callable[[Callable[[], object]], np.ndarray]]:
    """Yield what runs a loop and returns the seconds of its steps but the first.

    They are float64 ``(steps, 5)``: of each of the `PHASES`, and of making batches.
    """
    marks: list[float] = []
    batches = [0.0]
    spent: list[float] = []

    def mark(*_: object) -> None:
        marks.append(time.perf_counter())

    def end(*_: object) -> None:
        mark()
        spent.append(batches[0])

    def timed(make: Callable[..., object]) -> Callable[..., object]:
        def made(*arguments: object) -> object:
            started = time.perf_counter()
            batch = make(*arguments)
            batches[0] += time.perf_counter() - started
            return batch

        return made

    def seconds_of_steps(work: Callable[[], object]) -> np.ndarray:
        marks.clear()
        spent.clear()
        work()
        starts, *ends = np.reshape(marks, (-1, len(PHASES))).T
        phases = [starts[1:] - ends[-1][:-1], *(np.diff([starts, *ends], axis=0)[:, 1:])]
        return np.stack([*phases, np.diff(spent)], axis=1)

    with ExitStack() as stack:
        for handle in (
            network.register_forward_pre_hook(mark),
            network.register_forward_hook(mark),
            register_optimizer_step_pre_hook(mark),
            register_optimizer_step_post_hook(end),
        ):
            stack.callback(handle.remove)
        stack.enter_context(mock.patch.object(loop, "batch_of", timed(loop.batch_of)))
        stack.enter_context(mock.patch.object(Images, "batch", timed(Images.batch)))
        yield seconds_of_steps
