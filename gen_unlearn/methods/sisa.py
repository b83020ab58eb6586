"""SISA (Bourtoule et al., arXiv 1912.03817): a trainer of any network that images can be deleted from.

Images are divided into shards, and each shard into slices. The network of a shard is trained on its first
slice, then on the first two, and so on, and is kept after each of these stages. A deletion trains again, from
the stage before the first slice that had a deleted image. The networks of all shards answer together.

What decides a stage is hashed: the settings, the initial weights, and the ids and labels of all slices up to
it; a stage is found by this name alone, so that one which held a deleted image is never used again. A place
in a shard, in a slice and in the order of an epoch follows from a hash of the image's id. Momentum is kept
with the weights. So the state after a deletion is that of a training without the images with the same seed,
to the bit on one machine, and every other shard stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import logits
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.sisa_stages import StageStore
from gen_unlearn.methods.sisa_training import SisaConfig as SisaConfig
from gen_unlearn.methods.sisa_training import StageTraining
from gen_unlearn.repro import derive_seed, digest_json, digest_state, keyed_words

_SMALLEST_SHARE = 1e-6


class Sisa:
    """A SISA ensemble that images can be deleted from.

    Attributes:
        config: how it is trained.
        images: what is left.
        budget: counts the images that were shown in training, forward and backward.
    """

    def __init__(
        self,
        config: SisaConfig,
        make: Callable[[], nn.Module],
        images: IndexedImages,
        *,
        accelerator: Accelerator,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        """Train it.

        Args:
            config: how.
            make: returns a classifier with fresh weights from torch's global random numbers, which are
                seeded for it, once for each shard.
            images: what it is trained on.
            accelerator: device and precision.
            seed: of shards, slices, weights and orders.
            folder: where stages are kept; `None` keeps them in memory. It is for this ensemble alone: a
                stage in it that these images do not lead to is deleted, and an interrupted training goes on
                from the others.

        Raises:
            ValueError: there are no images, or a loss is not finite.
        """
        if not len(images):
            raise ValueError("expected images to train on, got none")
        self.config, self.images, self.budget = config, images, Budget()
        self._make, self._accelerator, self._seed = make, accelerator, seed
        self._stages, self._networks = StageStore(folder), dict[int, nn.Module]()
        self._first = [digest_state(self._fresh(shard).state_dict()) for shard in range(config.shards)]
        self._chains: dict[int, list[str]] = {}
        self._place()
        self._stages.keep_only(self._needed())
        self.complete()

    def delete(self, forget: ForgetSet) -> int:
        """Delete images, and train the shards that held them from the slice on.

        Stages that saw the images are thrown away first. If the training is interrupted, the shards do not
        answer until `complete` was called.

        Returns:
            How many images were shown again, in all epochs.

        Raises:
            ValueError: an id that is not held; nothing is deleted.
        """
        left = self.images.without(forget)
        before, names = self.budget.backward_samples, self._chains
        self.images = left
        self._place()
        for shard, chain in self._chains.items():
            if chain != names[shard]:
                self._networks.pop(shard, None)
        self._stages.keep_only(self._needed())
        self.complete()
        return self.budget.backward_samples - before

    def complete(self) -> None:
        """Train what the images lead to and is not kept; nothing if all is there."""
        for shard, chain in self._chains.items():
            if shard not in self._networks and len(self._members(shard)):
                self._networks[shard] = self._train(shard, chain)

    def shards_of(self, forget: ForgetSet) -> frozenset[int]:
        """Return the shards that hold some images.

        Raises:
            ValueError: an id that is not held.
        """
        return frozenset(self._shard[self.images.rows_of(forget.ids)].tolist())

    @property
    def digests(self) -> dict[int, str]:
        """SHA-256 of the weights of the network of each shard that has images."""
        return {shard: digest_state(network.state_dict()) for shard, network in self._networks.items()}

    @property
    def kept_stages(self) -> frozenset[str]:
        """Names of all stages that are kept: digests of everything that decides them."""
        return self._stages.names

    @torch.no_grad()
    def log_probabilities(self, images: IndexedImages, batch_size: int = 512) -> np.ndarray:
        """Return what the networks answer together, float64 ``(n, classes)``.

        Logarithms of mean probabilities, or of shares of votes, which are at least 1e-6 so that all numbers
        are finite.

        Raises:
            ValueError: no image is left, so that there is no network.
        """
        if not self._networks:
            raise ValueError("expected a network to ask, got none: all images were deleted; train again")
        found = []
        for batch in batches_of(images, batch_size):
            inputs = batch.inputs.to(self._accelerator.device)
            answers = torch.stack(
                [logits(network, inputs).double() for _, network in sorted(self._networks.items())]
            )
            found.append(self._together(answers).cpu())
        classes = len(self.images.class_names)
        return torch.cat(found).numpy() if found else np.empty((0, classes))

    def _together(self, answers: Tensor) -> Tensor:
        """Map logits ``(shards, batch, classes)`` to log-probabilities ``(batch, classes)``."""
        if self.config.answer == "mean":
            return answers.log_softmax(dim=2).logsumexp(dim=0) - np.log(len(answers))
        shares = F.one_hot(answers.argmax(dim=2), answers.shape[2]).double().mean(dim=0)
        return shares.clamp_min(_SMALLEST_SHARE).log()

    def _place(self) -> None:
        """Give every image that is left its shard and slice, and name the stages that all lead to."""
        ids, config = self.images.ids, self.config
        self._shard = _places(ids, config.shards, self._seed, "shard")
        self._slice = _places(ids, config.slices, self._seed, "slice")
        self._chains = {shard: self._chain(shard) for shard in range(config.shards)}

    def _members(self, shard: int, slices: int | None = None) -> IndexedImages:
        """Return the images of a shard's first slices, of all by default."""
        chosen = self._shard == shard
        return self.images.select(chosen if slices is None else chosen & (self._slice < slices))

    def _chain(self, shard: int) -> list[str]:
        """Return the name of every stage of a shard: of all that decides it."""
        names, name = [], digest_json([asdict(self.config), self._seed, shard, self._first[shard]])
        for part in range(self.config.slices):
            members = self.images.select((self._shard == shard) & (self._slice == part))
            name = digest_json([name, members.digest])
            names.append(name)
        return names

    def _needed(self) -> frozenset[str]:
        return frozenset(name for chain in self._chains.values() for name in chain)

    def _fresh(self, shard: int) -> nn.Module:
        """Return the network of a shard with its first weights."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive_seed(self._seed, "weights", shard))
            return self._make().to(self._accelerator.device)

    def _train(self, shard: int, chain: list[str]) -> nn.Module:
        """Train the stages of a shard that are not kept; return the network after the last."""
        network, kept = self._fresh(shard), self._stages.names
        training = StageTraining(
            self.config,
            network,
            accelerator=self._accelerator,
            seed=self._seed,
            shard=shard,
            budget=self.budget,
        )
        done = max((place + 1 for place, name in enumerate(chain) if name in kept), default=0)
        if done:
            training.restore(self._stages.load(chain[done - 1]))
        for place in range(done, len(chain)):
            training.run(self._members(shard, place + 1), place)
            self._stages.keep(chain[place], training.stage)
        return network.eval()


def expected_shards_hit(shards: int, deleted: int) -> float:
    """Return how many of some shards hold at least one of `deleted` random images, on average.

    ``S (1 - (1 - 1 / S) ** n)``: a tenth of a usual data set hits all of them.

    Raises:
        ValueError: fewer than 1 shard or 0 images.
    """
    if shards < 1 or deleted < 0:
        raise ValueError(f"expected at least 1 shard and 0 images, got {shards} and {deleted}")
    return float(shards * (1 - (1 - 1 / shards) ** deleted))


def _places(ids: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return a number below `count` for every image, int64 ``(n,)``, by its id alone."""
    return (keyed_words(ids, "sisa", purpose, seed) % np.uint64(count)).astype(np.int64)
