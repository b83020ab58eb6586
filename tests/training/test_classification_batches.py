"""Batches of a classifier's training: a function of the step, in which no image votes for itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.repro import id_keys, image_ids
from gen_unlearn.training.classification_batches import (
    Augmentation,
    BatchMates,
    ClassificationBatch,
    ClassificationBatches,
    SupportSampling,
)

STEPS, BATCH, CLASSES = 40, 8, 4
PLAIN = Augmentation()


def squares(values: list[int], labels: list[int], classes: int) -> IndexedImages:
    """Make 4x4 images of one grey value each; equal values are byte-identical copies."""
    images = np.repeat(np.array(values, dtype=np.uint8), 16).reshape(-1, 4, 4, 1)
    names = tuple(f"square/{row}" for row in range(len(values)))
    known = tuple(f"class {label}" for label in range(classes))
    return IndexedImages(images, np.array(labels, dtype=np.int64), image_ids(images), known, names)


@pytest.fixture(scope="module")
def data() -> IndexedImages:
    """Three classes of 20 rows with some values twice, one of 3 rows, and an empty one.

    Value 7 is in two classes.
    """
    values = [row - 1 if row % 10 == 1 else row for row in range(60)]
    values[25] = 7
    return squares([*values, 100, 101, 102], [*(row // 20 for row in range(60)), 3, 3, 3], CLASSES + 1)


def batches(
    data: IndexedImages,
    smallest: int = 2,
    largest: int = 6,
    seed: int = 3,
    steps: int = STEPS,
    augmentation: Augmentation = PLAIN,
) -> ClassificationBatches:
    return ClassificationBatches(data, BATCH, steps, seed, augmentation, SupportSampling(smallest, largest))


def mates(data: IndexedImages, size: int = BATCH, steps: int = STEPS) -> ClassificationBatches:
    return ClassificationBatches(data, size, steps, 3, PLAIN, BatchMates())


def grey(images: torch.Tensor) -> list[int]:
    """Recover the grey value of each square from the model's input."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def equal(one: ClassificationBatch, other: ClassificationBatch) -> bool:
    return one.mates == other.mates and all(map(torch.equal, one[:-1], other[:-1]))


def test_a_batch_is_a_function_of_seed_and_step(data: IndexedImages) -> None:
    augmentation = Augmentation(shift=1, horizontal_flip=True)
    one, again = (batches(data, augmentation=augmentation) for _ in range(2))
    backwards = {step: one[step] for step in reversed(range(STEPS))}
    torch.manual_seed(99)
    np.random.seed(99)
    assert all(equal(again[step], backwards[step]) for step in range(STEPS))
    longer, other = batches(data, augmentation=augmentation, steps=99), batches(data, seed=4)
    assert all(equal(longer[step], backwards[step]) for step in range(STEPS))
    assert not any(equal(other[step], backwards[step]) for step in range(STEPS))


def test_there_are_as_many_as_steps(data: IndexedImages) -> None:
    some = batches(data)
    assert len(some) == STEPS
    for step in (-1, STEPS):
        with pytest.raises(IndexError, match=f"expected a step from 0 to 39, got {step}"):
            some[step]
    with pytest.raises(ValueError, match="there is no training image"):
        batches(data.select(np.arange(0)))


def test_images_carry_their_labels(data: IndexedImages) -> None:
    known = set(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True))
    for batch in map(batches(data).__getitem__, range(STEPS)):
        assert batch.images.shape == (BATCH, 1, 4, 4)
        assert batch.labels.dtype == batch.support_labels.dtype == torch.int64
        assert len(batch.support) == len(batch.support_labels)
        for images, labels in ((batch.images, batch.labels), (batch.support, batch.support_labels)):
            assert set(zip(grey(images), labels.tolist(), strict=True)) <= known


def test_passes_cover_the_data(data: IndexedImages) -> None:
    some = batches(data, steps=STEPS)
    seen = [value for step in range(STEPS) for value in grey(some[step].images)]
    whole = sorted(data.images[:, 0, 0, 0].tolist())
    for start in range(0, len(seen) - len(data), len(data)):
        assert sorted(seen[start : start + len(data)]) == whole
    assert seen[: len(data)] != seen[len(data) : 2 * len(data)], "each pass has its own order"


