"""The originals and retrained models of a benchmark: trained once, kept by what decides them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.classifier_training import TrainingRecipe, train_classifiers
from gen_unlearn.benchmark.networks import BenchmarkNetwork, NetworkConfig, build_network
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.models.state_files import load_state, read_state
from gen_unlearn.repro import derive_seed, digest_json

Role = Literal["original", "retrained", "second retrained"]


@dataclass(frozen=True, eq=False)
class ModelPool:
    """Models of one role, trained on the same images from different seeds.

    Perceptrons are trained in one go: stacked training rounds by who else is in the stack, so that the pool,
    and not one model of it, is what is made or found. Other networks are trained one by one.

    Attributes:
        role: what the models are; models of other roles share no seed with them.
        data: what they are trained on.
        network: what they are made of.
        training: how they are trained.
        seeds: training seeds.
    """

    role: Role
    data: IndexedImages
    network: NetworkConfig
    training: TrainingRecipe
    seeds: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides the models."""
        recipe = [self.role, asdict(self.network), asdict(self.training), list(self.seeds)]
        return digest_json([*recipe, self.data.digest, torch.__version__])

    def build(self, seed: int) -> BenchmarkNetwork:
        """Return the network of a seed as it is before training."""
        height, width, channels = self.data.image_shape
        shape, classes = (channels, height, width), len(self.data.class_names)
        return build_network(self.network, shape, classes, derive_seed(seed, self.role))

    @property
    def pieces(self) -> list[tuple[int, ...]]:
        """The seeds whose models are trained together."""
        return [self.seeds] if self.network.kind == "mlp" else [(seed,) for seed in self.seeds]

    def train(self, seeds: tuple[int, ...], folder: Path, device: torch.device) -> None:
        """Train the models of a piece that is not in the folder; an interrupted training starts again."""
        files = [(self._file(folder, seed), self._cost_file(folder, seed)) for seed in seeds]
        if all(file.is_file() for pair in files for file in pair):
            return
        started = time.perf_counter()
        networks = [self.build(seed).to(device) for seed in seeds]
        orders = [derive_seed(seed, self.role, "order") for seed in seeds]
        train_classifiers(networks, [self.data] * len(networks), self.training, orders)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        (folder / self.key).mkdir(parents=True, exist_ok=True)
        for (weights, cost), network in zip(files, networks, strict=True):
            write_text(cost, json.dumps({"seconds": seconds / len(networks)}) + "\n")
            unfinished = weights.with_suffix(".unfinished")
            save_file({name: value.cpu() for name, value in network.state_dict().items()}, unfinished)
            unfinished.rename(weights)

    def load(self, folder: Path, seed: int) -> BenchmarkNetwork:
        """Return a trained network in evaluation mode, on the CPU."""
        file, network = self._file(folder, seed), self.build(seed)
        load_state(network, read_state(file, "run the benchmark again"), file)
        return network.eval()

    def seconds(self, folder: Path, seed: int) -> float:
        """Return how long the training of a model took: its share of the time of its piece."""
        content = json.loads(self._cost_file(folder, seed).read_text(encoding="utf-8"))
        return float(content["seconds"])

    def _cost_file(self, folder: Path, seed: int) -> Path:
        return folder / self.key / f"{seed}.cost.json"

    def _file(self, folder: Path, seed: int) -> Path:
        return folder / self.key / f"{seed}.safetensors"


def untrained(pools: Sequence[ModelPool]) -> list[ModelPool]:
    """Return each pool once, in their order."""
    return list({pool.key: pool for pool in pools}.values())
