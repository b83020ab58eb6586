"""Residue of images that were deleted from a classifier: the codes of their keys."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS
from safetensors.numpy import save_file

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.residue import audit
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe
from gen_unlearn.forget import ForgetSet
from gen_unlearn.residue.deleted import DeletedImages
from gen_unlearn.runs import RunFolder

TINY = ("data.test_fraction=0.9", "model.encoder.width=8", "training.images=64", "training.batch_size=16")


@pytest.fixture(scope="module")
def deleted_from(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A classifier from which images were deleted, and the codes that they had, int16 ``(n, length)``."""
    config = load_recipe(CONFIGS / "digits_spm_classifier.yaml", TINY)
    assert isinstance(config, ClassifierRunConfig)
    run = train(replace(config, model=replace(config.model, key_dim=16)), tmp_path_factory.mktemp("run"))
    gone = run.exemplar_folder().select(run.exemplar_folder().ids[[1, 5, 20]])
    forget(run, ForgetSet(gone.ids, "test"))
    assert gone.codes is not None
    return run.path, gone.codes


@pytest.fixture
def run(deleted_from: tuple[Path, np.ndarray], tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(deleted_from[0], tmp_path / "run")))


def test_nothing_is_left_in_the_run(run: RunFolder) -> None:
    assert audit(run).clean


@pytest.mark.parametrize("width", [1, 3])
def test_codes_in_a_tensor_are_found(
    run: RunFolder, deleted_from: tuple[Path, np.ndarray], width: int
) -> None:
    codes = deleted_from[1]
    draws = np.random.default_rng(0)
    table = draws.integers(-3000, 3000, (40, width, codes.shape[1])).astype(np.int16)
    table[7, width - 1], table[30, 0] = codes[2], codes[0]
    save_file({"cache": table.reshape(40, -1) if width == 1 else table}, run.path / "cache.safetensors")
    (finding,) = audit(run).report.findings
    assert (str(finding.path), finding.kind, finding.count) == ("cache.safetensors", "encoded tokens", 2)


def test_codes_that_differ_by_one_step_are_others(
    run: RunFolder, deleted_from: tuple[Path, np.ndarray]
) -> None:
    table = deleted_from[1].copy()
    table[:, 3] += 1
    save_file({"cache": table}, run.path / "cache.safetensors")
    assert audit(run).clean


def test_codes_of_another_type_are_refused(deleted_from: tuple[Path, np.ndarray]) -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="expected int16 codes of shape"):
        DeletedImages(np.zeros((3, 16), np.uint8), images, codes=deleted_from[1].astype(np.int32))
