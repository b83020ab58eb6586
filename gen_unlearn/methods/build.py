"""Methods by their names, from the settings of a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from gen_unlearn.methods.method import UnlearningMethod
from gen_unlearn.recipes import validated


def method_of(
    methods: Mapping[str, type[UnlearningMethod]], name: str, settings: Mapping[str, Any]
) -> UnlearningMethod:
    """Return a method of a table with some of its settings changed.

    Args:
        methods: name -> method.
        name: a key of `methods`.
        settings: hyper-parameter -> value, as YAML gives them; what is left out takes its default.

    Raises:
        ValueError: no such method or hyper-parameter, or a value of the wrong type or out of range.
    """
    if name not in methods:
        close = difflib.get_close_matches(str(name), methods, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"expected one of the methods {', '.join(methods)}, got {name!r}{hint}")
    method: UnlearningMethod = validated(methods[name], dict(settings), name)
    return method
