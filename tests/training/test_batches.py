"""Training batches: what a step sees, and that it is a function of the step alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.repro import id_keys, image_ids
from gen_unlearn.training.batches import (
    ClassConditioning,
    DiffusionBatch,
    DiffusionBatches,
    ExemplarConditioning,
)

STEPS = 30
BATCH = 8


def grey_squares(values: list[int], labels: list[int]) -> IndexedImages:
    """Make 4x4 images of one grey value each; equal values are byte-identical copies."""
    images = np.repeat(np.array(values, dtype=np.uint8), 16).reshape(-1, 4, 4, 1)
    names = tuple(f"square/{row}" for row in range(len(values)))
    classes = tuple(str(label) for label in range(max(labels) + 1))
    return IndexedImages(images, np.array(labels, dtype=np.int64), image_ids(images), classes, names)


@pytest.fixture
def squares() -> IndexedImages:
    """40 images in two classes of 20 rows; every fifth value appears twice."""
    values = [row - 1 if row % 10 == 1 else row for row in range(40)]
    return grey_squares(values, [row // 20 for row in range(40)])


def with_exemplars(
    data: IndexedImages,
    smallest: int = 2,
    largest: int = 6,
    dropout: float = 0.0,
    label_slots: int | None = None,
    label_dropout: float = 0.0,
    steps: int = STEPS,
) -> DiffusionBatches:
    store = ExemplarStore.from_images(data)
    conditioning = ExemplarConditioning(
        data, store, smallest, largest, dropout, label_slots, label_dropout, seed=3
    )
    return DiffusionBatches(data, conditioning, BATCH, steps, num_timesteps=50, seed=3)


def grey_values(images: torch.Tensor) -> list[int]:
    """Recover the grey value of each square from the model's input."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def exemplars_of_queries(batch: DiffusionBatch) -> list[list[int] | None]:
    """Return the grey values that each query attends to; `None` for the null token."""
    plan, values = batch.conditioning["plan"], grey_values(batch.conditioning["exemplars"])
    width = plan.slots.shape[1]
    seen: list[list[int] | None] = []
    for cell in plan.cells.tolist():
        row = cell // width
        if row == len(plan.members):
            seen.append(None)
            continue
        seen.append([values[member] for member in plan.members[row][plan.present[row]].tolist()])
    return seen


def tensors(batch: DiffusionBatch) -> list[torch.Tensor]:
    """List every tensor of a batch with exemplars and label slots."""
    given = batch.conditioning
    return [*batch[:3], given["exemplars"], given["class_labels"], *given["plan"]]


def test_no_query_meets_itself_or_a_copy_of_any_query_of_the_step(squares: IndexedImages) -> None:
    batches = with_exemplars(squares)
    assert len(set(id_keys(squares.ids).tolist())) < len(squares)
    for step in range(STEPS):
        batch = batches[step]
        assert not set(grey_values(batch.images)) & set(grey_values(batch.conditioning["exemplars"]))


def test_exemplars_are_distinct_and_of_the_query_class(squares: IndexedImages) -> None:
    label_of_value = dict(zip(squares.images[:, 0, 0, 0].tolist(), squares.labels.tolist(), strict=True))
    for step in range(STEPS):
        batch = with_exemplars(squares)[step]
        for query, seen in zip(grey_values(batch.images), exemplars_of_queries(batch), strict=True):
            assert seen is not None
            assert len(set(seen)) == len(seen)
            assert {label_of_value[value] for value in seen} == {label_of_value[query]}


def test_exemplar_count_stays_in_its_range_and_varies(squares: IndexedImages) -> None:
    batches = with_exemplars(squares)
    counts = []
    for step in range(STEPS):
        of_step = {len(seen) for seen in exemplars_of_queries(batches[step]) if seen is not None}
        assert len(of_step) == 1, "all classes of a step get equally many"
        counts += of_step
    assert set(counts) == {2, 3, 4, 5, 6}


