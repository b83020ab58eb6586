"""Text on pictures: a typeface, and how long texts are fit into narrow places."""

from __future__ import annotations

import re
from bisect import bisect_left
from pathlib import Path

import matplotlib
from PIL import ImageDraw, ImageFont

NO_BREAK = "\u00a0"
"""A space at which no line is broken."""

_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_MOST_LETTERS = 400
_BREAKS = frozenset(" _-/")


class Lettering:
    """A typeface in one size and colour.

    Args:
        size: in pixels.
        colour: as Pillow takes it, such as ``"#1d2126"``.
        bold: in bold letters.

    Attributes:
        line_height: pixels from one line to the next.
    """

    def __init__(self, size: int, colour: str, bold: bool = False) -> None:
        self.font = ImageFont.truetype(_FOLDER / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)
        self.colour = colour
        self.line_height = round(1.3 * size)

    def width(self, text: str) -> float:
        """Return the width of a line in pixels."""
        return self.font.getlength(text)

    def fit(self, text: str, width: int, lines: int) -> list[str]:
        """Break a text into at most so many lines of a width in pixels.

        A text that is too long loses its middle: names often differ in their ends. What cannot be shown, such
        as control characters, becomes a replacement character.
        """
        words = re.sub(rf"[^\S{NO_BREAK}]+", " ", text).strip()
        text = "".join(each if each.isprintable() or each == NO_BREAK else "\ufffd" for each in words)

        def too_long(kept: int) -> bool:
            return len(self._wrapped(_without_middle(text, kept), width)) > lines

        most = min(len(text), _MOST_LETTERS)
        kept = most if not too_long(most) else bisect_left(range(most), True, lo=1, key=too_long) - 1
        return self._wrapped(_without_middle(text, kept), width)[:lines]

    def draw(
        self, canvas: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], centre: int = 0
    ) -> int:
        """Write lines from a top left corner downwards; return where the next line would begin.

        Args:
            canvas: to draw on.
            place: the corner, ``(x, y)``.
            lines: as from `fit`.
            centre: centre the lines in so many pixels; 0 begins all at `x`.
        """
        x, y = place
        for line in lines:
            shift = (centre - self.width(line)) / 2 if centre else 0
            canvas.text((x + shift, y), line, font=self.font, fill=self.colour)
            y += self.line_height
        return y

    def _wrapped(self, text: str, width: int) -> list[str]:
        lines = []
        while text:
            fitting = bisect_left(range(len(text)), True, key=lambda end: self.width(text[: end + 1]) > width)
            end = max(fitting, 1)
            if end < len(text):
                breaks = [place for place in range(end // 2, end) if text[place] in _BREAKS]
                end = end if text[end] == " " else (breaks[-1] + 1 if breaks else end)
            lines.append(text[:end].strip())
            text = text[end:].strip()
        return lines


def _without_middle(text: str, kept: int) -> str:
    """Shorten a text to so many of its letters, half of them from its end."""
    if kept >= len(text):
        return text
    return f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
