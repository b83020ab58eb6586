"""Predictions by exemplars: a deletion leaves those of a classifier that never held the images."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn.core import CoreMode
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.exemplar_keys import encode_exemplars, save_exemplars
from gen_unlearn.forget import ForgetSet
from gen_unlearn.key_bank import decode_keys
from gen_unlearn.models.classifier import ParametricClassifier, SemiParametricClassifier, build_classifier
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.pipelines.classification import (
    ParametricPipeline,
    PredictionConfig,
    SemiParametricPipeline,
    Voters,
    load_classifier,
)
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import id_keys
from gen_unlearn.shards import Rows

DIM, NEIGHBOURS = 8, 12
CONFIG = ClassifierConfig(encoder=EncoderConfig(width=4, depth=0), key_dim=DIM)
VOTES = pytest.mark.parametrize("vote", ["prototypes", "exemplars", "nearest-neighbours"])
EXPERTS = pytest.mark.parametrize("experts", [1, 2])


@pytest.fixture(scope="module")
def data(digits_split: Split) -> IndexedImages:
    return digits_split.train.select(np.arange(150))


@pytest.fixture(scope="module")
def queries(digits_split: Split) -> np.ndarray:
    return digits_split.test.all_images()[:40]


@pytest.fixture(scope="module")
def networks() -> dict[int, SemiParametricClassifier]:
    """Networks by number of experts, with sharp attention, so that classes differ."""
    built = {}
    for experts in (1, 2):
        torch.manual_seed(experts)
        network = build_classifier(replace(CONFIG, experts=experts), (8, 8, 1), 10)
        assert isinstance(network, SemiParametricClassifier)
        with torch.no_grad():
            network.to_query.weight.mul_(10)
        built[experts] = network.eval()
    return built


@pytest.fixture(scope="module")
def exemplars(networks: dict[int, SemiParametricClassifier], data: IndexedImages) -> dict[int, Rows]:
    return {experts: encode_exemplars(network, data, (8, 8)) for experts, network in networks.items()}


class Maker:
    """Make pipelines of all exemplars, or of some."""

    def __init__(
        self, networks: dict[int, SemiParametricClassifier], exemplars: dict[int, Rows], data: IndexedImages
    ) -> None:
        self.networks, self.exemplars, self.data = networks, exemplars, data

    def __call__(
        self, vote: str, experts: int, without: np.ndarray | None = None, core: CoreMode = "joint"
    ) -> SemiParametricPipeline:
        rows = self.exemplars[experts]
        if without is not None:
            rows = rows.select(~np.isin(id_keys(rows.ids), id_keys(without)))
        prediction = PredictionConfig(vote=vote, neighbours=NEIGHBOURS)  # type: ignore[arg-type]
        return SemiParametricPipeline(self.networks[experts], rows, self.data.class_names, core, prediction)

    def ids_of(self, label: int) -> np.ndarray:
        return self.data.ids[self.data.labels == label]


@pytest.fixture(scope="module")
def make(
    networks: dict[int, SemiParametricClassifier], exemplars: dict[int, Rows], data: IndexedImages
) -> Maker:
    return Maker(networks, exemplars, data)


def set_of(ids: np.ndarray) -> ForgetSet:
    return ForgetSet(ids, "test")


# --- probabilities


@VOTES
@EXPERTS
def test_probabilities_are_double_and_sum_to_one(
    make: Maker, queries: np.ndarray, vote: str, experts: int
) -> None:
    found = make(vote, experts).probabilities(queries)
    assert (found.dtype, found.shape) == (np.float64, (40, 10))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=2e-6)
    assert len(np.unique(found.round(4), axis=0)) > 1, "images differ"


@VOTES
@EXPERTS
def test_agrees_with_plain_loops(make: Maker, queries: np.ndarray, vote: str, experts: int) -> None:
    pipeline = make(vote, experts)
    found = pipeline.probabilities(queries)
    expected = np.zeros_like(found)
    for image, shares in enumerate(all_shares(pipeline, queries)):
        for label, share in shares.classes:
            expected[image, label] += share
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@VOTES
@EXPERTS
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_matter(
    make: Maker, queries: np.ndarray, vote: str, experts: int, batch_size: int
) -> None:
    pipeline = make(vote, experts)
    whole = pipeline.probabilities(queries)
    pipeline.prediction = replace(pipeline.prediction, batch_size=batch_size)
    np.testing.assert_allclose(pipeline.probabilities(queries), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vote", ["exemplars", "nearest-neighbours"])
def test_more_neighbours_than_exemplars_are_all_exemplars(
    make: Maker, queries: np.ndarray, vote: str
) -> None:
    pipeline = make(vote, 2)
    pipeline.prediction = replace(pipeline.prediction, neighbours=len(pipeline.bank))
    everyone = pipeline.probabilities(queries)
    pipeline.prediction = replace(pipeline.prediction, neighbours=10**6)
    assert np.array_equal(pipeline.probabilities(queries), everyone)
    if vote == "nearest-neighbours":
        shares = pipeline.bank.counts / len(pipeline.bank)
        np.testing.assert_allclose(everyone, np.tile(shares, (40, 1)), rtol=1e-5)


@VOTES
def test_no_image_gives_no_probability(make: Maker, queries: np.ndarray, vote: str) -> None:
    assert make(vote, 2).probabilities(queries[:0]).shape == (0, 10)
    assert make(vote, 2).voters(queries[:0], 3) == []


# --- deletion


@VOTES
@EXPERTS
@pytest.mark.parametrize("served", [True, False], ids=["served before", "not served before"])
def test_deleting_equals_never_having_held(
    make: Maker, queries: np.ndarray, vote: str, experts: int, served: bool
) -> None:
    pipeline, random = make(vote, experts), np.random.default_rng(experts)
    gone = random.permutation(make.data.ids)[:60]
    before = pipeline.probabilities(queries) if served else None
    for part in np.array_split(gone, 4):
        pipeline.delete(set_of(part))
    never = make(vote, experts, without=gone)
    after = pipeline.probabilities(queries)
    assert np.array_equal(after, never.probabilities(queries))
    assert pipeline.bank.digest == never.bank.digest
    pipeline.bank.verify()
    assert before is None or not np.array_equal(after, before)
    for one, other in zip(pipeline.voters(queries, 5), never.voters(queries, 5), strict=True):
        assert np.array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5)


@VOTES
@EXPERTS
@pytest.mark.parametrize("neighbours", [1, 3, 200])
def test_exemplars_that_tie_do_not_depend_on_earlier_deletions(
    make: Maker, queries: np.ndarray, vote: str, experts: int, neighbours: int
) -> None:
    """Each image is there under two labels, and so has equal scores."""
    once = make.exemplars[experts]
    twice = Rows.joined([once, once._replace(labels=(once.labels + 1) % 10)])
    twice = twice.select(np.lexsort((twice.labels, id_keys(twice.ids))))
    gone = np.random.default_rng(0).permutation(once.ids)[:60]
    kept = twice.select(~np.isin(id_keys(twice.ids), id_keys(gone)))
    prediction = PredictionConfig(vote=vote, neighbours=neighbours)  # type: ignore[arg-type]
    after, never = (
        SemiParametricPipeline(make.networks[experts], rows, make.data.class_names, "joint", prediction)
        for rows in (twice, kept)
    )
    for part in np.array_split(gone, 4):
        after.delete(set_of(part))
    assert np.array_equal(after.probabilities(queries), never.probabilities(queries))
    for one, other in zip(after.voters(queries, 5), never.voters(queries, 5), strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.labels, other.labels)


@VOTES
@EXPERTS
def test_an_emptied_class_is_never_predicted(
    make: Maker, queries: np.ndarray, vote: str, experts: int
) -> None:
    pipeline = make(vote, experts)
    favourite = int(np.bincount(pipeline.probabilities(queries).argmax(axis=1)).argmax())
    pipeline.delete(set_of(make.ids_of(favourite)))
    after = pipeline.probabilities(queries)
    assert (after[:, favourite] == 0).all()
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=0, atol=2e-6)
    assert all(favourite not in voters.labels for voters in pipeline.voters(queries, 200))


@VOTES
@EXPERTS
def test_the_last_class_gets_everything_and_without_exemplars_nothing_is_predicted(
    make: Maker, queries: np.ndarray, vote: str, experts: int
) -> None:
    pipeline = make(vote, experts)
    pipeline.delete(set_of(make.data.ids[make.data.labels != 4]))
    expected = np.zeros((40, 10))
    expected[:, 4] = 1
    np.testing.assert_allclose(pipeline.probabilities(queries), expected, rtol=0, atol=2e-6)
    pipeline.delete(set_of(make.ids_of(4)))
    with pytest.raises(ValueError, match="no exemplar is left"):
        pipeline.probabilities(queries)
    with pytest.raises(ValueError, match="no exemplar is left"):
        pipeline.voters(queries, 3)


@VOTES
@EXPERTS
def test_threads_predict_while_another_deletes(
    make: Maker, queries: np.ndarray, vote: str, experts: int
) -> None:
    """Every prediction is that of the bank between two deletions, and so are those who voted."""
    images, parts = queries[:8], np.array_split(make.data.ids[:145], 29)
    serial, pipeline = make(vote, experts), make(vote, experts)
    states = [seen(serial, images)]
    for part in parts:
        serial.delete(set_of(part))
        states.append(seen(serial, images))
    expected = [{state[0] for state in states}, {state[1] for state in states}]
    done = threading.Event()

    def predict() -> list[tuple[bytes, bytes]]:
        found = []
        while not done.is_set():
            found.append(seen(pipeline, images))
        return [*found, seen(pipeline, images)]

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(predict) for _ in range(3)]
        try:
            for part in parts:
                pipeline.delete(set_of(part))
        finally:
            done.set()
        found = [one for each in running for one in each.result()]
    assert {one[0] for one in found} <= expected[0]
    assert {one[1] for one in found} <= expected[1]
    assert states[-1] in found
    pipeline.bank.verify()


def seen(pipeline: SemiParametricPipeline, images: np.ndarray) -> tuple[bytes, bytes]:
    """Return the predictions of images, and the ids of who voted most, as bytes."""
    predictions, voters = pipeline.probabilities(images), pipeline.voters(images, 3)
    return predictions.tobytes(), b"".join(one.ids.tobytes() for one in voters)


def test_the_last_exemplar_may_be_deleted_while_a_batch_is_being_encoded(
    make: Maker, queries: np.ndarray
) -> None:
    pipeline = make("exemplars", 1)

    def delete(*_: object) -> None:
        handle.remove()
        pipeline.delete(set_of(make.data.ids))

    handle = pipeline.network.encoder.register_forward_hook(delete)
    with pytest.raises(ValueError, match="no exemplar is left"):
        pipeline.probabilities(queries)


def test_what_is_not_held_cannot_be_deleted(make: Maker, queries: np.ndarray) -> None:
    pipeline = make("exemplars", 1)
    before = pipeline.probabilities(queries)
    stranger = np.concatenate([make.data.ids[:2], np.zeros((1, 16), np.uint8)])
    with pytest.raises(ValueError, match=r"1 of 3 ids are not in the key bank: 0{32}; nothing was deleted"):
        pipeline.delete(set_of(stranger))
    assert np.array_equal(pipeline.probabilities(queries), before)


@pytest.mark.parametrize(("core", "level"), [("joint", "exemplar-only"), ("public", "bit-exact")])
def test_the_receipt_says_what_the_core_allows(make: Maker, core: CoreMode, level: str) -> None:
    receipt = make("prototypes", 1, core=core).delete(set_of(make.ids_of(3)))
    assert receipt.level == level
    assert receipt.removed_per_class == {"3": len(make.ids_of(3))}


# --- voters


class Shares:
    """Shares of all exemplars in the prediction of one image, and of the classes, by loops."""

    def __init__(self, pipeline: SemiParametricPipeline, image: np.ndarray) -> None:
        network, bank, vote = pipeline.network, pipeline.bank, pipeline.prediction.vote
        with torch.no_grad():
            features = network.encoder(to_model_input(image[None]))
            asking = network.keys if vote == "nearest-neighbours" else network.queries
            query = asking(features)[0].double().numpy()
            gate = network.experts(features)[0].double().exp().numpy()
        keys, labels = decode_keys(bank.codes).double().numpy(), bank.labels
        self.rows = np.zeros(len(bank))
        self.classes: list[tuple[int, float]] = []
        scores = np.array(
            [[float(query[e] @ key[e]) / math.sqrt(DIM) for e in range(len(gate))] for key in keys]
        )
        if vote == "prototypes":
            self._of_prototypes(query, gate, keys, labels, scores)
            return
        for expert, weight in enumerate(gate):
            nearest = sorted(range(len(bank)), key=lambda row, e=expert: -scores[row, e])
            nearest = nearest[: pipeline.prediction.neighbours]
            even = vote == "nearest-neighbours"
            raw = {row: 1.0 if even else math.exp(scores[row, expert]) for row in nearest}
            for row in nearest:
                share = float(weight) * raw[row] / sum(raw.values())
                self.rows[row] += share
                self.classes.append((int(labels[row]), share))

    def _of_prototypes(
        self, query: np.ndarray, gate: np.ndarray, keys: np.ndarray, labels: np.ndarray, scores: np.ndarray
    ) -> None:
        votes = np.zeros(10)
        for expert, weight in enumerate(gate):
            means = {c: keys[labels == c, expert].mean(axis=0) for c in set(labels.tolist())}
            raw = {c: math.exp(query[expert] @ mean / math.sqrt(DIM)) for c, mean in means.items()}
            for c in raw:
                votes[c] += weight * raw[c] / sum(raw.values())
        self.classes = list(enumerate(votes.tolist()))
        of_means = [
            sum(float(g) * float(q @ key) for g, q, key in zip(gate, query, mean, strict=True))
            / math.sqrt(DIM)
            for mean in (keys[labels == c].mean(axis=0) for c in sorted(set(labels.tolist())))
        ]
        common = sum(of_means) / len(of_means)
        helping = [max(0.0, float(gate @ score) - common) for score in scores]
        mine = np.flatnonzero(labels == votes.argmax())
        total = sum(helping[row] for row in mine)
        for row in mine:
            self.rows[row] = helping[row] / total if total else 1 / len(mine)


def all_shares(pipeline: SemiParametricPipeline, images: np.ndarray) -> list[Shares]:
    return [Shares(pipeline, image) for image in images]


@VOTES
@EXPERTS
@pytest.mark.parametrize("count", [1, 6, 10**6])
def test_voters_agree_with_plain_loops(
    make: Maker, queries: np.ndarray, vote: str, experts: int, count: int
) -> None:
    pipeline, images = make(vote, experts), queries[:10]
    for voters, expected in zip(pipeline.voters(images, count), all_shares(pipeline, images), strict=True):
        heaviest = np.sort(expected.rows[expected.rows > 0])[::-1][:count]
        small = 1e-5 if vote == "prototypes" else 1e-7  # Differences of scores are rounded as these are.
        np.testing.assert_allclose(voters.weights, heaviest, rtol=1e-4, atol=small)
        np.testing.assert_allclose(voters.weights, expected.rows[voters.rows], rtol=1e-4, atol=small)
        check(voters, pipeline)


def check(voters: Voters, pipeline: SemiParametricPipeline) -> None:
    assert voters.weights.dtype == np.float64
    assert voters.weights.sum() <= 1 + 1e-5
    assert (np.diff(voters.weights) <= 0).all(), "heaviest first"
    assert len(set(voters.rows.tolist())) == len(voters.rows)
    assert np.array_equal(voters.ids, pipeline.bank.ids[voters.rows])
    assert np.array_equal(voters.labels, pipeline.bank.labels[voters.rows])


@EXPERTS
def test_voters_of_exemplars_add_up_to_the_probabilities(
    make: Maker, queries: np.ndarray, experts: int
) -> None:
    pipeline = make("exemplars", experts)
    found = pipeline.probabilities(queries)
    for probabilities, voters in zip(found, pipeline.voters(queries, 10**6), strict=True):
        added = np.bincount(voters.labels, weights=voters.weights, minlength=10)
        np.testing.assert_allclose(added, probabilities, rtol=0, atol=1e-5)


@EXPERTS
def test_voters_of_prototypes_are_of_the_predicted_class(
    make: Maker, queries: np.ndarray, experts: int
) -> None:
    pipeline = make("prototypes", experts)
    predicted = pipeline.probabilities(queries).argmax(axis=1)
    for label, voters in zip(predicted, pipeline.voters(queries, 10**6), strict=True):
        assert set(voters.labels.tolist()) == {int(label)}
        assert voters.weights.sum() == pytest.approx(1, abs=1e-5)


def with_codes(make: Maker, experts: int, codes: np.ndarray) -> SemiParametricPipeline:
    rows = make.exemplars[experts]
    rows = rows._replace(codes=codes.reshape(rows.codes.shape).astype(np.int16))  # type: ignore[union-attr]
    prediction, names = PredictionConfig(), make.data.class_names
    return SemiParametricPipeline(make.networks[experts], rows, names, "joint", prediction)


@EXPERTS
def test_voters_of_prototypes_do_not_depend_on_what_all_keys_have_in_common(
    make: Maker, queries: np.ndarray, experts: int
) -> None:
    codes = make("prototypes", experts).bank.codes // 4
    everywhere = np.random.default_rng(0).integers(-20_000, 20_000, size=codes.shape[1:])
    one, other = (with_codes(make, experts, codes + shift) for shift in (0, everywhere))
    for mine, its in zip(one.voters(queries, 10**6), other.voters(queries, 10**6), strict=True):
        shares = [dict(zip(v.rows.tolist(), v.weights.tolist(), strict=True)) for v in (mine, its)]
        for row in shares[0].keys() | shares[1].keys():
            assert shares[0].get(row, 0) == pytest.approx(shares[1].get(row, 0), rel=1e-2, abs=1e-4)


def test_voters_of_prototypes_are_named_when_all_scores_are_negative_or_equal(
    make: Maker, queries: np.ndarray
) -> None:
    pipeline = make("prototypes", 1)
    with torch.no_grad():
        asking = pipeline._ask(to_model_input(queries))[0]
    against = -np.sign(asking.mean(dim=0).numpy()) * 20_000
    for voters in with_codes(make, 1, pipeline.bank.codes // 8 + against).voters(queries, 10**6):
        assert voters.weights.sum() == pytest.approx(1, abs=1e-5)
    equal = with_codes(make, 1, np.zeros_like(pipeline.bank.codes))
    members = np.sort(id_keys(make.ids_of(0)))
    for voters in equal.voters(queries, 4):
        np.testing.assert_allclose(voters.weights, [1 / len(members)] * 4, rtol=1e-6)
        assert np.array_equal(id_keys(voters.ids), members[:4]), "equal ones by id"


# --- from and to disk


@VOTES
def test_comes_back_from_disk(
    make: Maker, data: IndexedImages, queries: np.ndarray, vote: str, tmp_path: Path
) -> None:
    pipeline = make(vote, 2)
    pipeline.network.save_pretrained(tmp_path / "classifier")
    save_exemplars(make.exemplars[2], data.class_names, (8, 8), tmp_path / "exemplars")
    loaded = load_classifier(tmp_path, "semi-parametric", "public", pipeline.prediction)
    assert isinstance(loaded, SemiParametricPipeline)
    assert np.array_equal(loaded.probabilities(queries), pipeline.probabilities(queries))
    assert loaded.bank.digest == pipeline.bank.digest
    assert loaded.delete(set_of(data.ids[:1])).level == "bit-exact"
    (shard,) = (tmp_path / "exemplars").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="was changed"):
        load_classifier(tmp_path, "semi-parametric", "public", pipeline.prediction)


def test_the_parametric_reference_comes_back_from_disk(queries: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_classifier(replace(CONFIG, kind="parametric"), (8, 8, 1), 10)
    assert isinstance(network, ParametricClassifier)
    pipeline = ParametricPipeline(network, PredictionConfig())
    network.save_pretrained(tmp_path / "classifier")
    loaded = load_classifier(tmp_path, "parametric", "joint", PredictionConfig())
    assert isinstance(loaded, ParametricPipeline)
    found = pipeline.probabilities(queries)
    assert (found.dtype, found.shape) == (np.float64, (40, 10))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=2e-6)
    assert np.array_equal(loaded.probabilities(queries), found)


def test_exemplars_of_another_network_are_refused(make: Maker) -> None:
    with pytest.raises(ValueError, match=r"16 codes each, got 8; encode them with this network"):
        SemiParametricPipeline(
            make.networks[2], make.exemplars[1], make.data.class_names, "joint", PredictionConfig()
        )


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="neighbours and batch_size of at least 1"):
        replace(PredictionConfig(), **settings)
