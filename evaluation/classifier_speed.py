"""The speed of the semi-parametric classifier: predictions, deletions, and the size of ImageNet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.timing import Pair, Row, in_turns, scratch_folder, seconds_of
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.trained_classifier import TrainedClassifier
from gen_unlearn.config import load_recipe
from gen_unlearn.forget import ForgetSet
from gen_unlearn.key_bank import KeyBank, encode_keys
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.models.classifier import SemiParametricClassifier, build_classifier
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.pipelines.classification import PredictionConfig, SemiParametricPipeline, Vote
from gen_unlearn.repro import digest_state, id_keys, numpy_generator
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows

CONFIGS = Path(__file__).parents[1] / "configs"
CIFAR, IMAGENET = 50_000, 1_281_167
VOTES: dict[str, Vote] = {"SPM-C": "prototypes", "SPM-R, 32 neighbours": "exemplars"}
_LOADING = """
import re, sys, time
from pathlib import Path
from gen_unlearn.runs import RunFolder
started = time.perf_counter()
pipeline = RunFolder.open(Path(sys.argv[1])).load_classifier()
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)
sys.stdout.write(f"{time.perf_counter() - started} {most}")
"""


def classifier_rows(repeats: int) -> list[Row]:
    """Time predictions, and deletions from a classifier that serves."""
    return [*_prediction_rows(repeats), *_deletion_rows(repeats)]


def _prediction_rows(repeats: int) -> list[Row]:
    """Compare a prediction by vote with the linear layer of the same encoder, fresh weights in both."""
    encoders = {
        "ResNet-18": ("cifar10_spm_classifier.yaml", 32),
        "the small encoder": ("cifar10_small_spm_classifier.yaml", 256),
    }
    rows = []
    for name, (recipe, batch) in encoders.items():
        config = _recipe(recipe).model
        voting = build_classifier(config, (32, 32, 3), 10)
        assert isinstance(voting, SemiParametricClassifier)
        exemplars = _noise(CIFAR, (1, 1, 1), 10, config)
        names = tuple(map(str, range(10)))
        pipeline = SemiParametricPipeline(voting, exemplars, names, "joint", PredictionConfig())
        plain = build_classifier(replace(config, kind="parametric"), (32, 32, 3), 10).eval()
        images = torch.rand(batch, 3, 32, 32) * 2 - 1
        for label, vote in VOTES.items():
            pipeline.prediction = PredictionConfig(vote)
            pairs = _classified_in_turns(pipeline.log_probabilities, plain, images, 3 * repeats)
            title = f"prediction by {label}, {CIFAR:,} exemplars, {name}"
            rows.append(Row.of_ratio(title, "its parametric network", pairs, 1.2))
    return rows


@torch.inference_mode()
def _classified_in_turns(
    work: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], images: Tensor, repeats: int
) -> list[Pair]:
    """Time two ways to classify the same images."""
    return in_turns(lambda: work(images), lambda: reference(images), repeats)


def _deletion_rows(repeats: int) -> list[Row]:
    """Time deletions from exemplars that serve, receipt included."""
    config = _recipe("cifar10_spm_classifier.yaml").model
    exemplars = _noise(CIFAR, (1, 1, 1), 10, config)
    assert exemplars.codes is not None
    codes = exemplars.codes.reshape(CIFAR, config.experts, config.key_dim)
    names = tuple(map(str, range(10)))
    rows = []
    for count, target in ((1, 1.0), (500, 10.0), (5000, 100.0)):
        found = []
        for repeat in range(repeats):
            bank = KeyBank(codes, exemplars.labels, exemplars.ids, names)
            _ = bank.prototypes, bank.keys
            bank.delete(ForgetSet(exemplars.ids[:1], "a first one, that the memory is in use"))
            chosen = numpy_generator(repeat, "speed").choice(np.arange(1, CIFAR), count, replace=False)
            request = ForgetSet(exemplars.ids[chosen], "speed")
            found.append(1000 * seconds_of(lambda bank=bank, request=request: bank.delete(request)))
        title = f"deletion of {count:,} of {CIFAR:,} from a serving classifier"
        rows.append(Row.of(title, "", found, " ms", target))
    return rows


def imagenet_rows(repeats: int) -> list[Row]:
    """Time and weigh a classifier with as many exemplars as ImageNet has, of noise."""
    config = _recipe("imagenet_spm_classifier.yaml")
    names = tuple(map(str, range(1000)))
    with scratch_folder() as folder:
        small = replace(config, model=replace(config.model, encoder=EncoderConfig(width=8)))
        exemplars = _noise(IMAGENET, (32, 32, 3), len(names), config.model)
        network = build_classifier(small.model, (224, 224, 3), len(names))
        path = folder / "run"
        run = RunFolder.create(path, small, RunManifest(small.digest, "noise", names, (224, 224, 3)))
        record = TrainingRecord(0.0, 0, 0.0, 0, digest_state(network.state_dict()))
        run.complete_training(TrainedClassifier(network, exemplars, names, (224, 224)), record)
        ids, labels = exemplars.ids, exemplars.labels
        del exemplars
        opened = RunFolder.open(path)
        rows = []
        singles = ids[labels < 100][:repeats]
        classes = [ids[labels == 100 + number] for number in range(min(repeats, 3))]
        for title, wanted in (("1", np.split(singles, len(singles))), ("a class", classes)):
            requests = [ForgetSet(chosen, "speed") for chosen in wanted]
            found = [seconds_of(partial(forget, opened, request)) for request in requests]
            row = f"deletion of {title} of {IMAGENET:,} on disk, flushed"
            rows.append(Row.of(row, "", found, " s"))
        seconds, gigabytes = _load_in_another_process(path)
        rows.append(Row.of(f"loading {IMAGENET:,} exemplars", "", [seconds], " s"))
        rows.append(Row.of("memory of the process that did", "", [gigabytes], " GB"))
        return rows


def _load_in_another_process(run: Path) -> tuple[float, float]:
    """Return the seconds that loading a run takes, and the most memory in gigabytes, in a fresh process."""
    found = subprocess.run(
        [sys.executable, "-c", _LOADING, str(run)], check=True, capture_output=True, text=True
    )
    seconds, kilobytes = found.stdout.split()
    return float(seconds), int(kilobytes) / 2**20


def _noise(count: int, picture: tuple[int, int, int], classes: int, config: ClassifierConfig) -> Rows:
    """Return exemplars with random pictures, ids and keys."""
    draws = numpy_generator(0, "noise", count)
    ids = draws.integers(0, 256, (count, 16), dtype=np.uint8)
    ids = ids[np.argsort(id_keys(ids))]
    pixels = draws.integers(0, 256, (count, *picture), dtype=np.uint8)
    length = config.experts * config.key_dim
    codes = np.empty((count, length), dtype=np.int16)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, 2**16):
        part = codes[start : start + 2**16]
        keys = torch.randn(len(part), config.experts, config.key_dim, generator=generator)
        keys = torch.nn.functional.normalize(keys, dim=2) * config.key_dim**0.5
        part[:] = encode_keys(keys).reshape(len(part), length)
    return Rows(pixels, draws.integers(0, classes, count), ids, codes)


def _recipe(name: str) -> ClassifierRunConfig:
    config = load_recipe(CONFIGS / name)
    assert isinstance(config, ClassifierRunConfig)
    return config
