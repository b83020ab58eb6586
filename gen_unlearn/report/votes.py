"""Sheets that show why images were classified as they were: beside each, the exemplars that voted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from gen_unlearn.report.lettering import NO_BREAK, Lettering

HEADLINE = "why: exemplars that carried the vote"

_COLUMNS = 8
_MARGIN, _GAP = 28, 14
_FRAME, _MAT = 4, 2
_BORDER = _FRAME + _MAT
_QUERY_SIDE, _EXEMPLAR_SIDE = 128, 112
_TEXT_WIDTH, _CAPTION_WIDTH = 190, 104
_PAGE, _TEXT, _QUIET, _RULE, _GONE = "#ffffff", "#1d2126", "#5b626b", "#dcdcd5", "#ececec"
_SAME, _OTHER = "#2567a8", "#d07a00"


@dataclass(frozen=True, eq=False)
class ShownVoter:
    """An exemplar beside the image that it voted for.

    Attributes:
        picture: uint8 ``(height, width, channels)``, grey or colour; `None` if it was deleted meanwhile.
        class_name: its class.
        share: its share of the vote, 0 to 1.
    """

    picture: np.ndarray | None
    class_name: str
    share: float


@dataclass(frozen=True, eq=False)
class ShownPrediction:
    """A row of the sheet.

    Attributes:
        name: what the image is called.
        picture: the image as it was classified, uint8 ``(height, width, channels)``, grey or colour.
        class_name: the predicted class.
        probability: of that class, 0 to 1.
        runner_up: the class that came second, and its probability, if there is one.
        voters: the exemplars to show, heaviest first.
    """

    name: str
    picture: np.ndarray
    class_name: str
    probability: float
    runner_up: tuple[str, float] | None
    voters: tuple[ShownVoter, ...]


def percent(share: float) -> str:
    """Write a share such as ``97.3 %``; what is neither 0 nor 1 is never written as if it were."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def draw_votes(predictions: Sequence[ShownPrediction], subtitle: str, footer: str) -> Image.Image:
    """Draw a sheet: a row for each prediction, with the exemplars framed by whether they have its class.

    Args:
        predictions: the rows, at least one.
        subtitle: what is on the sheet, in a line.
        footer: who votes, and how shares are counted.

    Returns:
        A picture of mode RGB. Small pictures are enlarged by whole numbers, large ones shrunk.
    """
    style, voters = _Style(), [voter for row in predictions for voter in row.voters]
    tiles = [_size(voter.picture, _EXEMPLAR_SIDE) for voter in voters if voter.picture is not None]
    tile = max([_EXEMPLAR_SIDE, *map(max, tiles)])
    query = max(max(_size(row.picture, _QUERY_SIDE)) for row in predictions)
    columns = min(max(4, *(len(row.voters) for row in predictions)), _COLUMNS)
    layout = _Layout(query, tile, columns)
    parts = [_head(layout, style, subtitle, _has_others(predictions))]
    parts += [_row(layout, style, row) for row in predictions]
    parts.append(_foot(layout, style, footer))
    sheet = Image.new("RGB", (layout.width, sum(part.height for part in parts)), _PAGE)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


@dataclass(frozen=True)
class _Style:
    headline: Lettering = field(default_factory=lambda: Lettering(22, _TEXT, bold=True))
    strong: Lettering = field(default_factory=lambda: Lettering(17, _TEXT, bold=True))
    normal: Lettering = field(default_factory=lambda: Lettering(15, _TEXT))
    quiet: Lettering = field(default_factory=lambda: Lettering(13, _QUIET))
    caption: Lettering = field(default_factory=lambda: Lettering(12, _TEXT))