def test_an_item_is_a_function_of_its_index(squares: IndexedImages) -> None:
    batches = with_exemplars(squares, dropout=0.3, label_slots=2, label_dropout=0.3)
    forwards = [batches[index] for index in range(5)]
    backwards = [batches[index] for index in reversed(range(5))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other), strict=True))
    assert not torch.equal(forwards[0].noise, forwards[1].noise)
    assert not torch.equal(forwards[0].noise, replace(batches, seed=4)[0].noise)


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_parts_of_a_step_make_the_whole_step(
    squares: IndexedImages, accumulation: int, processes: int
) -> None:
    whole = with_exemplars(squares, dropout=0.3, label_slots=2, label_dropout=0.3)
    for step in range(6):
        parts = [
            replace(whole, accumulation=accumulation, process_index=process, num_processes=processes)[
                step * accumulation + micro
            ]
            for micro in range(accumulation)
            for process in range(processes)
        ]
        expected = whole[step]
        for field in range(3):
            assert torch.equal(torch.cat([part[field] for part in parts]), expected[field])
        slots = torch.cat([part.conditioning["class_labels"] for part in parts])
        assert torch.equal(slots, expected.conditioning["class_labels"])
        seen = [one for part in parts for one in exemplars_of_queries(part)]
        assert seen == exemplars_of_queries(expected)


def test_every_pass_shows_every_image_once(squares: IndexedImages) -> None:
    data = squares.select(np.arange(0, 40, 2))  # 20 distinct values: passes end inside of steps of 8
    batches = with_exemplars(data)
    shown = [value for step in range(STEPS) for value in grey_values(batches[step].images)]
    passes = [shown[start : start + len(data)] for start in range(0, len(shown), len(data))]
    assert all(sorted(one) == sorted(data.images[:, 0, 0, 0].tolist()) for one in passes)
    assert passes[0] != passes[1]


def staying(data: IndexedImages, steps: int = 3, **options: Any) -> DiffusionBatches:
    """Batches whose exemplars stay for some steps."""
    batches = with_exemplars(data, **options)
    assert isinstance(batches.conditioning, ExemplarConditioning)
    return replace(batches, conditioning=replace(batches.conditioning, refresh_steps=steps))


def test_exemplars_stay_and_no_query_of_these_steps_meets_itself(squares: IndexedImages) -> None:
    batches = staying(squares, dropout=0.3, label_slots=2, label_dropout=0.3)
    own = with_exemplars(squares, dropout=0.3, label_slots=2, label_dropout=0.3)
    label_of_value = dict(zip(squares.images[:, 0, 0, 0].tolist(), squares.labels.tolist(), strict=True))
    for first in range(0, STEPS - 3, 3):
        together = [batches[step] for step in range(first, first + 3)]
        exemplars = together[0].conditioning["exemplars"]
        assert {label_of_value[value] for value in grey_values(exemplars)} == {0, 1}
        for step, batch in enumerate(together, first):
            assert torch.equal(batch.conditioning["exemplars"], exemplars)
            assert not set(grey_values(batch.images)) & set(grey_values(exemplars))
            assert torch.equal(batch.conditioning["class_labels"], own[step].conditioning["class_labels"])
            queries = zip(
                grey_values(batch.images),
                exemplars_of_queries(batch),
                exemplars_of_queries(own[step]),
                strict=True,
            )
            for query, seen, seen_if_drawn_anew in queries:
                assert (seen is None) == (seen_if_drawn_anew is None), "as many are dropped"
                assert {label_of_value[value] for value in seen or ()} <= {label_of_value[query]}
    assert not torch.equal(exemplars, batches[first + 3].conditioning["exemplars"])


def test_exemplars_that_stay_for_one_step_are_those_of_the_step(squares: IndexedImages) -> None:
    one, other = staying(squares, steps=1, label_slots=2), with_exemplars(squares, label_slots=2)
    assert all(map(torch.equal, tensors(one[5]), tensors(other[5])))


