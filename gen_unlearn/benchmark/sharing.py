"""How the processes of a benchmark share its work: whole pieces, each done by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState

from gen_unlearn.progress import progress_bar

T = TypeVar("T")


def share(
    work: Sequence[T], do: Callable[[T], object], process: PartialState, description: str, unit: str
) -> None:
    """Do the part of this process: every n-th piece, n being the number of processes."""
    own = work[process.process_index :: process.num_processes]
    with progress_bar(len(own), description, unit) as progress:
        for piece in own:
            do(piece)
            progress.update()
