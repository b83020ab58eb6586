"""The originals and retrained generators of a benchmark: trained once, kept by what decides them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.commands.fit import fit
from gen_unlearn.config import RunConfig
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.state_files import load_state, read_state
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.repro import derive_seed, digest_json


@dataclass(frozen=True, eq=False)
class GeneratorPool:
    """Plain generators of one role, trained on the same images from different seeds.

    Attributes:
        role: what they are; models of other roles share no seed with them.
        data: what they are trained on; repeats count.
        config: their recipe.
        seeds: training seeds.
    """

    role: Role
    data: IndexedImages
    config: RunConfig
    seeds: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides the models but their seeds."""
        return digest_json([self.role, self._recipe(0).digest, self.data.digest, torch.__version__])

    def train(self, folder: Path, seed: int) -> None:
        """Train the model of a seed if it is not in the folder; an interrupted training starts again."""
        weights, cost = self._file(folder, seed), self._cost_file(folder, seed)
        if weights.is_file() and cost.is_file():
            return
        trained, progress = fit(self._recipe(seed), self.data, description=f"train {self.role}")
        assert isinstance(trained, ClassConditionalDDPMPipeline), "the recipe is that of a plain generator"
        weights.parent.mkdir(parents=True, exist_ok=True)
        write_text(cost, json.dumps({"seconds": progress.seconds}) + "\n")
        unfinished = weights.with_suffix(".unfinished")
        state = trained.unet.state_dict()
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, unfinished)
        unfinished.rename(weights)

    def load(self, folder: Path, seed: int) -> DenoisingModel:
        """Return a trained model in evaluation mode, on the CPU."""
        file, classes = self._file(folder, seed), len(self.data.class_names)
        with torch.random.fork_rng(devices=[]):
            network = build_denoiser(self.config.model, self.data.image_shape, classes, self.config.noise)
        assert isinstance(network, UNet2DModel), "a plain generator has a plain network"
        load_state(network, read_state(file, "run the benchmark again"), file)
        return DenoisingModel(network, self.config.noise.build(), classes).eval()

    def seconds(self, folder: Path, seed: int) -> float:
        """Return how long the training of a model took."""
        return float(json.loads(self._cost_file(folder, seed).read_text(encoding="utf-8"))["seconds"])

    def _recipe(self, seed: int) -> RunConfig:
        return replace(self.config, seed=derive_seed(seed, "benchmark", self.role))

    def _cost_file(self, folder: Path, seed: int) -> Path:
        return folder / self.key / f"{seed}.cost.json"

    def _file(self, folder: Path, seed: int) -> Path:
        return folder / self.key / f"{seed}.safetensors"


def pipeline_of(model: DenoisingModel, config: RunConfig) -> ClassConditionalDDPMPipeline:
    """Return the pipeline that samples from a model as its recipe says."""
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    return ClassConditionalDDPMPipeline(model.network.eval(), sampler)