def test_all_parts_of_a_step_are_given_the_exemplars_that_stay(squares: IndexedImages) -> None:
    whole = staying(squares, dropout=0.3)
    parts = [
        replace(whole, accumulation=2, process_index=process, num_processes=2)[4 * 2 + micro]
        for micro in range(2)
        for process in range(2)
    ]
    for part in parts:
        assert torch.equal(part.conditioning["exemplars"], whole[3].conditioning["exemplars"])
    assert [one for part in parts for one in exemplars_of_queries(part)] == exemplars_of_queries(whole[4])


def test_small_classes_give_what_they_have_and_a_lone_image_sees_the_null_token() -> None:
    data = grey_squares([*range(100, 120), 1, 2, 50], [*[0] * 20, 1, 1, 2])
    batches = with_exemplars(data, smallest=4, largest=4)
    met = {1: 0, 2: 0, 50: 0}
    for step in range(STEPS):
        batch = batches[step]
        queries = grey_values(batch.images)
        for query, seen in zip(queries, exemplars_of_queries(batch), strict=True):
            if query in met:
                met[query] += 1
                other = {1: [2], 2: [1], 50: []}[query]
                assert (seen or []) == [value for value in other if value not in queries]
            else:
                assert seen is not None
                assert len(seen) == 4
    assert min(met.values()) >= 5
    batch = with_exemplars(grey_squares([7, 9], [0, 1]))[0]
    assert exemplars_of_queries(batch) == [None] * BATCH
    assert batch.conditioning["exemplars"].shape == (0, 1, 4, 4)


def test_class_labels_are_dropped_at_their_rate_and_else_true(squares: IndexedImages) -> None:
    conditioning = ClassConditioning(squares.labels, 2, 0.1, seed=3)
    batches = replace(with_exemplars(squares), conditioning=conditioning, batch_size=400, steps=20)
    label_of_value = dict(zip(squares.images[:, 0, 0, 0].tolist(), squares.labels.tolist(), strict=True))
    dropped = []
    for step in range(20):
        batch = batches[step]
        true = torch.tensor([label_of_value[value] for value in grey_values(batch.images)])
        given = batch.conditioning["class_labels"]
        assert torch.equal(given[given != 2], true[given != 2])
        dropped += (given == 2).tolist()
    assert abs(np.mean(dropped) - 0.1) < 0.015


def test_exemplars_and_slots_are_dropped_at_their_rates_independently(squares: IndexedImages) -> None:
    batches = with_exemplars(squares, dropout=0.25, label_slots=2, label_dropout=0.4, steps=600)
    fused, labelled = [], []
    assert len(batches) == 600
    for batch in batches:
        fused += [seen is not None for seen in exemplars_of_queries(batch)]
        labelled += (batch.conditioning["class_labels"] != 2).tolist()
    seen, named = np.array(fused), np.array(labelled)
    assert abs(seen.mean() - 0.75) < 0.025
    assert abs(named.mean() - 0.6) < 0.03
    assert abs((seen & named).mean() - 0.45) < 0.03, "the two are independent"


def test_label_slots_are_permuted_each_step_and_mean_one_class_within_it(squares: IndexedImages) -> None:
    batches = with_exemplars(squares, label_slots=2)
    label_of_value = dict(zip(squares.images[:, 0, 0, 0].tolist(), squares.labels.tolist(), strict=True))
    meanings = []
    for step in range(STEPS):
        batch = batches[step]
        labels = [label_of_value[value] for value in grey_values(batch.images)]
        pairs = set(zip(labels, batch.conditioning["class_labels"].tolist(), strict=True))
        assert len(pairs) == len(set(labels)) == len({slot for _, slot in pairs})
        meanings += [slot for label, slot in pairs if label == 0]
    assert 5 < sum(meanings) < len(meanings) - 5


