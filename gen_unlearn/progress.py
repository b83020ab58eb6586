"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm.auto import tqdm

_HIDDEN = ContextVar("hidden progress bars", default=False)


@contextmanager
def hidden_progress() -> Iterator[None]:
    """Show no progress bar of what is done inside, where one bar of the whole is shown already."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def progress_bar(total: int, description: str, unit: str = "image", initial: int = 0) -> tqdm:
    """Return a progress bar on standard error, with rate and remaining time, shown by the main process only.

    A terminal sees it move; a log file gets a line now and then; quick work shows nothing.
    """
    from tqdm.auto import tqdm

    from gen_unlearn.processes import is_first

    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        initial=initial,
        disable=_HIDDEN.get() or not is_first(),
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        delay=0.5,
        dynamic_ncols=True,
    )
