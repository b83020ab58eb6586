"""How far a classifier memorises each training image: hard images to forget are the memorised ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.classifier_training import TrainingRecipe, logits_of, train_classifiers
from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.data import IndexedImages
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.repro import derive_seed, id_keys, ids_from_hex, ids_to_hex, keyed_order


@dataclass(frozen=True, eq=False)
class MemorisationScores:
    """The memorisation of each distinct image of a data set.

    Attributes:
        ids: distinct, sorted uint8 ``(n, 16)``.
        scores: float64 ``(n,)`` in [-1, 1], higher for images that are only predicted if trained on.
        data: digest of the data they belong to.

    Raises:
        ValueError: not as many scores as distinct sorted ids, or a score that is not finite.
    """

    ids: np.ndarray
    scores: np.ndarray
    data: str

    def __post_init__(self) -> None:
        if not np.array_equal(unique_ids(self.ids), self.ids) or self.scores.shape != (len(self.ids),):
            raise ValueError(
                f"expected one score for each of {len(self.ids)} distinct sorted ids, got {self.scores.shape}"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("expected finite scores, got NaN or infinity")

    def most_memorised(self, share: float) -> np.ndarray:
        """Return the ids of the top ``round(share * n)`` scores, ties by id, sorted uint8 ``(k, 16)``.

        Raises:
            ValueError: a share outside of (0, 1], or so small that it means no image.
        """
        count = round(share * len(self.ids)) if 0 < share <= 1 else 0
        if not count:
            raise ValueError(
                f"expected a share in (0, 1] that means an image, got {share} of {len(self.ids)}"
            )
        return self.ids[np.sort(np.argsort(-self.scores, kind="stable")[:count])]


def memorisation(correct: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Estimate ``P(correct | trained with it) - P(correct | trained without it)`` for each image.

    Feldman and Zhang (arXiv 2008.03703), eq. 1, with the models of one pool.

    Args:
        correct: bool ``(models, n)``, whether a model predicts the label that the image was trained with.
        trained: bool ``(models, n)``, whether the image was among what the model was trained on.

    Returns:
        float64 ``(n,)`` in [-1, 1].

    Raises:
        ValueError: unequal shapes, or an image that all models or no model was trained on.
    """
    if (
        correct.shape != trained.shape
        or correct.ndim != 2
        or {correct.dtype, trained.dtype} != {np.dtype(bool)}
    ):
        raise ValueError(
            f"expected two bool arrays (models, n), got {correct.dtype} {correct.shape} and "
            f"{trained.dtype} {trained.shape}"
        )
    inside, outside = trained.sum(axis=0), (~trained).sum(axis=0)
    if unseen := int(((inside == 0) | (outside == 0)).sum()):
        raise ValueError(
            f"expected models with and without each image, got {unseen} images that all or none saw; "
            f"add models"
        )
    difference: np.ndarray = (correct & trained).sum(axis=0) / inside - (correct & ~trained).sum(
        axis=0
    ) / outside
    return difference


def pool_memorisation(
    data: IndexedImages, network: NetworkConfig, recipe: TrainingRecipe, models: int, seed: int
) -> MemorisationScores:
    """Train a pool of classifiers on random halves of the images, and score each image by it.

    Models come in pairs on complementary halves, so that exactly half of them saw each image.

    Args:
        data: the training images, with the labels of the benchmark.
        network: what to train.
        recipe: how.
        models: an even number, from 2; 32 resolve steps of 1/16.
        seed: of halves, weights and training.

    Raises:
        ValueError: an odd number of models, or fewer than 2 images.
    """
    ids = unique_ids(data.ids)
    if models < 2 or models % 2 or len(ids) < 2:
        raise ValueError(
            f"expected an even number of models and at least 2 images, got {models} and {len(ids)}"
        )
    image = np.searchsorted(id_keys(ids), id_keys(data.ids))
    halves = np.zeros((models, len(ids)), dtype=bool)
    for pair in range(models // 2):
        halves[2 * pair, keyed_order(ids, seed, "half", pair)[: len(ids) // 2]] = True
        halves[2 * pair + 1] = ~halves[2 * pair]
    height, width, channels = data.image_shape
    seeds = [derive_seed(seed, "memorisation", model) for model in range(models)]
    pool = [
        build_network(network, (channels, height, width), len(data.class_names), of_model)
        for of_model in seeds
    ]
    train_classifiers(pool, [data.select(half[image]) for half in halves], recipe, seeds)
    correct = np.ones((models, len(ids)), dtype=bool)
    for model, trained in enumerate(pool):
        np.logical_and.at(correct[model], image, logits_of(trained, data).argmax(axis=1) == data.labels)
    return MemorisationScores(ids, memorisation(correct, halves), data.digest)


def write_scores(path: Path, scores: MemorisationScores) -> None:
    """Write scores as JSON: the digest of the data, and the score of each id."""
    listed = dict(zip(ids_to_hex(scores.ids), scores.scores.tolist(), strict=True))
    write_text(path, json.dumps({"data": scores.data, "scores": listed}, indent=0) + "\n")


def read_scores(path: Path) -> MemorisationScores:
    """Read what `write_scores` wrote.

    Raises:
        ValueError: a file that is not such JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ids = ids_from_hex(content["scores"])
        scores = np.array([float(score) for score in content["scores"].values()], dtype=np.float64)
        order = np.argsort(id_keys(ids), kind="stable")
        return MemorisationScores(ids[order], scores[order], str(content["data"]))
    except (OSError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected JSON with data and scores by id, got {path}: {error}; write it with write_scores"
        ) from error
