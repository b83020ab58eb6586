"""The training of one stage of a SISA ensemble, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import logits
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.sisa_stages import Stage
from gen_unlearn.repro import derive_seed, keyed_order, numpy_generator
from gen_unlearn.training.classification_batches import Augmentation

_WEIGHTS, _MOMENTUM = "weights/", "momentum/"


@dataclass(frozen=True, kw_only=True)
class SisaConfig:
    """How a SISA ensemble is trained: SGD on the mean cross-entropy of a batch.

    Attributes:
        shards: networks, each with images of its own.
        slices: stages of a training.
        epochs: passes over a shard that a training without slices would take. With slices each stage has
            ``2 epochs / (slices + 1)`` over what it has, rounded, which shows about as many images.
        batch_size: most images of a step; the batches of an epoch are about equally large. A batch of one
            image is normalised by the averages of batch normalisation.
        lr: learning rate at the beginning of a stage.
        decay: whether it stays there, or falls to 0 by a straight line in each stage.
        momentum: of the gradient.
        weight_decay: added to the gradient.
        augment: random changes of images.
        answer: the mean of the networks' probabilities, or the share of their votes.
    """

    shards: int = 5
    slices: int = 1
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.05
    decay: Literal["constant", "linear"] = "linear"
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: Augmentation = field(default_factory=Augmentation)
    answer: Literal["mean", "vote"] = "mean"

    def __post_init__(self) -> None:
        if min(self.shards, self.slices, self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"expected shards, slices, epochs and batch_size of at least 1, got {self.shards}, "
                f"{self.slices}, {self.epochs} and {self.batch_size}"
            )
        if not self.lr > 0 or min(self.momentum, self.weight_decay) < 0:
            raise ValueError(
                f"expected lr above 0, and momentum and weight_decay of at least 0, got {self.lr}, "
                f"{self.momentum} and {self.weight_decay}"
            )

    @property
    def stage_epochs(self) -> int:
        """Passes of one stage over its images."""
        return max(1, round(2 * self.epochs / (self.slices + 1)))


class StageTraining:
    """A network on its way through the stages of a shard.

    Args:
        config: how it is trained.
        network: trained in place.
        accelerator: device and precision.
        seed: of the ensemble.
        shard: whose network it is.
        budget: where samples are counted.
    """

    def __init__(
        self,
        config: SisaConfig,
        network: nn.Module,
        *,
        accelerator: Accelerator,
        seed: int,
        shard: int,
        budget: Budget,
    ) -> None:
        self._config, self._network, self._accelerator = config, network, accelerator
        self._seed, self._shard, self._budget = seed, shard, budget
        self._optimizer = torch.optim.SGD(
            network.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    @property
    def stage(self) -> Stage:
        """Weights, buffers and momentum as they are now, not copied."""
        found = {_WEIGHTS + name: value for name, value in self._network.state_dict().items()}
        for name, parameter in self._network.named_parameters():
            momentum = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[_MOMENTUM + name] = momentum
        return found

    def restore(self, stage: Stage) -> None:
        """Go on from a stage; the network is a fresh one until then."""
        weights = {
            name.removeprefix(_WEIGHTS): value for name, value in stage.items() if name.startswith(_WEIGHTS)
        }
        self._network.load_state_dict(weights, strict=True)
        for name, parameter in self._network.named_parameters():
            if _MOMENTUM + name in stage:
                momentum = stage[_MOMENTUM + name].to(parameter).clone()
                self._optimizer.state[parameter]["momentum_buffer"] = momentum

    def run(self, members: IndexedImages, place: int) -> None:
        """Train one stage.

        Args:
            members: the images of the shard's slices up to this one.
            place: number of the stage, from 0.

        Raises:
            ValueError: a loss is not finite.
        """
        config, device = self._config, self._accelerator.device
        batches = -(-len(members) // config.batch_size)
        steps, finite = config.stage_epochs * batches, torch.ones((), dtype=torch.bool, device=device)
        self._network.train()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive_seed(self._seed, "stage", self._shard, place))
            for epoch in range(config.stage_epochs):
                order = keyed_order(members.ids, self._seed, "order", self._shard, place, epoch)
                for number, rows in enumerate(np.array_split(order, batches) if batches else []):
                    share = (epoch * batches + number) / steps if config.decay == "linear" else 0.0
                    self._optimizer.param_groups[0]["lr"] = config.lr * (1 - share)
                    draws = numpy_generator(self._seed, "augment", self._shard, place, epoch, number)
                    batch = batch_of(members, rows, config.augment, draws)
                    self._budget.count(forward=len(rows), backward=len(rows))
                    self._normalise_by_batch(len(rows) > 1)
                    with self._accelerator.autocast():
                        scores = logits(self._network, batch.inputs.to(device))
                    loss = F.cross_entropy(scores.float(), batch.labels.to(device))
                    finite &= loss.detach().isfinite()
                    self._optimizer.zero_grad()
                    loss.backward()
                    self._optimizer.step()
        weights = all(bool(value.isfinite().all()) for value in self._network.parameters())
        if not finite or not weights:
            raise ValueError(
                f"the loss of shard {self._shard} is not finite: it ran away; lower lr ({config.lr})"
            )

    def _normalise_by_batch(self, by_batch: bool) -> None:
        """Let batch normalisation use the batch, or its averages, as a single image must."""
        for module in self._network.modules():
            if isinstance(module, _NormBase):
                module.train(by_batch)
