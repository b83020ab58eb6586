"""SISA: a deletion gives the state of a training without the images, to the bit, and spares other shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.sisa import Sisa, SisaConfig, expected_shards_hit
from gen_unlearn.repro import ids_to_hex, image_ids

CONFIG = SisaConfig(shards=3, slices=3, epochs=2, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3)


def _images(count: int = 90) -> IndexedImages:
    draws = np.random.default_rng(0)
    patterns, labels = draws.integers(60, 196, (3, 4, 4, 1)), np.arange(count, dtype=np.int64) % 3
    images = (patterns[labels] + draws.integers(-40, 41, (count, 4, 4, 1))).astype(np.uint8)
    return IndexedImages(images, labels, image_ids(images), tuple("abc"), tuple(map(str, range(count))))


def _network() -> nn.Module:
    """Batch normalisation and dropout: buffers and global random numbers count too."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def _sisa(
    images: IndexedImages, config: SisaConfig = CONFIG, seed: int = 0, folder: Path | None = None
) -> Sisa:
    return Sisa(config, _network, images, accelerator=Accelerator(cpu=True), seed=seed, folder=folder)


@pytest.mark.parametrize("slices", [1, 3])
def test_a_deletion_is_a_training_without_the_images(slices: int) -> None:
    """In weights and answers, for one image and then for ten others; other shards keep their bits."""
    images = _images()
    config = SisaConfig(shards=3, slices=slices, epochs=2, batch_size=8)
    sisa = _sisa(images, config)
    rows = np.random.default_rng(1).permutation(len(images))
    for chosen in (rows[:1], rows[1:11]):
        before, forget = sisa.digests, ForgetSet(images.ids[chosen], "test")
        touched, left = sisa.shards_of(forget), sisa.images.without(forget)
        sisa.delete(forget)
        fresh = _sisa(left, config)
        assert sisa.digests == fresh.digests
        assert sisa.kept_stages == fresh.kept_stages
        np.testing.assert_array_equal(sisa.log_probabilities(images), fresh.log_probabilities(images))
        assert {shard for shard, digest in sisa.digests.items() if digest != before[shard]} == touched
    assert _sisa(left, config, seed=1).digests != sisa.digests


def test_only_stages_from_the_deleted_slice_on_are_trained_again() -> None:
    """The images shown again are those of the stages from the first slice that had the image."""
    images = _images()
    sisa = _sisa(images)
    assert sisa.budget.backward_samples == sum(
        CONFIG.stage_epochs * int(((sisa._shard == shard) & (sisa._slice <= part)).sum())
        for shard in range(3)
        for part in range(3)
    )
    shown = set()
    for row in range(6):
        shard, part = int(sisa._shard[0]), int(sisa._slice[0])
        kept = sisa.kept_stages
        found = sisa.delete(ForgetSet(images.ids[row : row + 1], "test"))
        of_shard = sisa._slice[sisa._shard == shard]
        assert found == CONFIG.stage_epochs * sum(int((of_shard <= stage).sum()) for stage in range(part, 3))
        assert len(kept & sisa.kept_stages) == 9 - (3 - part)
        shown.add(part)
    assert len(shown) > 1


def test_the_order_of_rows_does_not_matter_and_labels_do() -> None:
    """Places follow from ids; another label is other content."""
    images = _images()
    sisa = _sisa(images)
    assert _sisa(images.select(np.arange(len(images))[::-1])).digests == sisa.digests
    other = images.labels.copy()
    other[0] = (other[0] + 1) % 3
    changed = IndexedImages(images.images, other, images.ids, images.class_names, images.names)
    assert len(_sisa(changed).kept_stages & sisa.kept_stages) < 9


