"""Describe the installed software."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from gen_unlearn.repro import software_versions


def describe_software() -> dict[str, Any]:
    """Return versions, the first GPU that NVIDIA's driver names, and how many cores the machine has.

    Nothing is imported to find them.
    """
    return software_versions() | {"gpu": _gpu(), "cpu_cores": os.cpu_count()}


def _gpu() -> str:
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return "none"
    asked = [driver, "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=5)
    except subprocess.TimeoutExpired:
        return "the driver does not answer"
    return found.stdout.partition("\n")[0] if found.returncode == 0 else "none"
