"""File names as they may be written in other files, and telling a name from a part of another."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from urllib.parse import quote

SHORTEST_NAME = 4
"""Names of fewer bytes are not searched for."""

_SHORTEST_STEM = 6
_DIGITS = frozenset(b"0123456789")
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")


def written_forms(names: Iterable[str], shared: Collection[str] = ()) -> dict[bytes, str]:
    """Map every way to write a name to a remark: the name itself, and its base name if that says enough.

    A base name says enough with at least 6 characters before its suffix that are not all digits. Names are
    also looked for as JSON, HTML and URLs write them, and in both normal forms of Unicode.

    Args:
        names: relative file names.
        shared: base names that retained images have too, which say nothing without their folder.
    """
    forms: dict[bytes, str] = {}
    for name in names:
        forms.update(dict.fromkeys(_encoded(name), ""))
    for name in names:
        path = PurePosixPath(name)
        if len(path.stem) >= _SHORTEST_STEM and not path.stem.isdecimal() and path.name not in shared:
            for form in _encoded(path.name):
                forms.setdefault(form, "base name only")
    return {form: remark for form, remark in forms.items() if len(form) >= SHORTEST_NAME}


def _encoded(name: str) -> set[bytes]:
    texts = {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}
    texts |= {change(text) for text in tuple(texts) for change in (_as_json, html.escape, quote)}
    return {text.encode("utf-8", "surrogateescape") for text in texts}


def _as_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def stands_alone(before: int | None, name: bytes, after: int | None) -> bool:
    """Tell whether the bytes before and after a name, `None` at either end, leave it a name of its own.

    ``digits/17`` is none in ``digits/170``, nor ``cat.png`` in ``tomcat.png``. After a suffix anything may
    follow: formats put lengths and codes there that look like letters.
    """
    word = _LETTERS | _DIGITS
    if before in word and name[0] in word:
        return False
    if name[-1] in _DIGITS:
        return after not in _DIGITS
    has_suffix = b"." in name[-6:]
    return has_suffix or not (after in word and name[-1] in word)
