"""Training of originals and retrained classifiers: stacked as alone, hashed order, ranges of the digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gen_unlearn.benchmark.classifier_training import TrainingRecipe, logits_of, train_classifiers
from gen_unlearn.benchmark.image_feed import ImageFeed, crop_and_flip, epoch_order
from gen_unlearn.benchmark.networks import BenchmarkNetwork, NetworkConfig, build_network
from gen_unlearn.benchmark.splits import with_wrong_labels
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.pixels import to_model_input

RECIPE = TrainingRecipe(epochs=3, batch_size=50, learning_rate=0.1, weight_decay=1e-3, milestones=(2,))


@pytest.fixture(scope="module")
def digits() -> IndexedImages:
    images = load_digits_images()
    return images.select(np.random.default_rng(0).permutation(len(images)))


def perceptrons(count: int, width: int = 16) -> list[BenchmarkNetwork]:
    return [build_network(NetworkConfig("mlp", width), (1, 8, 8), 10, seed) for seed in range(count)]


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_stack_trains_as_each_network_would_alone_whatever_the_sizes_of_the_data(
    digits: IndexedImages, augment: str
) -> None:
    recipe = replace(RECIPE, augment=augment, padding=1)
    data = [
        digits.select(np.arange(start, start + n)) for start, n in ((0, 120), (100, 120), (0, 90), (9, 90))
    ]
    stacked, alone = perceptrons(4), perceptrons(4)
    start = [weights(network).clone() for network in stacked]
    train_classifiers(stacked, data, recipe, [5, 6, 7, 8])
    train_classifiers(alone, data, recipe, [5, 6, 7, 8], stacking="never")
    for first, second, before in zip(stacked, alone, start, strict=True):
        torch.testing.assert_close(weights(first), weights(second), atol=1e-5, rtol=1e-4)
        assert (weights(first) - before).abs().max() > 0.01
        assert not first.training


def test_training_is_the_sgd_of_the_recipe_and_keeps_the_small_last_batch(digits: IndexedImages) -> None:
    data = digits.select(np.arange(70))
    network = perceptrons(1)[0]
    values = [parameter.detach().double() for parameter in network.parameters()]
    velocity = [torch.zeros_like(value) for value in values]
    for epoch, rate in enumerate((0.1, 0.1, 0.01)):
        order = epoch_order(data.ids, 4, epoch)
        for rows in (order[:50], order[50:]):
            leaves = [value.clone().requires_grad_() for value in values]
            pixels = (to_model_input(data.images[rows]).double().flatten(1) + 1) / 2
            logits = F.relu(pixels @ leaves[0].T + leaves[1]) @ leaves[2].T + leaves[3]
            F.cross_entropy(logits, torch.from_numpy(data.labels[rows])).backward()
            for place, leaf in enumerate(leaves):
                assert leaf.grad is not None
                velocity[place] = 0.9 * velocity[place] + leaf.grad + 1e-3 * values[place]
                values[place] = values[place] - rate * velocity[place]
    train_classifiers([network], [data], RECIPE, [4])
    expected = torch.cat([value.flatten() for value in values])
    torch.testing.assert_close(weights(network).double(), expected, atol=1e-5, rtol=1e-4)


def test_the_order_is_a_hash_of_seed_epoch_and_id(digits: IndexedImages) -> None:
    ids = digits.ids[:60]
    order = epoch_order(ids, 1, 0)
    assert sorted(order) == list(range(60))
    assert not np.array_equal(order, epoch_order(ids, 1, 1))
    assert not np.array_equal(order, epoch_order(ids, 2, 0))
    np.testing.assert_array_equal(ids[::-1][epoch_order(ids[::-1], 1, 0)], ids[order])
    np.testing.assert_array_equal(ids[:50][epoch_order(ids[:50], 1, 0)], ids[order[order < 50]])


def test_an_epoch_shows_every_image_once_with_its_label(digits: IndexedImages) -> None:
    data = digits.select(np.arange(70))
    parts = list(ImageFeed(data, torch.device("cpu")).epoch(32, seed=0, epoch=0))
    assert [len(labels) for _, labels in parts] == [32, 32, 6]
    order = epoch_order(data.ids, 0, 0)
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), to_model_input(data.images[order]))
    np.testing.assert_array_equal(torch.cat([labels for _, labels in parts]).numpy(), data.labels[order])


def test_a_crop_is_a_window_of_the_padded_image_and_half_are_mirrored() -> None:
    image = torch.arange(1, 13).reshape(1, 3, 4) / 12
    padded = F.pad(image, (1, 1, 1, 1), value=-1.0)
    windows = [padded[:, top : top + 3, left : left + 4] for top in range(3) for left in range(3)]
    windows += [window.flip(2) for window in windows]
    crops = crop_and_flip(image.expand(900, 1, 3, 4), 1, torch.Generator().manual_seed(0))
    counts = [int((crops == window).flatten(1).all(1).sum()) for window in windows]
    assert sum(counts) == 900
    assert min(counts) > 20
    assert abs(sum(counts[:9]) - 450) < 75


def test_a_convolutional_network_learns_and_its_training_repeats_bit_for_bit(digits: IndexedImages) -> None:
    data = digits.select(np.arange(300))
    networks = [build_network(NetworkConfig("cnn", 8), (1, 8, 8), 10, seed=0) for _ in range(2)]
    train_classifiers(networks, [data, data], TrainingRecipe(6, 50, 0.1), [1, 1])
    assert torch.equal(weights(networks[0]), weights(networks[1]))
    assert (logits_of(networks[0], data).argmax(axis=1) == data.labels).mean() > 0.8


def test_logits_are_those_of_evaluation_mode_and_leave_the_network_as_it_was(digits: IndexedImages) -> None:
    network = build_network(NetworkConfig("resnet18", 4), (1, 8, 8), 10, seed=0).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.head.eval()
    logits = logits_of(network, digits.select(np.arange(33)), batch_size=8)
    assert logits.dtype == np.float32
    assert network.training
    assert not network.head.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    alone = logits_of(network, digits.select(np.array([7])))
    np.testing.assert_allclose(logits[7:8], alone, atol=1e-5)


def test_mistakes_are_refused(digits: IndexedImages) -> None:
    network, data = perceptrons(1)[0], digits.select(np.arange(50))
    with pytest.raises(ValueError, match="distinct networks"):
        train_classifiers([network, network], [data, data], RECIPE, [0, 1])
    with pytest.raises(ValueError, match="as many distinct networks as data"):
        train_classifiers([network], [data], RECIPE, [0, 1])
    with pytest.raises(ValueError, match="none for the networks"):
        train_classifiers([network], [data.select(np.arange(0))], RECIPE, [0])
    with pytest.raises(ValueError, match="not finite in epoch"):
        train_classifiers([network], [data], replace(RECIPE, learning_rate=1e30), [0])
    with pytest.raises(ValueError, match="finite logits"):
        logits_of(network, data)
    for change in ({"epochs": 0}, {"momentum": 1.0}, {"learning_rate": 0.0}, {"augment": "mixup"}):
        with pytest.raises(ValueError, match="expected"):
            replace(RECIPE, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nesterov"):
        replace(RECIPE, momentum=0.0, momentum_kind="nesterov")


def test_originals_and_retrained_perceptrons_reach_the_ranges_of_the_digits_benchmark(
    digits: IndexedImages,
) -> None:
    """Section 8 of the specification, with 6 + 6 models: accuracies on forget, retain and test images."""
    train, mislabelled = with_wrong_labels(digits.select(np.arange(1000)), 100, seed=0)
    assert len(mislabelled) == 100
    test = digits.select(np.arange(1000, 1797))
    forget, retain = train.select(np.arange(100)), train.select(np.arange(100, 1000))
    networks = perceptrons(12, width=64)
    train_classifiers(networks, [train] * 6 + [retain] * 6, TrainingRecipe(60, 50, 0.1), list(range(12)))
    accuracy = np.array(
        [
            [100 * (logits_of(network, part).argmax(axis=1) == part.labels).mean() for network in networks]
            for part in (forget, retain, test)
        ]
    )
    originals, retrained = accuracy[:, :6].mean(axis=1), accuracy[:, 6:].mean(axis=1)
    assert 93 < originals[0] < 99
    assert 72 < retrained[0] < 88
    for models in (originals, retrained):
        assert 94 < models[1] < 99
        assert 87 < models[2] < 93
