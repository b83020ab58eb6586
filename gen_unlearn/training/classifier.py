"""The judge: a small classifier, trained on real images, that says what generated images show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from gen_unlearn.metrics.features import require_images
from gen_unlearn.pixels import to_model_input
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import derive_seed, digest_bytes, digest_state, torch_generator
from gen_unlearn.training.judge_config import JudgeConfig


class JudgeClassifier(ModelMixin, ConfigMixin):
    """Classify images of 8 x 8 to 64 x 64 pixels with stages of two convolutions each.

    Each further stage halves the resolution, down to 4 pixels; the first two of them double the channels.
    Groups are normalised within an image, so that its prediction does not depend on its batch.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int,
        in_channels: int,
        num_classes: int,
        width: int = 32,
        feature_dim: int = 64,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, stages = in_channels, max(1, (image_size // 4).bit_length())
        for stage in range(stages):
            out = width * 2 ** min(stage, 2)
            if stage:
                layers.append(nn.MaxPool2d(2))
            for inner in (channels, out):
                layers += [nn.Conv2d(inner, out, 3, padding=1, bias=False), nn.GroupNorm(8, out), nn.SiLU()]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.embed = nn.Linear(channels, feature_dim)
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, feature_dim)``."""
        return F.silu(self.embed(self.trunk(images)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, num_classes)``."""
        return self.head(self.features(images))


def train_judge(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    config: JudgeConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> JudgeClassifier:
    """Train a judge by AdamW on cross-entropy, with one learning-rate cycle.

    On one CPU, with one number of threads, the result depends on the arguments only. Measure all models
    that are compared with one judge, trained on the split from before any deletion.

    Args:
        images: uint8 of shape ``(n, height, width, channels)``.
        labels: integers of shape ``(n,)`` in ``[0, num_classes)``.
        num_classes: number of classes.
        config: hyper-parameters.
        seed: decides initial weights, order and shifts.
        device: where to train; the result stays there.

    Returns:
        The judge, in evaluation mode.

    Raises:
        ValueError: if images are not uint8, or the labels do not fit them or `num_classes`.
    """
    require_images(images)
    targets = _checked_labels(labels, len(images), num_classes)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "judge", "init"))
        model = JudgeClassifier(
            min(images.shape[1:3]), images.shape[3], num_classes, config.width, config.feature_dim
        )
    model.to(device).train()
    steps = config.epochs * -(-len(images) // config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    generator = torch_generator(seed, "judge", "data")

    with progress_bar(config.epochs * len(images), "train judge") as progress:
        for batch in _batches(len(images), config, generator):
            inputs = _shift(to_model_input(images[batch.numpy()]), config.max_shift, generator)
            loss = F.cross_entropy(model(inputs.to(device)), targets[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(len(batch))
    return model.eval()


def predict(model: JudgeClassifier, images: np.ndarray, batch_size: int = 512) -> np.ndarray:
    """Map uint8 images ``(n, height, width, channels)`` to their most likely classes, int64 ``(n,)``."""
    return predict_probabilities(model, images, batch_size).argmax(axis=1)


def predict_probabilities(model: JudgeClassifier, images: np.ndarray, batch_size: int = 512) -> np.ndarray:
    """Map uint8 images ``(n, height, width, channels)`` to class probabilities, float64 ``(n, classes)``."""
    require_images(images)
    with torch.inference_mode():
        batches = [
            model(to_model_input(images[start : start + batch_size]).to(model.device)).double().softmax(dim=1)
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(batches).cpu().numpy()


class JudgeFeatures:
    """Extract the features of a trained judge: a `FeatureExtractor` that needs no downloaded weights.

    The digest is taken once, here: do not train the model afterwards.
    """

    resize = "none"

    def __init__(self, model: JudgeClassifier, trained_on: str = "this run's training split") -> None:
        self._model = model
        self.dim: int = model.config.feature_dim
        self.name = f"judge-cnn-{self.dim} (trained on {trained_on}; not comparable with Inception FID)"
        self.digest = digest_bytes(b"pixels/127.5-1", digest_state(model.state_dict()).encode())

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image ``(height, width, channels)`` to values in [-1, 1]."""
        return to_model_input(image[None])[0]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(n, channels, height, width)`` in [-1, 1] to float32 features ``(n, dim)``."""
        return self._model.features(inputs.to(self._model.device))


def _checked_labels(labels: np.ndarray, count: int, num_classes: int) -> torch.Tensor:
    """Return labels as int64 ``(count,)``, or raise a ValueError if they do not fit."""
    integers = np.issubdtype(labels.dtype, np.integer)
    if not integers or labels.shape != (count,) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"expected {count} integer labels in [0, {num_classes}), got {labels.dtype} of shape "
            f"{labels.shape} with values {np.unique(labels)[[0, -1]]}; number the classes from 0"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _batches(count: int, config: JudgeConfig, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield index batches: every epoch each image once, in a fresh order."""
    for _ in range(config.epochs):
        yield from torch.randperm(count, generator=generator).split(config.batch_size)


def _shift(images: torch.Tensor, max_shift: float, generator: torch.Generator) -> torch.Tensor:
    """Shift each image ``(batch, channels, height, width)`` at random, repeating its border."""
    batch, _, height, width = images.shape
    limit = int(max_shift * min(height, width))
    down, right = torch.randint(-limit, limit + 1, (2, batch, 1), generator=generator)
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    which = torch.arange(batch)
    return images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
