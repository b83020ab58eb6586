"""Arithmetic on a graphics processor that comes out the same every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = ":4096:8"


@contextmanager
def strict_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute with deterministic algorithms in full float32 where `device` is a CUDA one, and put all back.

    Attention is computed as its formula says, and no algorithm is chosen by timing. On the CPU nothing is
    changed. The settings belong to the whole process.

    Raises:
        ValueError: cuBLAS is not set up for it. It reads that when it starts, so the environment must say it.
    """
    if device.type != "cuda":
        yield
        return
    if os.environ.get(_WORKSPACE) != _FIXED:
        raise ValueError(
            f"expected {_WORKSPACE}={_FIXED} in the environment to train adapters with equal bits on "
            f"{device}, got {os.environ.get(_WORKSPACE)!r}; set it before the program starts"
        )
    with ExitStack() as settings:
        settings.enter_context(_deterministic())
        settings.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Set the flags of the process, and put them back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    mode = torch.get_deterministic_debug_mode()
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = flags
