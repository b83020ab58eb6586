"""Stop work right before any of its steps on disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

_CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_WRITING = os.O_WRONLY | os.O_RDWR


def before_step(number: int, stop: Callable[[], object], work: Callable[[], object]) -> None:
    """Do `work`, and call `stop` right before its given step on disk, the first of which is 1.

    Ctrl-C reaches the main thread only, so `interrupt` counts only what that does.
    """
    count = 0
    armed = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if not armed or (stop is interrupt and threading.current_thread() is not threading.main_thread()):
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if event in _CHANGING or writes:
            count += 1
            if count == number:
                stop()

    sys.addaudithook(watch)
    try:
        work()
    finally:
        armed = False


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt
