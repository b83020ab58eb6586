"""Networks that see folders of pictures, for two sides that are compared; imports as little as it can."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import nn

BATCH = 64


def device() -> torch.device:
    """Return the accelerator, or the processor if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def small_network() -> nn.Module:
    """Return a network of 64 features that costs next to nothing, for inputs ``(n, 3, 299, 299)``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 64, 16, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers).to(device()).eval()


def inception() -> nn.Module:
    """Return torchvision's Inception-V3 with fresh weights, up to its 2048 features."""
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False)
    network.fc = nn.Identity()
    return nn.Sequential(nn.InstanceNorm2d(3), network).to(device()).eval()


def print_peak() -> None:
    """Print the peak memory of this process in kB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    sys.stdout.write(str(re.findall(r"VmHWM:\s+(\d+)", status)[0]))