@dataclass(frozen=True)
class _Layout:
    """Where things lie, in pixels: the sides of the squares for pictures, and exemplars in a line."""

    query: int
    tile: int
    columns: int

    @property
    def text_left(self) -> int:
        return _MARGIN + self.query + _GAP

    @property
    def tiles_left(self) -> int:
        return self.text_left + _TEXT_WIDTH + _GAP

    @property
    def pitch(self) -> int:
        return max(self.tile + 2 * _BORDER, _CAPTION_WIDTH) + _GAP

    @property
    def width(self) -> int:
        return self.tiles_left + self.columns * self.pitch - _GAP + _MARGIN

    def part(self, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        part = Image.new("RGB", (self.width, height), _PAGE)
        return part, ImageDraw.Draw(part)


def _has_others(predictions: Sequence[ShownPrediction]) -> bool:
    return any(voter.class_name != row.class_name for row in predictions for voter in row.voters)


def _head(layout: _Layout, style: _Style, subtitle: str, others: bool) -> Image.Image:
    """Draw the headline, the subtitle, and what the frames mean."""
    part, canvas = layout.part(_MARGIN + 58)
    wide = layout.width - 2 * _MARGIN
    y = style.headline.draw(canvas, (_MARGIN, _MARGIN - 8), style.headline.fit(HEADLINE, wide, 1))
    style.quiet.draw(canvas, (_MARGIN, y + 2), style.quiet.fit(subtitle, layout.tiles_left - 2 * _MARGIN, 2))
    x = layout.tiles_left
    keys = [(_SAME, "of the predicted class"), (_OTHER, "of another class")]
    for hue, meaning in keys if others else keys[:1]:
        canvas.rectangle((x, y + 5, x + 11, y + 16), fill=hue)
        style.quiet.draw(canvas, (x + 18, y + 2), [meaning])
        x += round(style.quiet.width(meaning)) + 42
    return part


def _foot(layout: _Layout, style: _Style, footer: str) -> Image.Image:
    """Draw the last lines."""
    lines = style.quiet.fit(footer, layout.width - 2 * _MARGIN, 6)
    part, canvas = layout.part(len(lines) * style.quiet.line_height + 2 * _GAP + 4)
    canvas.line((_MARGIN, 0, layout.width - _MARGIN, 0), fill=_RULE)
    style.quiet.draw(canvas, (_MARGIN, _GAP), lines)
    return part


def _row(layout: _Layout, style: _Style, row: ShownPrediction) -> Image.Image:
    """Draw an image, what it was classified as, and its exemplars, in as many lines as they need."""
    lines = [
        row.voters[start : start + layout.columns] for start in range(0, len(row.voters), layout.columns)
    ]
    drawn = [_voters(layout, style, row.class_name, line) for line in lines]
    text = _described(style, row)
    text_height = sum(len(lines) * lettering.line_height + space for lettering, lines, space in text)
    height = max(layout.query + 2, text_height, sum(line.height for line in drawn))
    part, canvas = layout.part(height + 2 * _GAP)
    canvas.line((_MARGIN, 0, layout.width - _MARGIN, 0), fill=_RULE)
    _paste(part, _scaled(row.picture, _QUERY_SIDE), (_MARGIN, _GAP), layout.query, _QUIET, 1)
    y = _GAP - 2
    for lettering, words, space in text:
        y = lettering.draw(canvas, (layout.text_left, y), words) + space
    y = _GAP
    for line in drawn:
        part.paste(line, (layout.tiles_left, y))
        y += line.height
    if not drawn:
        style.quiet.draw(canvas, (layout.tiles_left, _GAP), ["no exemplar has a share above 0"])
    return part


def _described(style: _Style, row: ShownPrediction) -> list[tuple[Lettering, list[str], int]]:
    """Return the text beside an image: lettering, lines, and the space below them."""
    text = [
        (style.strong, style.strong.fit(row.class_name, _TEXT_WIDTH, 3), 2),
        (style.normal, [percent(row.probability)], 6),
    ]
    if row.runner_up is not None:
        second, probability = row.runner_up
        words = f"then {second}, {_unbroken(probability)}"
        text.append((style.quiet, style.quiet.fit(words, _TEXT_WIDTH, 3), 6))
    if row.voters:
        words = f"shown: {_unbroken(sum(voter.share for voter in row.voters))} of the vote"
        text.append((style.quiet, style.quiet.fit(words, _TEXT_WIDTH, 2), 6))
    return [*text, (style.quiet, style.quiet.fit(row.name, _TEXT_WIDTH, 2), 0)]


def _unbroken(share: float) -> str:
    return percent(share).replace(" ", NO_BREAK)


def _voters(layout: _Layout, style: _Style, class_name: str, voters: Sequence[ShownVoter]) -> Image.Image:
    """Draw a line of exemplars, with class and share below each."""
    wide = layout.pitch - _GAP
    captions = [style.caption.fit(voter.class_name, wide, 2) for voter in voters]
    below = (max(map(len, captions)) + 1) * style.caption.line_height
    part = Image.new("RGB", (layout.columns * layout.pitch, layout.tile + 2 * _BORDER + 4 + below + 6), _PAGE)
    canvas = ImageDraw.Draw(part)
    for column, (voter, caption) in enumerate(zip(voters, captions, strict=True)):
        x, hue = column * layout.pitch, _SAME if voter.class_name == class_name else _OTHER
        if voter.picture is None:
            picture = _deleted(layout.tile, style)
        else:
            picture = _scaled(voter.picture, _EXEMPLAR_SIDE)
        _paste(part, picture, (x + (wide - layout.tile) // 2 - _BORDER, 0), layout.tile, hue, _FRAME)
        y = style.caption.draw(canvas, (x, layout.tile + 2 * _BORDER + 4), caption, wide)
        style.caption.draw(canvas, (x, y), [percent(voter.share)], wide)
    return part


def _deleted(side: int, style: _Style) -> Image.Image:
    """Draw what stands for an exemplar that is gone."""
    tile = Image.new("RGB", (side, side), _GONE)
    style.quiet.draw(ImageDraw.Draw(tile), (0, (side - style.quiet.line_height) // 2), ["deleted"], side)
    return tile


def _paste(
    part: Image.Image, picture: Image.Image, place: tuple[int, int], side: int, hue: str, frame: int
) -> None:
    """Paste a picture, framed, into the middle of a square whose frame begins at a place.

    A frame wider than a line is set off from the picture by a little of the page.
    """
    border = frame + (_MAT if frame > 1 else 0)
    x, y = (start + (side - length) // 2 for start, length in zip(place, picture.size, strict=True))
    right, bottom = x + picture.width + 2 * border - 1, y + picture.height + 2 * border - 1
    ImageDraw.Draw(part).rectangle((x, y, right, bottom), outline=hue, width=frame)
    part.paste(picture, (x + border, y + border))


def _size(pixels: np.ndarray, side: int) -> tuple[int, int]:
    """Return ``(width, height)`` in which to draw an image so that its longer side is near `side`.

    That is a whole multiple of its own size, unless it is much larger.
    """
    height, width = pixels.shape[:2]
    longer = max(width, height)
    factor = side / longer if 3 * longer > 4 * side else max(1, round(side / longer))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _scaled(pixels: np.ndarray, side: int) -> Image.Image:
    """Return an image in colour, in its `_size`."""
    picture, size = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), _size(pixels, side)
    shrunk = size[0] < picture.width
    return picture.convert("RGB").resize(
        size, Image.Resampling.LANCZOS if shrunk else Image.Resampling.NEAREST
    )
