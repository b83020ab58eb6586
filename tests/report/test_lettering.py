"""Lettering: texts are fit into their places, and nothing that a name may hold breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gen_unlearn.report.lettering import NO_BREAK, Lettering

LETTERING = Lettering(12, "#000000")
TEXTS = (
    "cat",
    "n02085620-Chihuahua, a small dog",
    "Donaudampfschifffahrtsgesellschaftskapitän" * 3,
    "two\nlines\tand\x00a null",
    "not UTF-8: \udcff",
    "word " * 300,
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("lines", [1, 2, 5])
@pytest.mark.parametrize("width", [40, 104, 600])
def test_no_line_is_wider_than_its_place_and_none_is_too_many(text: str, lines: int, width: int) -> None:
    fit = LETTERING.fit(text, width, lines)
    assert 1 <= len(fit) <= lines
    assert all(LETTERING.width(line) <= width for line in fit)
    assert all(letter.isprintable() for line in fit for letter in line)


def test_a_text_that_fits_is_kept_and_breaks_between_words() -> None:
    assert LETTERING.fit("cat", 104, 2) == ["cat"]
    assert LETTERING.fit(" a small\n dog ", 104, 2) == ["a small dog"]
    assert LETTERING.fit("Chihuahua, a small dog", 104, 2) == ["Chihuahua, a", "small dog"]
    assert LETTERING.fit("", 104, 2) == []
    words = f"then a class, 2.0{NO_BREAK}%"
    width = round(LETTERING.width(words)) - 5
    assert LETTERING.fit(words, width, 2) == ["then a class,", f"2.0{NO_BREAK}%"]


def test_a_long_text_keeps_both_ends() -> None:
    fit = LETTERING.fit("n02085620-" + "x" * 100 + "-terrier", 104, 2)
    assert "".join(fit).startswith("n02085620-")
    assert "".join(fit).endswith("-terrier")
    assert "…" in "".join(fit)


def test_lines_are_drawn_below_each_other() -> None:
    picture = Image.new("L", (200, 60), 255)
    end = LETTERING.draw(ImageDraw.Draw(picture), (10, 4), ["left", "left"])
    assert end == 4 + 2 * LETTERING.line_height
    ink = np.asarray(picture) < 128
    assert ink[4:end].any()
    assert not ink[end:].any()
    assert np.flatnonzero(ink.any(axis=0)).max() <= 10 + LETTERING.width("left")
    centred = Image.new("L", (200, 60), 255)
    LETTERING.draw(ImageDraw.Draw(centred), (0, 4), ["middle"], centre=200)
    columns = np.flatnonzero((np.asarray(centred) < 128).any(axis=0))
    assert abs(columns.min() + columns.max() - 199) <= 4
