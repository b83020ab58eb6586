"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

from gen_unlearn.processes import process_state


def progress_bar(total: int, description: str, unit: str = "image", initial: int = 0) -> tqdm:
    """Return a progress bar on standard error, with rate and remaining time, shown by the main process only.

    A terminal sees it move; a log file gets a line now and then; quick work shows nothing.
    """
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        initial=initial,
        disable=not process_state().is_local_main_process,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        delay=0.5,
        dynamic_ncols=True,
    )
