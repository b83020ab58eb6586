"""The SISA that the adapter ensemble is compared with: exact, and without the published code's mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.sisa import Sisa, SisaConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import id_keys, numpy_generator

CLASSES = 3
CONFIG = SisaConfig(shards=3, slices=4, epochs=5, batch_size=8, penalty=1.0)


@pytest.fixture
def records() -> Records:
    draws = numpy_generator(0, "sisa")
    ids = draws.integers(0, 256, (103, 16), dtype=np.uint8)
    ids = ids[np.argsort(id_keys(ids))]
    labels = draws.integers(0, CLASSES, len(ids))
    centres = 400 * draws.standard_normal((CLASSES, 6))
    codes = (centres[labels] + 100 * draws.standard_normal((len(ids), 6))).astype(np.int16)
    return Records(codes, labels, ids)


def rest(records: Records, rows: np.ndarray) -> Records:
    return records.select(np.setdiff1d(np.arange(len(records)), rows))


@pytest.mark.parametrize("slices", [1, 4])
def test_deletions_one_by_one_leave_the_heads_of_a_fresh_training(records: Records, slices: int) -> None:
    config = replace(CONFIG, slices=slices)
    rows = numpy_generator(1).permutation(len(records))[:20]
    sisa = Sisa(config, records, CLASSES)
    for row in rows:
        sisa.delete(records.ids[[row]])
    fresh = Sisa(config, rest(records, rows), CLASSES)
    assert sisa.heads == fresh.heads
    assert sisa.kept_stages == fresh.kept_stages, "no stage with a deleted record is kept"


def test_the_last_record_of_a_shard_changes_its_head(records: Records) -> None:
    """The published cache finds the stage before a tail's deletion again, as the name leaves it out."""
    for row in range(len(records)):
        sisa = Sisa(replace(CONFIG, epochs=1), records, CLASSES)
        before = sisa.heads
        sisa.delete(records.ids[[row]])
        assert sum(before[shard] != head for shard, head in sisa.heads.items()) == 1


def test_content_and_not_only_ids_names_what_is_kept(records: Records) -> None:
    """The published cache takes other labels, codes and settings for the same."""
    stages = Sisa(CONFIG, records, CLASSES).kept_stages
    other_labels = Records(records.codes, (records.labels + 1) % CLASSES, records.ids)
    other_codes = Records(records.codes + np.int16(1), records.labels, records.ids)
    for changed in (other_labels, other_codes):
        assert not stages & Sisa(CONFIG, changed, CLASSES).kept_stages
    assert not stages & Sisa(replace(CONFIG, penalty=2.0), records, CLASSES).kept_stages


def test_a_deletion_reuses_the_stages_before_its_slice(records: Records) -> None:
    sisa = Sisa(CONFIG, records, CLASSES)
    whole, shown = sisa.visits, []
    for row in range(len(records)):
        shown.append(Sisa(CONFIG, records, CLASSES).delete(records.ids[[row]]))
    assert max(shown) < whole / 2, "one shard of three"
    assert min(shown) < max(shown) / 1.5, "the last slice is cheaper than the first"
    assert np.mean(shown) == pytest.approx(CONFIG.expected_visits(len(records)), rel=0.25)


def test_an_unknown_id_deletes_nothing(records: Records) -> None:
    sisa = Sisa(CONFIG, records, CLASSES)
    before = sisa.heads
    with pytest.raises(ValueError, match="nothing was deleted"):
        sisa.delete(np.concatenate([records.ids[:1], np.zeros((1, 16), np.uint8)]))
    assert sisa.heads == before
    assert len(sisa.records) == len(records)


def test_it_learns_and_everything_can_be_deleted(records: Records) -> None:
    sisa = Sisa(CONFIG, records, CLASSES)
    probabilities = sisa.probabilities(records.codes)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert (probabilities.argmax(axis=1) == records.labels).mean() > 0.9
    sisa.delete(records.ids)
    assert sisa.heads == {}
    assert not sisa.probabilities(records.codes).any()
