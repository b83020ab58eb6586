"""Distances between image sets whose features come batch by batch, in several processes.

Each process adds what it generated, in batches of any sizes or none at all, and `compute`, called by all of
them, gives all of them the value for everything that was added. Leave out what a sampler repeats to fill up a
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from gen_unlearn.metrics.features import FeatureStats
from gen_unlearn.metrics.frechet import frechet_distance
from gen_unlearn.metrics.kernel import kernel_distance


class FrechetDistanceMetric(Metric):
    """Accumulate the Fréchet distance of features to a reference, from their moments.

    The states are the number of images and, after subtraction of the reference mean, the sum ``(d,)`` and the
    sum of outer products ``(d, d)``, in float64. Moments give no standard error: use
    `gen_unlearn.metrics.frechet.frechet_standard_error` or the jackknife where the error matters.

    Args:
        reference: statistics of the set to compare with; no part of the state, nor of `state_dict`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    count: torch.Tensor
    total: torch.Tensor
    outer: torch.Tensor

    def __init__(self, reference: FeatureStats) -> None:
        # Caching would hang: a process that adds nothing after `compute` would not take part in the next one.
        super().__init__(compute_with_cache=False)
        self.reference = reference
        dim = len(reference.mean)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: torch.Tensor) -> None:
        """Add the features of some images, finite floats ``(b, d)`` with b >= 0.

        Raises:
            ValueError: if the shape is another one, or a value is not finite.
        """
        rows = _checked(features, len(self.reference.mean), self.total.device)
        rows = rows - torch.tensor(self.reference.mean, device=rows.device)
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.outer += rows.T @ rows

    def compute(self) -> torch.Tensor:
        """Compute the distance of everything that all processes added, as a float64 scalar, at least 0.

        Raises:
            ValueError: if that is fewer than two images.
        """
        n = int(self.count)
        _require_two(n)
        offset, outer = self.total.cpu().numpy() / n, self.outer.cpu().numpy()
        cov = (outer - n * np.outer(offset, offset)) / (n - 1)
        reference = self.reference
        stats = FeatureStats(n, reference.mean + offset, cov, reference.protocol)
        return torch.tensor(frechet_distance(stats, reference), dtype=torch.float64, device=self.total.device)


class KernelDistanceMetric(Metric):
    """Accumulate the kernel distance of features to a reference, from the features themselves.

    The state is all features, in float64: 16 kB per image at d = 2048, in every process during `compute`.

    Args:
        reference_features: finite floats ``(m, d)``, m >= 2; no part of the state, nor of `state_dict`.

    Raises:
        ValueError: if the reference has another shape, or a value is not finite.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    features: list[torch.Tensor] | torch.Tensor  # one tensor between sync and unsync

    def __init__(self, reference_features: torch.Tensor) -> None:
        super().__init__(compute_with_cache=False)  # see FrechetDistanceMetric
        dim = reference_features.shape[-1] if reference_features.ndim else 0
        self.reference = _checked(reference_features, dim, torch.device("cpu")).numpy()
        _require_two(len(self.reference))
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: torch.Tensor) -> None:
        """Add the features of some images, finite floats ``(b, d)`` with b >= 0.

        Raises:
            ValueError: if the shape is another one, or a value is not finite.
        """
        assert isinstance(self.features, list)
        self.features.append(_checked(features, self.reference.shape[1], self.device))

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Gather the features of all processes, as `torchmetrics.Metric.sync` does, also if one has none.

        Left to itself, torchmetrics would gather a state of another shape and type from that process.
        """
        if isinstance(self.features, list) and not self.features:
            nothing = torch.empty(0, self.reference.shape[1], dtype=torch.float64, device=self.device)
            self.features.append(nothing)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def compute(self) -> torch.Tensor:
        """Compute the unbiased squared distance of everything that all processes added, as a float64 scalar.

        Raises:
            ValueError: if that is fewer than two images.
        """
        rows = dim_zero_cat(self.features) if len(self.features) else torch.empty(0)
        _require_two(len(rows))
        value = kernel_distance(rows.cpu().numpy(), self.reference)
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def _checked(features: torch.Tensor, dim: int, device: torch.device) -> torch.Tensor:
    """Return features ``(b, dim)`` in float64 on a device, or raise a ValueError."""
    if features.ndim != 2 or features.shape[1] != dim or not torch.isfinite(features).all():
        raise ValueError(
            f"expected finite features of shape (b, {dim}) as in the reference, got {tuple(features.shape)}; "
            "check the extractor and the images"
        )
    return features.detach().to(device=device, dtype=torch.float64)


def _require_two(images: int) -> None:
    """Raise a ValueError unless there are at least two images."""
    if images < 2:
        raise ValueError(f"expected at least 2 images in all processes together, got {images}; add more")