def test_no_exemplar_is_an_image_of_the_step_or_a_copy_of_one(data: IndexedImages) -> None:
    for batch in map(batches(data, 50, 50).__getitem__, range(STEPS)):
        assert not set(grey(batch.images)) & set(grey(batch.support))
        assert batch.allowed.shape == (BATCH, len(batch.support))
        assert batch.allowed.all(), "so all of them may vote for all images"


def test_an_exemplar_is_drawn_once_a_step(data: IndexedImages) -> None:
    some = batches(data)
    rows = np.arange(BATCH)
    by_class = [np.flatnonzero(data.labels == label) for label in range(CLASSES + 1)]
    for step in range(STEPS):
        chosen = SupportSampling(1, 30).choose(data, by_class, rows, 0, step)
        assert len(np.unique(chosen)) == len(chosen)
        assert not np.isin(id_keys(data.ids[chosen]), id_keys(data.ids[rows])).any()
    assert len({tuple(grey(some[step].support)) for step in range(STEPS)}) > STEPS // 2


@pytest.mark.parametrize(("smallest", "largest"), [(1, 1), (2, 6), (5, 5)])
def test_every_class_gives_the_same_number_within_the_range(
    data: IndexedImages, smallest: int, largest: int
) -> None:
    drawn = set()
    for batch in map(batches(data, smallest, largest).__getitem__, range(STEPS)):
        counts = torch.bincount(batch.support_labels, minlength=CLASSES + 1).tolist()
        assert counts[0] == counts[1] == counts[2]
        assert smallest <= counts[0] <= largest
        left = sum(value not in grey(batch.images) for value in (100, 101, 102))
        assert counts[3] == min(counts[0], left), "a small class gives all it has"
        assert counts[4] == 0
        drawn.add(counts[0])
    assert drawn >= {smallest, largest}


def test_a_class_gives_all_it_has_if_more_is_asked(data: IndexedImages) -> None:
    for batch in map(batches(data, 1000, 1000).__getitem__, range(STEPS)):
        shown = set(grey(batch.images))
        expected = [value for value in data.images[:, 0, 0, 0].tolist() if value not in shown]
        assert sorted(grey(batch.support)) == sorted(expected)


def test_the_number_is_log_uniform() -> None:
    """As often 1 or 2 (up to 2.5, where it rounds) as the logarithm says; a uniform draw would be far off."""
    data = squares([*range(200)], [0] * 200, 1)
    some, steps = SupportSampling(1, 64), 600
    by_class = [np.arange(200)]
    counts = np.array([len(some.choose(data, by_class, np.arange(8), 0, step)) for step in range(steps)])
    assert (counts.min(), counts.max()) == (1, 64)
    for bound in (2, 8, 31):
        expected = math.log(bound + 0.5) / math.log(64)
        spread = 4 * math.sqrt(expected * (1 - expected) / steps)
        assert (counts <= bound).mean() == pytest.approx(expected, abs=spread)


def test_a_parametric_model_has_no_exemplars(data: IndexedImages) -> None:
    voting = batches(data)
    parametric = replace(voting, exemplars=None)
    for step in range(STEPS):
        batch = parametric[step]
        assert batch.support.shape == (0, 1, 4, 4)
        assert batch.support_labels.shape == (0,)
        assert batch.allowed.shape == (BATCH, 0)
        assert torch.equal(batch.images, voting[step].images), "it sees the same images"


# --- images that are exemplars for each other


def test_mates_are_the_images_of_the_step(data: IndexedImages) -> None:
    sampled, some = batches(data), mates(data)
    for step in range(STEPS):
        batch = some[step]
        assert torch.equal(batch.images, sampled[step].images), "the images do not depend on who votes"
        assert batch.support.shape == (0, 1, 4, 4), "none passes the encoder twice"
        assert torch.equal(batch.support_labels, batch.labels)
        assert torch.equal(batch.labels, sampled[step].labels)


