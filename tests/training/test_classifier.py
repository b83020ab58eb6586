from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gen_unlearn.metrics.features import extract_features
from gen_unlearn.training.classifier import (
    JudgeClassifier,
    JudgeFeatures,
    _shift,
    predict,
    predict_probabilities,
    train_judge,
)
from gen_unlearn.training.judge_config import JudgeConfig

SMALL = JudgeConfig(epochs=2, width=8)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), labels


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Keep small convolutions on one thread: on a busy machine more threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def judge(digits: tuple[np.ndarray, np.ndarray]) -> JudgeClassifier:
    images, labels = digits
    return train_judge(images[:300], labels[:300], 10, SMALL, seed=0)


@pytest.mark.parametrize(
    "config", [JudgeConfig(epochs=12, width=16), pytest.param(JudgeConfig(), marks=pytest.mark.slow)]
)
def test_reads_digits(digits: tuple[np.ndarray, np.ndarray], config: JudgeConfig) -> None:
    images, labels = digits
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    model = train_judge(images[train], labels[train], 10, config, seed=0)
    predicted = predict(model, images[test])
    assert predicted.dtype == np.int64
    assert (predicted == labels[test]).mean() >= 0.98


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (33, 40, 3), (64, 64, 3)])
def test_trains_on_other_image_shapes(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, *shape), dtype=np.uint8)
    model = train_judge(images, np.arange(9) % 3, 3, JudgeConfig(epochs=1, batch_size=4, width=8), seed=0)
    assert predict(model, images).shape == (9,)


def test_depends_on_its_seed_and_on_nothing_else(
    digits: tuple[np.ndarray, np.ndarray], judge: JudgeClassifier
) -> None:
    images, labels = digits
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = train_judge(images[:300], labels[:300], 10, SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert JudgeFeatures(again).digest == JudgeFeatures(judge).digest
    other = train_judge(images[:300], labels[:300], 10, SMALL, seed=1)
    assert JudgeFeatures(other).digest != JudgeFeatures(judge).digest


def test_survives_saving(
    digits: tuple[np.ndarray, np.ndarray], judge: JudgeClassifier, tmp_path: Path
) -> None:
    judge.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    loaded = JudgeClassifier.from_pretrained(tmp_path)
    images = digits[0][:50]
    assert JudgeFeatures(loaded).digest == JudgeFeatures(judge).digest
    np.testing.assert_array_equal(
        extract_features(JudgeFeatures(loaded), images), extract_features(JudgeFeatures(judge), images)
    )


def test_features_lead_to_the_logits_whatever_the_batch(
    digits: tuple[np.ndarray, np.ndarray], judge: JudgeClassifier
) -> None:
    extractor, images = JudgeFeatures(judge), digits[0][:40]
    assert extractor.name.startswith("judge-cnn-64 (")
    features = extract_features(extractor, images)
    np.testing.assert_allclose(extract_features(extractor, images, batch_size=7), features, atol=1e-5)
    with torch.inference_mode():
        logits = judge.head(torch.from_numpy(features).float())
    np.testing.assert_array_equal(logits.argmax(dim=1).numpy(), predict(judge, images, batch_size=7))


def test_probabilities_are_those_of_the_logits(
    digits: tuple[np.ndarray, np.ndarray], judge: JudgeClassifier
) -> None:
    images = digits[0][:40]
    probabilities = predict_probabilities(judge, images, batch_size=7)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    with torch.inference_mode():
        logits = judge(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1).numpy(), atol=1e-5)


def test_shifts_move_whole_images_and_repeat_their_border() -> None:
    image = torch.arange(8 * 12).reshape(1, 1, 8, 12)
    padded = np.pad(image[0, 0].numpy(), 2, mode="edge")
    crops = {padded[row : row + 8, column : column + 12].tobytes() for row in range(5) for column in range(5)}
    shifted = _shift(image.expand(500, -1, -1, -1), 0.25, torch.Generator().manual_seed(0))
    assert {one[0].contiguous().numpy().tobytes() for one in shifted} == crops


@pytest.mark.parametrize(
    "labels", [np.zeros(4), np.arange(3), np.array([0, 1, 2, 3]), np.array([0, 1, -1, 0])]
)
def test_refuses_labels_that_do_not_fit(labels: np.ndarray) -> None:
    images = np.zeros((4, 8, 8, 1), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"expected 4 integer labels in \[0, 3\)"):
        train_judge(images, labels, 3, SMALL, seed=0)
