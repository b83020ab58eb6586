"""Records: what encodings are rounded to, and what a table of them has to be."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from small_ensembles import random_records

from gen_unlearn.adapters import records
from gen_unlearn.adapters.records import Records, quantise
from gen_unlearn.shards import Rows


def test_codes_are_the_nearest_steps() -> None:
    draw = np.random.default_rng(0)
    encodings, mean = draw.standard_normal((20, 3)).astype(np.float32), np.float32([0.1, -2, 5])
    deviation = np.float32([1, 0.3, 7])
    codes, cut_off = quantise(
        torch.from_numpy(encodings), torch.from_numpy(mean), torch.from_numpy(deviation)
    )
    assert codes.dtype == np.int16
    assert cut_off == 0
    for row, found in zip(encodings, codes, strict=True):
        for value, centre, scale, code in zip(row, mean, deviation, found, strict=True):
            exact = 256 * (Fraction(float(value)) - Fraction(float(centre))) / Fraction(float(scale))
            assert abs(exact - int(code)) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_codes_far_off_are_cut_off_and_counted() -> None:
    encodings = torch.tensor([[127.996, -127.996], [129.0, -1e30], [0.0, 128.0]])
    codes, cut_off = quantise(encodings, torch.zeros(2), torch.ones(2))
    assert codes.tolist() == [[32767, -32767], [32767, -32767], [0, 32767]]
    assert cut_off == 3


def test_codes_ignore_companions_and_half_precision_of_the_same_values() -> None:
    encodings = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).half()
    mean, deviation = torch.full((7,), 0.25), torch.full((7,), 1.5)
    codes, _ = quantise(encodings, mean, deviation)
    assert np.array_equal(quantise(encodings.float(), mean, deviation)[0], codes)
    assert np.array_equal(quantise(encodings[3:5], mean, deviation)[0], codes[3:5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_encodings_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="expected finite encodings"):
        quantise(torch.tensor([[0.0, value]]), torch.zeros(2), torch.ones(2))


def test_records_are_selected_by_slice_index_and_mask() -> None:
    records = random_records(9)
    chosen = records.select(slice(2, 5))
    assert chosen.digest == records.select(np.array([2, 3, 4])).digest
    assert chosen.digest == records.select((np.arange(9) >= 2) & (np.arange(9) < 5)).digest
    assert len(chosen) == 3
    assert chosen.digest != records.select(slice(3, 6)).digest


def test_stored_codes_are_features_and_then_routes() -> None:
    records, routes = random_records(6), np.arange(12, dtype=np.int16).reshape(6, 2)
    rows = Rows(
        np.zeros((6, 2, 2, 1), dtype=np.uint8),
        labels=records.labels,
        ids=records.ids,
        codes=np.c_[records.codes, routes],
    )
    found, found_routes = Records.of_rows(rows, 12)
    assert found.digest == records.digest
    assert np.array_equal(found_routes, routes)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("codes", np.zeros((4, 3))),
        ("codes", np.zeros((3, 3), dtype=np.int16)),
        ("codes", np.zeros(4, dtype=np.int16)),
        ("labels", np.zeros(4, dtype=np.int32)),
        ("labels", np.zeros(5, dtype=np.int64)),
        ("ids", np.zeros((4, 15), dtype=np.uint8)),
    ],
)
def test_columns_of_other_kinds_are_refused(column: str, value: np.ndarray) -> None:
    columns = {
        "codes": np.zeros((4, 3), dtype=np.int16),
        "labels": np.zeros(4, dtype=np.int64),
        "ids": np.zeros((4, 16), dtype=np.uint8),
    }
    Records(**columns)
    with pytest.raises(ValueError, match="expected codes int16"):
        Records(**{**columns, column: value})


def test_the_largest_code_has_one_name() -> None:
    folder = Path(records.__file__).parent
    found = {path.name: path.read_text(encoding="utf-8").count(" 32767\n") for path in folder.glob("*.py")}
    assert {name for name, count in found.items() if count} == {"records.py", "routing.py"}, (
        "LARGEST_CODE and MOST_ADAPTERS"
    )
    literal = [path.name for path in folder.glob("*.py") if "-32767" in path.read_text(encoding="utf-8")]
    assert literal == []