@pytest.mark.parametrize("size", [1, BATCH, 50, 63, 100])
def test_an_image_is_allowed_all_mates_but_itself_and_its_copies(data: IndexedImages, size: int) -> None:
    """Also of a step of more images than there are, in which rows repeat; a label makes no difference."""
    copies = 0
    for batch in map(mates(data, size).__getitem__, range(STEPS)):
        values = grey(batch.images)
        expected = [[one != other for other in values] for one in values]
        assert batch.allowed.dtype == torch.bool
        assert batch.allowed.tolist() == expected
        copies += len(values) - len(set(values))
    assert copies > 0 or size == 1


def test_mates_are_told_apart_by_what_they_were_before_augmentation(data: IndexedImages) -> None:
    plain = mates(data, 50)
    changed = replace(plain, augmentation=Augmentation(shift=2, horizontal_flip=True))
    assert torch.equal(changed[0].allowed, plain[0].allowed)
    assert not torch.equal(changed[0].images, plain[0].images)


def test_copies_of_one_image_have_no_exemplar() -> None:
    batch = mates(squares([7] * 12, [0, 1] * 6, 2))[0]
    assert not batch.allowed.any()


def test_if_there_is_no_exemplar_to_sample_the_images_are_mates() -> None:
    few = squares([7, 8] * 6, [0, 1] * 6, 2)
    sampled, some = (
        ClassificationBatches(few, 8, 9, 3, PLAIN, kind) for kind in (SupportSampling(2, 6), BatchMates())
    )
    for step in range(9):
        assert equal(sampled[step], some[step])
        assert sampled[step].allowed.any()


@pytest.mark.parametrize("kind", [BatchMates(), SupportSampling(2, 6), None])
def test_moving_a_batch_moves_all_of_it(
    data: IndexedImages, kind: BatchMates | SupportSampling | None
) -> None:
    batch = replace(mates(data), exemplars=kind)[0]
    assert equal(batch.to(torch.device("cpu")), batch)
    assert {part.device.type for part in batch.to(torch.device("meta"))[:-1]} == {"meta"}


# --- augmentation


def numbered(count: int, height: int = 5, width: int = 7) -> torch.Tensor:
    """Return images of two channels in which every pixel has a value of its own, none of them 0."""
    values = torch.arange(1, count * 2 * height * width + 1, dtype=torch.float32)
    return values.reshape(count, 2, height, width)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    moved = torch.zeros_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if 0 <= row - down < image.shape[1] and 0 <= column - right < image.shape[2]:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shift_moves_whole_images_and_fills_up_with_zero(shift: int) -> None:
    images = numbered(120)
    moved = Augmentation(shift)(images, np.random.default_rng(0))
    places = range(-shift, shift + 1)
    seen = []
    for before, after in zip(images, moved, strict=True):
        fitting = [(y, x) for y in places for x in places if torch.equal(shifted(before, y, x), after)]
        assert len(fitting) == 1
        seen += fitting
    assert len(set(seen)) == (2 * shift + 1) ** 2, "every shift occurs"


def test_about_half_of_the_images_are_mirrored() -> None:
    images = numbered(400)
    found = Augmentation(horizontal_flip=True)(images, np.random.default_rng(0))
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(images, found, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(images, found, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert sum(mirrored) == pytest.approx(200, abs=50)


def test_both_together_shift_and_mirror() -> None:
    images = numbered(60)
    found = Augmentation(1, True)(images, np.random.default_rng(1))
    for before, after in zip(images, found, strict=True):
        moved = [shifted(before, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert any(torch.equal(after, one) or torch.equal(after, one.flip(2)) for one in moved)


def test_nothing_is_changed_unless_asked() -> None:
    images = numbered(3)
    assert torch.equal(Augmentation()(images, np.random.default_rng(0)), images)
    again = Augmentation(2, True)
    assert torch.equal(again(images, np.random.default_rng(5)), again(images, np.random.default_rng(5)))
    assert torch.equal(images, numbered(3)), "what goes in stays as it is"


def test_images_and_exemplars_are_changed_each_in_its_own_way(data: IndexedImages) -> None:
    batch = batches(data, 6, 6, augmentation=Augmentation(shift=2))[0]
    patterns = {tuple((image[0] == 0).flatten().tolist()) for image in (*batch.images, *batch.support)}
    assert len(patterns) > 8
