"""Names beside the points of a plot, placed so that they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gen_unlearn.report.svg import colour

_ANGLES = (0, 180, 90, 270, 35, 145, 325, 215, 60, 120, 300, 240)  # degrees, the first are preferred
_REACHES = (7.0, 15.0, 25.0, 37.0, 50.0)  # points from the dot to the nearest edge of its name
_DOT = 4.0  # half the size of a dot, points
_LEADER = 12.0  # from this reach on a line leads from the dot to its name

_Box = tuple[float, float, float, float]


def place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a name beside each point, where it overlaps least; a thin line leads to one that stands apart.

    Args:
        figure: has a canvas that can measure texts.
        axes: with its final limits and scales.
        points: x and y in data units, name, colour.
    """
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    dots = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    taken = [(x - _DOT * scale, y - _DOT * scale, x + _DOT * scale, y + _DOT * scale) for x, y in dots]
    for (x, y, name, hue), (left, bottom) in zip(points, dots, strict=True):
        text = axes.annotate(name, (x, y), color=hue, fontsize=8.5, ha="center", va="center")
        extent = text.get_window_extent()
        text.remove()
        reach, offset, box = _best_place(left, bottom, extent, scale, frame, taken)
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": colour("quiet"), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            name,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            color=hue,
            fontsize=8.5,
            ha="center",
            va="center",
            arrowprops=arrow if reach > _LEADER else None,
            zorder=4,
        )


def _best_place(
    left: float, bottom: float, extent: Bbox, scale: float, frame: Bbox, taken: Sequence[_Box]
) -> tuple[float, tuple[float, float], _Box]:
    """Return reach, offset in points, and box in pixels of the place with the least overlap."""
    half_width, half_height = extent.width / 2, extent.height / 2
    best: tuple[float, float, tuple[float, float], _Box] | None = None
    for reach in _REACHES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = left + across * (reach * scale + half_width)
            y = bottom + up * (reach * scale + half_height * 0.8)
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, frame)
            if best is None or cost < best[0] - 1e-9:
                best = (cost, reach, ((x - left) / scale, (y - bottom) / scale), box)
        if best is not None and best[0] == 0:
            break
    assert best is not None, "there is a place to try"
    return best[1:]


def _overlap(first: _Box, second: _Box) -> float:
    """Return the area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: _Box, frame: Bbox) -> float:
    """Return the area of a box beyond a frame, counted ten times."""
    inside = _overlap(box, (frame.x0, frame.y0, frame.x1, frame.y1))
    return 10 * max((box[2] - box[0]) * (box[3] - box[1]) - inside, 0.0)
