"""Recipes as plain values: dataclasses from dictionaries, and to YAML."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from pydantic import TypeAdapter


@functools.cache
def recipe_adapter(kind: type) -> TypeAdapter[Any]:
    """Return what reads and writes a dataclass; making it takes some milliseconds, so each is made once."""
    return TypeAdapter(kind)


def recipe_yaml(recipe: object) -> str:
    """Return a recipe, which is a dataclass, as YAML with every value spelled out."""
    kind: type = type(recipe)
    plain = recipe_adapter(kind).dump_python(recipe, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
