"""One picture of what the states of a model generate, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen_unlearn.report.images import VISIBLE_SIDE, image_sheet
from gen_unlearn.samples import NULL_LABEL, SampleSet

_HEADING = 28
_MARGIN = 24


def comparison_picture(
    states: Mapping[str, SampleSet], class_names: Sequence[str], columns: int = 6
) -> Image.Image:
    """Draw a block for each state, with a row for each class and a last one for the null token.

    Args:
        states: name of the state -> its samples; all of one image shape.
        class_names: names of all classes; one without samples gets an empty row.
        columns: images in a row.

    Returns:
        An RGB picture on white.
    """
    font = ImageFont.load_default(16)
    blocks = {name: _block(samples, len(class_names), columns) for name, samples in states.items()}
    width = sum(block.width + _MARGIN for block in blocks.values()) + 3 * _MARGIN
    height = max(block.height for block in blocks.values()) + _HEADING
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    row_height = (height - _HEADING) / (len(class_names) + 1)
    for row, name in enumerate([*class_names, "null"]):
        middle = _HEADING + round((row + 0.5) * row_height)
        draw.text((3 * _MARGIN - 8, middle), name, "black", font, anchor="rm")
    left = 3 * _MARGIN
    for name, block in blocks.items():
        draw.text((left, _HEADING // 2), name, "black", font, anchor="lm")
        picture.paste(block, (left, _HEADING), block)
        left += block.width + _MARGIN
    return picture


def _block(samples: SampleSet, num_classes: int, columns: int) -> Image.Image:
    """Lay out a state's samples, white where a class has none."""
    rows = []
    for label in [*range(num_classes), NULL_LABEL]:
        images = samples.of_classes([label]).images[:columns]
        blank = np.full((columns - len(images), *samples.images.shape[1:]), 255, dtype=np.uint8)
        rows.append(np.concatenate([images, blank]))
    images = np.concatenate(rows)
    scale = max(1, VISIBLE_SIDE // 2 // max(images.shape[1:3]))
    return image_sheet(images, columns, scale).convert("RGBA")
