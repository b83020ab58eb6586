"""Numbers in sentences."""

from __future__ import annotations

import math


def counted(count: float, noun: str) -> str:
    """Write a number with its noun, such as ``1 image``, ``2,500 images`` or ``0.495 days``."""
    whole = math.isfinite(count) and (count == int(count) or count >= 1000)
    number = f"{count:,.0f}" if whole else f"{count:.3g}"
    return f"{number} {noun if number == '1' else noun + 's'}"
