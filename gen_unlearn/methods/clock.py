"""Seconds of a computation, with the device done."""

from __future__ import annotations

import time

import torch


class Clock:
    """Measure seconds from now on; what the device was asked before does not count.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wait()
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds until the device has done what it was asked so far."""
        self._wait()
        return time.perf_counter() - self._started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
