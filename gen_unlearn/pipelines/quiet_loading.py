"""Load pipelines without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep diffusers from drawing a progress bar for reading a few local files."""
    enabled = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            diffusers_logging.enable_progress_bar()
