"""How the processes of a benchmark share its work: whole pieces, each done by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from gen_unlearn.processes import process_state
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import numpy_generator

T = TypeVar("T")


class Place(Protocol):
    """Which of how many processes one is, as `accelerate.PartialState` says it."""

    @property
    def process_index(self) -> int:
        """Its number."""

    @property
    def num_processes(self) -> int:
        """How many there are."""


def share(work: Sequence[T], do: Callable[[T], object], process: Place, description: str, unit: str) -> None:
    """Do the part of this process: of every few neighbouring pieces one, which chance deals out.

    Neighbours are often alike, and pieces that take long, as those of one method do, come at regular places.
    To be called within `gen_unlearn.processes.alone`: what the processes would share within a piece, such as
    the sampling of images, each then does whole. `process` is this one as it is in the group.

    Raises:
        ValueError: it is called where several processes share what is done within a piece.
    """
    if (processes := process_state().num_processes) > 1:
        raise ValueError(f"expected a process that works alone, got one of {processes}; wrap it in alone()")
    starts = range(0, len(work), process.num_processes)
    dealt = [numpy_generator(0, "share", start).permutation(process.num_processes) for start in starts]
    pieces = [start + places[process.process_index] for start, places in zip(starts, dealt, strict=True)]
    own = [work[piece] for piece in pieces if piece < len(work)]
    with progress_bar(len(own), description, unit) as progress:
        for piece in own:
            do(piece)
            progress.update()
