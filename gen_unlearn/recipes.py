"""Recipes as plain values: dataclasses from YAML and dictionaries, checked at the door, and to YAML."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

_SWITCH = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Reads ``true`` and ``false`` as switches, as YAML 1.2 does, and ``no``, a precision, as a word."""


_Loader.yaml_implicit_resolvers = {
    letter: [known for known in resolvers if known[0] != _SWITCH]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_SWITCH, re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: it is none.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=128)
def _parsed(text: str) -> Any:
    """Return what a document holds, to be copied; a command reads the recipe of its run several times."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@functools.cache
def recipe_adapter(kind: type) -> TypeAdapter[Any]:
    """Return what reads and writes a dataclass; making it takes some milliseconds, so each is made once."""
    return TypeAdapter(kind)


def recipe_yaml(recipe: object) -> str:
    """Return a recipe, which is a dataclass, as YAML with every value spelled out."""
    kind: type = type(recipe)
    plain = recipe_adapter(kind).dump_python(recipe, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the YAML of a recipe and apply overrides such as ``training.images=2000``.

    Raises:
        ValueError: there is no such file, it is not YAML of sections, or an override is malformed.
    """
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no recipe {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a recipe: expected sections such as data and model")
    for override in overrides:
        apply_override(recipe, override)
    return recipe


def validated(kind: type, values: dict[str, Any], origin: str) -> Any:
    """Return a dataclass of plain values.

    Args:
        kind: the dataclass.
        values: its fields, as YAML gives them.
        origin: where they come from, for messages.

    Raises:
        ValueError: an unknown key, or a value that does not fit; the message names the key.
    """
    check_keys(kind, values, origin)
    try:
        return recipe_adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(_first_error(origin, error)) from error


def _first_error(origin: str, error: ValidationError) -> str:
    """Say in one line what was wrong first."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return ": ".join(part for part in (origin, place, f"{message}{given}") if part)


def apply_override(recipe: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in a nested dictionary; the value is read as YAML."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"expected --set section.key=value, got {override!r}")
    section = recipe
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ValueError(f"cannot set {path}: {key} is a value, not a section")
    try:
        section[keys[-1]] = read_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: {text!r} is not a YAML value") from error


def check_keys(kind: type, values: dict[str, Any], origin: str, place: str = "") -> None:
    """Refuse what pydantic would take: unknown keys, switches for numbers, numbers that are not finite."""
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise ValueError(f"{origin}: unknown key {place}{key}; {hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{origin}: {place}{key} must be finite, got {value}")
        if isinstance(value, bool) and hints[key] is not bool:
            raise ValueError(f"{origin}: {place}{key} is not a switch, got {str(value).lower()}")
        nested = _dataclass_in(hints[key])
        if nested is None:
            continue
        if isinstance(value, dict):
            check_keys(nested, value, origin, f"{place}{key}.")
        for number, entry in enumerate(value if isinstance(value, list) else []):
            if isinstance(entry, dict):
                check_keys(nested, entry, origin, f"{place}{key}[{number}].")


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass that a field's type is, possibly optional, or that a tuple is made of."""
    several = isinstance(hint, types.UnionType) or typing.get_origin(hint) is tuple
    options = typing.get_args(hint) if several else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)