def test_flips_mirror_half_of_the_queries_and_no_exemplar() -> None:
    images = np.zeros((40, 4, 4, 1), dtype=np.uint8)
    images[:, :, 0, 0] = np.arange(40)[:, None] + 100  # bright on the left
    labels = np.zeros(40, dtype=np.int64)
    data = IndexedImages(images, labels, image_ids(images), ("a",), tuple(map(str, range(40))))
    plain, flipped = with_exemplars(data), replace(with_exemplars(data), horizontal_flip=True)
    mirrored = []
    for step in range(STEPS):
        original, batch = plain[step], flipped[step]
        is_mirror = (batch.images == original.images.flip(3)).flatten(1).all(1)
        is_original = (batch.images == original.images).flatten(1).all(1)
        assert (is_mirror ^ is_original).all()
        assert torch.equal(batch.conditioning["exemplars"], original.conditioning["exemplars"])
        mirrored += is_mirror.tolist()
    assert abs(np.mean(mirrored) - 0.5) < 0.12


def test_a_class_turns_together_with_its_exemplars() -> None:
    images = np.zeros((40, 4, 4, 1), dtype=np.uint8)
    images[:, 0, :2, 0] = np.arange(40)[:, None] * 4 + 90  # two pixels that tell all eight orientations apart
    images[:, 0, 0, 0] += 1
    labels = np.arange(40) % 2
    data = IndexedImages(images, labels, image_ids(images), ("a", "b"), tuple(map(str, range(40))))
    plain = with_exemplars(data)
    assert isinstance(plain.conditioning, ExemplarConditioning)
    turned = replace(plain, reorientation=1.0, conditioning=replace(plain.conditioning, reorientation=1.0))
    met: set[int] = set()
    for step in range(STEPS):
        original, batch, label_of = plain[step], turned[step], {}
        rows = (original.images.flatten(1).amax(1) * 127.5 + 127.5).round().long().sub(91) // 4
        pairs = [(rows[i] % 2, original.images[i], batch.images[i]) for i in range(BATCH)]
        exemplars = original.conditioning["exemplars"], batch.conditioning["exemplars"]
        rows = (exemplars[0].flatten(1).amax(1) * 127.5 + 127.5).round().long().sub(91) // 4
        pairs += [(row % 2, one, other) for row, one, other in zip(rows, *exemplars, strict=True)]
        for label, one, other in pairs:
            views = [torch.rot90(one, k, dims=(1, 2)) for k in range(4)]
            views += [view.flip(2) for view in views]
            (orientation,) = [k for k, view in enumerate(views) if torch.equal(view, other)]
            assert label_of.setdefault(int(label), orientation) == orientation
        met |= set(label_of.values())
    assert met == set(range(8))


def test_timesteps_are_uniform_over_the_whole_schedule(squares: IndexedImages) -> None:
    batches = replace(with_exemplars(squares), batch_size=40, steps=250)
    drawn = torch.cat([batches[step].timesteps for step in range(250)])
    counts = torch.bincount(drawn, minlength=50)
    assert len(counts) == 50
    assert drawn.dtype == torch.int64
    chi_square = float(((counts - 200.0) ** 2 / 200).sum())
    assert 20 < chi_square < 90  # 49 degrees of freedom: beyond these bounds with p < 0.001


@pytest.mark.parametrize("parts", [{"accumulation": 3}, {"num_processes": 5}])
def test_refuses_a_batch_that_does_not_split_evenly(squares: IndexedImages, parts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple"):
        replace(with_exemplars(squares), **parts)


def test_has_a_beginning_and_an_end(squares: IndexedImages) -> None:
    batches = with_exemplars(squares)
    assert len(batches) == STEPS
    with pytest.raises(ValueError, match="no training image"):
        replace(batches, data=squares.select(np.empty(0, dtype=np.int64)))
    with pytest.raises(IndexError):
        batches[STEPS]
