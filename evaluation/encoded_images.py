"""Encode images once with an encoder that no deletable image was shown to, and keep the codes.

    python -m evaluation.encoded_images --data digits
    python -m evaluation.encoded_images --data cifar10 --source TRAIN --test-source TEST

Training images are divided into public and deletable ones. A parametric classifier is trained on three
quarters of the public images; the others are kept to choose penalties with, as an encoder separates the
images that it was trained on too well. All images are then encoded, standardised with the moments of the
public ones, and rounded. Codes that were made before by the same recipe are found again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from gen_unlearn.adapters.records import Records, quantise
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit import fit_classifier
from gen_unlearn.config import load_recipe
from gen_unlearn.core import CoreConfig, split_core
from gen_unlearn.data import IndexedImages, load_split, stratified_split
from gen_unlearn.models.classifier import ParametricClassifier
from gen_unlearn.pipelines.classification import ParametricPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_json, id_keys, software_versions

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs" / "encoded"
DataName = Literal["digits", "cifar10"]
PUBLIC: dict[DataName, float] = {"digits": 0.5, "cifar10": 0.2}
"""Share of the training images that is public."""

_RECIPES: dict[DataName, tuple[str, tuple[str, ...]]] = {
    "digits": ("digits_spm_classifier.yaml", ("training.images=20000",)),
    "cifar10": ("cifar10_small_spm_classifier.yaml", ("training.images=250000",)),
}
_FOR_PENALTIES = 0.25
_PARTS = ("public", "tuning", "deletable", "test")
_BLOCK = 256


@dataclass(frozen=True)
class EncodedImages:
    """Images as an ensemble of adapters sees them.

    Attributes:
        public: all public images: keys come from them.
        tuning: the public images that the encoder was not trained on; penalties are chosen with them.
        deletable: what adapters and heads are fit on.
        test: what accuracy is measured on.
        class_names: names of all classes.
        about: the recipe's digest, the digests of the images, the accuracy of the encoder's own classifier,
            and the share of codes that were cut off.
    """

    public: Records
    tuning: Records
    deletable: Records
    test: Records
    class_names: tuple[str, ...]
    about: dict[str, str]


def main() -> None:
    """Encode, and write where the codes are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=PUBLIC, default="digits")
    parser.add_argument("--source", help="training images, instead of the recipe's")
    parser.add_argument("--test-source", help="test images, instead of the recipe's")
    arguments = parser.parse_args()
    config = encoder_recipe(arguments.data, arguments.source, arguments.test_source)
    encoded = load_encoded(config)
    sizes = {part: getattr(encoded, part).codes.shape for part in _PARTS}
    sys.stdout.write(f"{cache_path(config)}\n{sizes}\n{json.dumps(encoded.about, indent=2)}\n")


def encoder_recipe(data: DataName, source: str | None, test_source: str | None) -> ClassifierRunConfig:
    """Return the recipe of the encoder: a parametric network; its `core` says which images are public."""
    name, overrides = _RECIPES[data]
    sources = {"source": source, "test_source": test_source}
    given = [f"data.{key}={value}" for key, value in sources.items() if value]
    config = load_recipe(ROOT / "configs" / name, [*overrides, "model.kind=parametric", *given])
    assert isinstance(config, ClassifierRunConfig)
    return config


def public_share(config: ClassifierRunConfig) -> CoreConfig:
    """Return which training images are public."""
    return CoreConfig("public", PUBLIC["digits" if config.data.source == "digits" else "cifar10"])


def recipe_digest(config: ClassifierRunConfig) -> str:
    """Return the SHA-256 of everything that decides the codes, wherever the images lie."""
    data = asdict(config.data)
    data |= {key: data[key] and Path(data[key]).name for key in ("source", "test_source")}
    encoder = {"encoder": asdict(config.model.encoder), "training": asdict(config.training)}
    shares = {"public": asdict(public_share(config)), "for penalties": _FOR_PENALTIES}
    return digest_json({"data": data, **encoder, **shares, "seed": config.seed})


def cache_path(config: ClassifierRunConfig) -> Path:
    """Return the file that the codes of a recipe are kept in."""
    name = "digits" if config.data.source == "digits" else "cifar10"
    return CACHE / f"{name}-{recipe_digest(config)[:12]}.safetensors"


def load_encoded(config: ClassifierRunConfig) -> EncodedImages:
    """Return the encoded images of a recipe; train and encode if nobody did so before."""
    path = cache_path(config)
    if not path.exists():
        save_encoded(encode(config), path)
    with safe_open(path, framework="numpy") as file:
        parts = {
            part: Records(*(file.get_tensor(f"{part}.{column}") for column in ("codes", "labels", "ids")))
            for part in _PARTS
        }
        described = json.loads(file.metadata()["about"])
    return EncodedImages(**parts, class_names=tuple(described["class_names"]), about=described["about"])


def save_encoded(encoded: EncodedImages, path: Path) -> None:
    """Write encoded images to a file."""
    tensors = {
        f"{part}.{column}": np.ascontiguousarray(getattr(getattr(encoded, part), column))
        for part in _PARTS
        for column in ("codes", "labels", "ids")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    described = {"class_names": encoded.class_names, "about": encoded.about}
    save_file(tensors, unfinished, {"about": json.dumps(described)})
    unfinished.replace(path)


def encode(config: ClassifierRunConfig) -> EncodedImages:
    """Train the encoder on public images alone, and encode all images."""
    split = load_split(config.data)
    parts = split_core(split.train, public_share(config))
    public = stratified_split(parts.core, _FOR_PENALTIES, seed=0)
    trained, _ = fit_classifier(config, public.train)
    network = trained.network
    assert isinstance(network, ParametricClassifier)
    pipeline = ParametricPipeline(network, config.prediction)
    right = pipeline.probabilities(split.test.images).argmax(axis=1) == split.test.labels
    features = encodings(network.encoder, parts.core)
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)  # A feature that is the same of all images.
    found = {}
    cut_off = 0
    for name, images in zip(_PARTS, (parts.core, public.test, parts.deletable, split.test), strict=True):
        codes, cut = quantise(encodings(network.encoder, images), mean, deviation)
        order = np.lexsort((images.labels, id_keys(images.ids)))
        found[name] = Records(codes[order], images.labels[order], images.ids[order])
        cut_off += cut
    about = {
        "recipe": recipe_digest(config),
        "public images": parts.core.digest,
        "deletable images": parts.deletable.digest,
        "test images": split.test.digest,
        "test accuracy of the public classifier": f"{right.mean():.4f}",
        "codes cut off": str(cut_off),
        "versions": json.dumps(software_versions()),
    }
    return EncodedImages(**found, class_names=split.train.class_names, about=about)


@torch.inference_mode()
def encodings(encoder: nn.Module, data: IndexedImages) -> torch.Tensor:
    """Return the features of images, float32 ``(n, features)``, from blocks of one size."""
    found = []
    for start in range(0, len(data), _BLOCK):
        images = data.images[np.arange(start, min(start + _BLOCK, len(data)))]
        filled = np.zeros((_BLOCK, *data.image_shape), dtype=np.uint8)
        filled[: len(images)] = images
        found.append(encoder(to_model_input(filled))[: len(images)].float())
    return torch.cat(found)


if __name__ == "__main__":
    main()
