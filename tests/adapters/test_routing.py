"""Routes: exact, with ties to the smaller number, and nobody else's business."""

from __future__ import annotations

import numpy as np
import pytest
from small_ensembles import digits
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters.routing import Keys, KeySource, members_of, public_keys, route


def codes_between(low: int, high: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.int16, endpoint=True)


def by_hand(codes: np.ndarray, keys: np.ndarray, neighbours: int) -> list[list[int]]:
    """Route by Python's integers."""
    routes = []
    for row in codes.tolist():
        distances = [sum((a - b) ** 2 for a, b in zip(row, key, strict=True)) for key in keys.tolist()]
        routes.append(sorted(range(len(keys)), key=lambda key: (distances[key], key))[:neighbours])
    return routes


@pytest.mark.parametrize("neighbours", [1, 3, 10, 19, 20])
@pytest.mark.parametrize("largest", [1, 2, 300, 32767])
def test_routes_are_those_of_python_integers_with_ties(largest: int, neighbours: int) -> None:
    codes, keys = codes_between(-largest, largest, (60, 5)), codes_between(-largest, largest, (20, 5), 1)
    routes = route(codes, Keys(keys, "public-samples"), neighbours)
    assert routes.dtype == np.int16
    assert routes.tolist() == by_hand(codes, keys, neighbours)


def test_distances_that_differ_by_one_are_told_apart() -> None:
    codes = np.full((2, 512), 32767, dtype=np.int16)
    keys = np.full((3, 512), -32767, dtype=np.int16)
    keys[1, 0] += 1
    keys[2, :2] += 1
    codes[1, 1] = -32767
    assert route(codes, Keys(keys, "public-samples"), 3).tolist() == by_hand(codes, keys, 3)
    assert route(codes, Keys(keys, "public-samples"), 3).tolist()[0] == [2, 1, 0]


def test_equal_keys_go_by_number() -> None:
    keys = Keys(np.zeros((7, 4), dtype=np.int16), "public-samples")
    assert route(codes_between(-9, 9, (5, 4)), keys, 3).tolist() == [[0, 1, 2]] * 5


def test_a_record_is_routed_the_same_with_and_without_others() -> None:
    codes, keys = codes_between(-400, 400, (3000, 6)), codes_between(-400, 400, (50, 6), 1)
    whole = route(codes, Keys(keys, "public-samples"), 4)
    for seed in range(3):
        chosen = np.random.default_rng(seed).permutation(3000)[:1100]
        with threadpool_limits(1 + seed % 2):
            assert np.array_equal(route(codes[chosen], Keys(keys, "public-samples"), 4), whole[chosen])


def test_no_records_have_no_routes() -> None:
    keys = Keys(codes_between(-9, 9, (5, 4)), "public-samples")
    assert route(np.empty((0, 4), dtype=np.int16), keys, 2).shape == (0, 2)
    assert [len(rows) for rows in members_of(np.empty((0, 2), dtype=np.int16), 5)] == [0] * 5


@pytest.mark.parametrize("neighbours", [0, 6])
def test_neighbours_are_some_of_the_adapters(neighbours: int) -> None:
    keys = Keys(codes_between(-9, 9, (5, 4)), "public-samples")
    with pytest.raises(ValueError, match="expected 1 to 5 neighbours"):
        route(codes_between(-9, 9, (5, 4)), keys, neighbours)


def test_codes_have_as_many_features_as_keys() -> None:
    keys = Keys(codes_between(-9, 9, (5, 4)), "public-samples")
    with pytest.raises(ValueError, match="codes of 4 features"):
        route(codes_between(-9, 9, (5, 3)), keys, 1)


def test_members_are_the_inverse_of_routes() -> None:
    routes = route(
        codes_between(-9, 9, (200, 4)), Keys(codes_between(-9, 9, (30, 4), 1), "public-samples"), 3
    )
    members = members_of(routes, 30)
    assert len(members) == 30
    for adapter, rows in enumerate(members):
        assert rows.tolist() == np.flatnonzero((routes == adapter).any(axis=1)).tolist()


SOURCES: list[KeySource] = ["public-samples", "public-kmeans", "public-gaussian"]


@pytest.mark.parametrize("source", SOURCES)
def test_keys_are_a_function_of_the_set_of_public_images(source: KeySource) -> None:
    _, codes, ids = digits()
    keys = public_keys(codes, ids, 15, source, 0)
    assert keys.codes.shape == (15, codes.shape[1])
    assert keys.source == source
    shuffled = np.random.default_rng(0).permutation(len(ids))
    with threadpool_limits(2):
        assert public_keys(codes[shuffled], ids[shuffled], 15, source, 0).digest == keys.digest
    assert public_keys(codes, ids, 15, source, 1).digest != keys.digest
    assert len(np.unique(keys.codes, axis=0)) == 15


def test_sampled_keys_are_public_images_and_distinct_although_images_repeat() -> None:
    _, codes, ids = digits()
    twice = np.r_[codes[:20], codes[:20]], np.r_[ids[:20], ids[20:40]]
    keys = public_keys(*twice, 20, "public-samples", 0)
    assert {key.tobytes() for key in keys.codes} == {code.tobytes() for code in codes[:20]}


def test_more_sampled_keys_begin_with_the_fewer() -> None:
    _, codes, ids = digits()
    few, many = (public_keys(codes, ids, count, "public-samples", 0).codes for count in (10, 40))
    assert np.array_equal(many[:10], few)


def test_gaussian_keys_have_the_moments_of_the_images() -> None:
    draw = np.random.default_rng(0)
    codes = np.rint(draw.normal([100, -500], [300, 40], (500, 2))).astype(np.int16)
    ids = draw.integers(0, 256, (500, 16)).astype(np.uint8)
    keys = public_keys(codes, ids, 4000, "public-gaussian", 0).codes
    assert np.allclose(keys.mean(axis=0), codes.mean(axis=0), atol=20)
    assert np.allclose(keys.std(axis=0), codes.std(axis=0), rtol=0.05)


def test_gaussian_keys_are_made_of_one_image_or_one_feature_too() -> None:
    _, codes, ids = digits()
    assert len(public_keys(codes[:1], ids[:1], 5, "public-gaussian", 0)) == 5
    assert len(public_keys(codes[:9, :1], ids[:9], 5, "public-gaussian", 0)) == 5


@pytest.mark.parametrize("source", ["public-samples", "public-kmeans"])
def test_too_few_public_images_are_an_error(source: KeySource) -> None:
    _, codes, ids = digits()
    with pytest.raises(ValueError, match=r"public images as adapters \(6\), got 5; lower the number"):
        public_keys(codes[:5], ids[:5], 6, source, 0)


def test_keys_from_deletable_images_are_not_made_here() -> None:
    _, codes, ids = digits()
    with pytest.raises(ValueError, match="from public images, got source 'training-samples'"):
        public_keys(codes, ids, 5, "training-samples", 0)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 4)), np.zeros(4, dtype=np.int16), np.zeros((0, 4), dtype=np.int16)]
)
def test_keys_are_int16_rows(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected keys as int16"):
        Keys(codes, "public-samples")


def test_the_digest_of_keys_is_of_codes_and_source() -> None:
    codes = codes_between(-9, 9, (5, 4))
    changed = codes.copy()
    changed[3, 2] += 1
    digests = {
        Keys(codes, "public-samples").digest,
        Keys(changed, "public-samples").digest,
        Keys(codes, "training-samples").digest,
    }
    assert len(digests) == 3
