"""Checks of settings that are one of a few words."""

from __future__ import annotations

import typing
from typing import Any, Literal


def check_literals(settings: Any) -> None:
    """Raise a ValueError if a setting whose type is a `Literal` has another value.

    Args:
        settings: a dataclass, whose class and bases have annotations that can be evaluated.
    """
    for name, hint in typing.get_type_hints(type(settings)).items():
        known = typing.get_args(hint)
        if typing.get_origin(hint) is Literal and getattr(settings, name) not in known:
            words = " or ".join(str(word) for word in known)
            raise ValueError(f"expected {name} to be {words}, got {getattr(settings, name)!r}")
