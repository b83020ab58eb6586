"""A fixed number of threads for arithmetic whose last bits depend on it, one computation at a time.

Numbers of threads belong to the whole process. Two Python threads that each set one and put the old one back
would undo each other's setting, so both hold the same lock while they compute.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from threadpoolctl import OpenBLASController, ThreadpoolController

_LOCK = threading.RLock()


@contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """Let torch and the BLAS libraries compute with so many threads, and put the old numbers back.

    Other Python threads that come here wait until this one leaves; the same one may enter again.
    """
    import torch

    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            with _limited_blas(count):
                yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, see `pinned_threads`: more add up in another order."""
    with pinned_threads(1):
        yield


@contextmanager
def _limited_blas(count: int) -> Iterator[None]:
    """Set the threads of the BLAS libraries, also where another Python thread is within limits of its own.

    From release 3.8 on, threadpoolctl lets the first thread alone set those of OpenBLAS, and has the others
    do nothing without a word.
    """
    blas = _blas()
    with ExitStack() as limits:
        limits.enter_context(blas.limit(limits=count))
        if any(library["num_threads"] != count for library in blas.info()):
            if hasattr(OpenBLASController, "clear_controlling_thread"):
                OpenBLASController.clear_controlling_thread(force=True)
            limits.enter_context(blas.limit(limits=count))
        yield


@cache
def _blas() -> ThreadpoolController:
    """Return the handle on the threads of the BLAS libraries; finding them takes milliseconds."""
    import numpy as np  # noqa: F401  # With scipy.linalg it loads the BLAS libraries that are looked for.
    import scipy.linalg  # noqa: F401

    return ThreadpoolController().select(user_api="blas")
