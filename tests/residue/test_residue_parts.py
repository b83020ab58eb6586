"""The parts of the residue search agree with plain ways to do the same."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pixels import to_model_input
from gen_unlearn.residue.names import stands_alone, written_forms
from gen_unlearn.residue.patterns import PatternGroup, PatternSet
from gen_unlearn.residue.raw import find_all, hex_tokens
from gen_unlearn.residue.streams import file_of
from gen_unlearn.residue.tiles import distinct_tiles
from gen_unlearn.residue.tokens import HALF_TOLERANCE, TOLERANCE, TokenMatcher


def occurrences(data: bytes, text: bytes) -> Iterator[int]:
    return (match.start() for match in re.finditer(b"(?=" + re.escape(text) + b")", data, re.DOTALL))


@pytest.mark.parametrize("alphabet", [2, 4, 256])
@pytest.mark.parametrize("block", [16, 1000, 1 << 17])
def test_patterns_are_found_wherever_they_are(
    alphabet: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gen_unlearn.residue.windows._BLOCK", block)
    generator = np.random.default_rng(alphabet)
    data = generator.integers(0, alphabet, 4000, dtype=np.uint8)
    groups = []
    for length in (4, 7, 8, 9, 24, 300):
        present = [data[start : start + length] for start in generator.integers(0, 4000 - length, 20)]
        ends = [data[:length], data[-length:]]
        absent = generator.integers(0, alphabet, (20, length), dtype=np.uint8)
        groups.append(PatternGroup.of(np.stack([*present, *ends, *absent])))
    groups.append(PatternGroup.of(np.stack([data[100:124], data[500:524]]), line=12))
    found = [
        (number, row, start)
        for number, rows, starts in PatternSet(groups).find(data)
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True)
    ]
    expected = {
        (number, row, start)
        for number, group in enumerate(groups)
        for row, pattern in enumerate(group.rows)
        for start in occurrences(data.tobytes(), pattern.tobytes())
    }
    assert set(found) == expected
    assert len(found) == len(expected)


def test_windows_lie_within_a_line_of_pixels() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 5 * 13), dtype=np.uint8)
    group = PatternGroup.of(rows, line=13)
    for offsets in (group.first, group.second):
        assert (offsets % 13 + group.width <= 13).all()
    assert (np.abs(group.first - group.second) >= group.width).all()


@pytest.mark.parametrize("block", [7, 64, 1 << 22])
def test_a_text_is_found_across_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen_unlearn.residue.raw._BLOCK", block)
    data = np.random.default_rng(0).integers(0, 2, 500, dtype=np.uint8)
    text = data[100:105].tobytes()
    assert list(find_all(data, text)) == list(occurrences(data.tobytes(), text))
    zeros = np.zeros(23, np.uint8)
    assert list(find_all(zeros, bytes(5), step=5)) == [0, 5, 10, 15]


@pytest.mark.parametrize("page", [32, 50, 1 << 12])
def test_tokens_of_32_digits_are_found(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen_unlearn.residue.raw._PAGE", page)
    generator = np.random.default_rng(0)
    parts = [
        bytes(generator.choice(list(b"0123456789abcdefABCDEF"), length).tolist())
        for length in (32, 31, 33, 64, 32, 96, 32, 1, 32)
    ]
    text = b"xyz " + b" ".join(parts)
    pattern = rb"(?<![0-9a-fA-F])[0-9a-fA-F]{32}(?![0-9a-fA-F])"
    expected = [match.start() for match in re.finditer(pattern, text)]
    assert len(expected) == 4
    assert hex_tokens(np.frombuffer(text, np.uint8)) == expected


def test_names_are_looked_for_as_formats_write_them() -> None:
    forms = written_forms(["cats & dogs/Kätzchen 1.jpg", "digits/17", "a/b", "x/12345678.png"])
    texts = {form.decode() for form in forms}
    assert {"cats & dogs/Kätzchen 1.jpg", "cats &amp; dogs/Kätzchen 1.jpg", "digits/17"} <= texts
    assert {"cats & dogs/K\\u00e4tzchen 1.jpg", "cats%20%26%20dogs/K%C3%A4tzchen%201.jpg"} <= texts
    assert "Kätzchen 1.jpg" in texts
    assert not {"17", "a/b", "b", "12345678.png"} & texts
    assert forms["Kätzchen 1.jpg".encode()] == "base name only"
    assert forms[b"digits/17"] == ""


def test_a_base_name_that_others_have_is_looked_for_with_its_folder_only() -> None:
    forms = written_forms(["cats/picture.jpg", "dogs/holiday.jpg"], shared={"picture.jpg"})
    assert {form.decode() for form in forms} == {"cats/picture.jpg", "dogs/holiday.jpg", "holiday.jpg"}


@pytest.mark.parametrize(
    ("before", "name", "after", "alone"),
    [
        ("", "digits/17", "", True),
        (" ", "digits/17", ",", True),
        ("", "digits/17", "0", False),
        ("", "digits/17", ".", True),
        ("/", "cats/1.png", "q", True),
        ("m", "cats/1.png", "", False),
        ("", "cats/anna", "bel", False),
        ("", "cats/anna", ":", True),
    ],
)
def test_a_part_of_another_name_is_no_name(before: str, name: str, after: str, alone: bool) -> None:
    neighbours = [ord(text[0]) if text else None for text in (before, after)]
    assert stands_alone(neighbours[0], name.encode(), neighbours[1]) == alone


def test_real_tokens_are_told_apart(tiny_unet: SemiParametricUNet2DModel, few_images: IndexedImages) -> None:
    inputs = to_model_input(few_images.images)
    with torch.no_grad():
        together = tiny_unet.encode_exemplars(inputs).keys.numpy()
        alone = np.concatenate([tiny_unet.encode_exemplars(image[None]).keys.numpy() for image in inputs])
    matcher = TokenMatcher(together[:6])
    rows = alone.reshape(len(alone), -1)
    assert list(matcher.find(rows, TOLERANCE)) == list(range(6))
    assert list(matcher.find(rows.astype(np.float16), HALF_TOLERANCE)) == list(range(6))
    rounded = torch.from_numpy(rows).bfloat16().float().numpy()
    assert list(matcher.find(rounded, HALF_TOLERANCE)) == list(range(6))


@pytest.mark.filterwarnings("error")
def test_tokens_that_say_nothing_match_nothing() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)
    rows[0], rows[1, 3] = 0, np.nan
    matcher = TokenMatcher(rows)
    assert list(matcher.find(rows, TOLERANCE)) == list(range(2, 8))
    assert not list(matcher.find(np.full((5, 20), np.inf, np.float32), TOLERANCE))


def test_nearly_equal_tokens_are_told_apart_by_their_differences() -> None:
    generator = np.random.default_rng(0)
    common = generator.standard_normal(64)
    rows = (common + 0.003 * generator.standard_normal((40, 64))).astype(np.float32)
    assert list(TokenMatcher(rows[:10]).find(rows, HALF_TOLERANCE)) == list(range(10))


def test_a_tile_is_counted_once() -> None:
    found = {(8, 0, 0), (7, 0, 0), (7, 1, 1), (8, 0, 9), (1, 200, 200), (1, 3, 3)}
    assert distinct_tiles(found, (8, 8)) == [(1, 200, 200), (8, 0, 0), (8, 0, 9)]
    assert distinct_tiles([], (8, 8)) == []


def test_an_array_is_a_file() -> None:
    content = bytes(range(200))
    file = file_of(np.frombuffer(content, np.uint8))
    assert file.read() == content
    assert file.seek(-10, io.SEEK_END) == 190
    assert file.read(4) == content[190:194]
    assert file.read(100) == content[194:]
    with pytest.raises(ValueError, match="expected a position"):
        file.raw.seek(-1)