def test_stages_on_disk_give_the_same_and_are_found_again(tmp_path: Path) -> None:
    """Nothing that saw a deleted image is left in the folder; a second training finds all stages there."""
    images = _images()
    (tmp_path / "mine.safetensors").write_text("mine")
    in_memory, on_disk = _sisa(images), _sisa(images, folder=tmp_path)
    assert on_disk.digests == in_memory.digests
    again = _sisa(images, folder=tmp_path)
    assert (again.budget.backward_samples, again.digests) == (0, on_disk.digests)
    forget = ForgetSet(images.ids[:5], "test")
    assert on_disk.delete(forget) == in_memory.delete(forget) > 0
    assert on_disk.digests == in_memory.digests
    assert on_disk.kept_stages == in_memory.kept_stages == _sisa(images.without(forget)).kept_stages
    assert len(list(tmp_path.glob("stage-*.safetensors"))) == 9
    last = on_disk._chains[0][-1]
    (tmp_path / f"stage-{last}.safetensors").unlink()  # As after an interruption.
    resumed = _sisa(images.without(forget), folder=tmp_path)
    assert resumed.digests == in_memory.digests
    assert resumed.budget.backward_samples == CONFIG.stage_epochs * int((resumed._shard == 0).sum())
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_answers_are_means_or_shares_of_votes() -> None:
    """Both from the networks' own answers, and right for most images."""
    images = _images()
    right = {}
    for answer in ("mean", "vote"):
        config = SisaConfig(shards=3, epochs=10, batch_size=8, answer="vote" if answer == "vote" else "mean")
        sisa = _sisa(images, config)
        with torch.no_grad():
            inputs = torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 127.5 - 1
            each = torch.stack(
                [network(inputs).double().softmax(dim=1) for network in sisa._networks.values()]
            )
        if answer == "mean":
            expected = each.mean(dim=0)
        else:
            expected = torch.stack(
                [(each.argmax(dim=2) == label).double().mean(dim=0) for label in range(3)], 1
            )
        found = np.exp(sisa.log_probabilities(images))
        np.testing.assert_allclose(found, expected.clamp_min(1e-6), atol=1e-6)
        right[answer] = (found.argmax(axis=1) == images.labels).mean()
    assert min(right.values()) > 0.8


def test_unknown_ids_delete_nothing_and_a_shard_may_become_empty() -> None:
    """An error leaves the state; a shard without images does not answer; without any, nobody does."""
    images = _images(12)
    sisa = _sisa(images)
    before = sisa.digests
    with pytest.raises(ValueError, match="1 of 2 ids"):
        sisa.delete(ForgetSet(np.concatenate([images.ids[:1], np.zeros((1, 16), dtype=np.uint8)]), "test"))
    assert sisa.digests == before
    assert len(sisa.images) == 12
    of_first = images.ids[sisa._shard == 0]
    sisa.delete(ForgetSet(of_first, "test"))
    assert set(sisa.digests) == {1, 2}
    assert not set(ids_to_hex(of_first)) & set(ids_to_hex(sisa.images.ids))
    assert sisa.digests == _sisa(images.select(~np.isin(np.arange(12), images.rows_of(of_first)))).digests
    sisa.delete(ForgetSet(sisa.images.ids, "test"))
    with pytest.raises(ValueError, match="all images were deleted"):
        sisa.log_probabilities(images)


def test_expected_shards_hit_matches_random_deletions() -> None:
    """The formula against counting; a tenth of 1000 images hits all of 10 shards."""
    draws = np.random.default_rng(0).integers(0, 5, (20_000, 7))
    counted = np.mean([len(set(row)) for row in draws.tolist()])
    assert expected_shards_hit(5, 7) == pytest.approx(counted, abs=0.02)
    assert expected_shards_hit(20, 1) == pytest.approx(1)
    assert expected_shards_hit(10, 100) > 9.99
    assert expected_shards_hit(10, 0) == 0
    with pytest.raises(ValueError, match="at least 1 shard"):
        expected_shards_hit(0, 1)


def test_a_training_that_runs_away_is_an_error() -> None:
    """No answer is given by weights that are not finite."""
    with pytest.raises(ValueError, match="not finite"):
        Sisa(
            SisaConfig(shards=1, lr=1e30),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
            _images(),
            accelerator=Accelerator(cpu=True),
            seed=0,
        )
