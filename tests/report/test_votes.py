"""The sheets of votes: what is on them, in which colours, and that everything has its place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor

from gen_unlearn.report.votes import ShownPrediction, ShownVoter, draw_votes, percent

SAME, OTHER, GONE = (ImageColor.getrgb(hue) for hue in ("#2567a8", "#d07a00", "#ececec"))
FOOTER = "Who votes: prototypes."


def noise(side: int, seed: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


def prediction(picture: np.ndarray, *voters: ShownVoter, name: str = "cat") -> ShownPrediction:
    return ShownPrediction("folder/picture.png", picture, name, 0.973, ("dog", 0.012), voters)


def found_at(sheet: Image.Image, pixels: np.ndarray, factor: int) -> list[tuple[int, int]]:
    """Return where an enlarged picture lies on a sheet, as (x, y)."""
    large = np.repeat(np.repeat(pixels, factor, 0), factor, 1)
    large = np.broadcast_to(large, (*large.shape[:2], 3))
    canvas, (height, width) = np.asarray(sheet), large.shape[:2]
    fits = (canvas[: -height + 1, : -width + 1] == large[0, 0]).all(axis=2)
    for y, x in [(height - 1, width - 1), (height // 2, width // 3), (height // 5, width // 2)]:
        part = canvas[y : y + fits.shape[0], x : x + fits.shape[1]]
        fits &= (part == large[y, x]).all(axis=2)
    starts = [(int(x), int(y)) for y, x in np.argwhere(fits)]
    return [(x, y) for x, y in starts if (canvas[y : y + height, x : x + width] == large).all()]


def has(sheet: Image.Image, colour: tuple[int, ...]) -> bool:
    """Tell whether a frame or more is drawn in a colour; single pixels of noise do not count."""
    return int((np.asarray(sheet) == colour).all(axis=2).sum()) > 300


@pytest.mark.parametrize(("side", "channels", "small", "large"), [(8, 1, 14, 16), (32, 3, 4, 4)])
def test_every_picture_is_there_once_pixel_for_pixel(
    side: int, channels: int, small: int, large: int
) -> None:
    query, pictures = noise(side, 0, channels), [noise(side, seed, channels) for seed in range(1, 11)]
    voters = (ShownVoter(picture, "cat", 0.01) for picture in pictures)
    sheet = draw_votes([prediction(query, *voters)], "image 1 of 1", FOOTER)
    assert sheet.mode == "RGB"
    places = [found_at(sheet, picture, small) for picture in pictures]
    assert [len(place) for place in places] == [1] * 10
    assert len(found_at(sheet, query, large)) == 1
    (first, eighth, ninth) = (places[number][0] for number in (0, 7, 8))
    assert first[1] == eighth[1] < ninth[1], "nine exemplars take two lines"
    assert first[0] == ninth[0]
    assert has(sheet, SAME)
    assert not has(sheet, OTHER)


def test_a_frame_says_whether_an_exemplar_has_the_predicted_class() -> None:
    same, other = noise(8, 1), noise(8, 2)
    row = prediction(noise(8, 0), ShownVoter(same, "cat", 0.6), ShownVoter(other, "dog", 0.4))
    sheet = draw_votes([row], "", FOOTER)
    for picture, hue in ((same, SAME), (other, OTHER)):
        ((x, y),) = found_at(sheet, picture, 14)
        assert sheet.getpixel((x - 4, y + 50)) == hue
        assert sheet.getpixel((x + 50, y - 4)) == hue
        assert sheet.getpixel((x + 112 + 3, y + 112 + 3)) == hue


def test_large_pictures_are_shrunk_to_what_a_sheet_of_small_ones_takes() -> None:
    sizes = [
        draw_votes([prediction(noise(side, 0, 3), ShownVoter(noise(side, 1, 3), "cat", 1.0))], "", "").size
        for side in (16, 224, 1000)
    ]
    assert sizes == [sizes[0]] * 3


def test_a_deleted_exemplar_and_an_image_without_voters_leave_their_places() -> None:
    gone = prediction(noise(8, 0), ShownVoter(None, "cat", 0.5))
    assert has(draw_votes([gone], "", FOOTER), GONE)
    nobody = draw_votes([prediction(noise(8, 0))], "", FOOTER)
    assert not has(nobody, GONE)
    assert len(found_at(nobody, noise(8, 0), 16)) == 1


def test_rows_follow_each_other_and_long_names_make_room() -> None:
    queries = [noise(8, seed) for seed in range(5)]
    name = "n02085620-Chihuahua, a small terrier-like dog with a very long name"
    rows = [prediction(query, ShownVoter(noise(8, 9), name, 0.1), name=name) for query in queries]
    sheet = draw_votes(rows, "x" * 500, "A footer. " * 40)
    places = [found_at(sheet, query, 16)[0] for query in queries]
    assert {x for x, _ in places} == {places[0][0]}
    assert all(second[1] - first[1] >= 130 for first, second in pairwise(places))
    margin = np.asarray(sheet)[:, -20:]
    assert (margin == 255).all(), "nothing runs out of the sheet"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (0.0001, "<0.1 %"),
        (0.0123, "1.2 %"),
        (0.9994, "99.9 %"),
        (0.99999, ">99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_all(share: float, text: str) -> None:
    assert percent(share) == text
