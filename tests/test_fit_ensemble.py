"""The training of an adapter ensemble fits the adapters itself, so that they are in its time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from accelerate import Accelerator
from command_line import CONFIGS
from ensemble_factory import RIDGE, TINY
from run_factory import random_images

from gen_unlearn.commands import fit_ensemble
from gen_unlearn.config import load_recipe
from gen_unlearn.core import CoreSplit


@pytest.mark.parametrize("optimise", [0, 1])
def test_adapters_are_fit_where_assertions_are_left_out_too(
    monkeypatch: pytest.MonkeyPatch, optimise: int
) -> None:
    path = Path(fit_ensemble.__file__)
    module = ModuleType("fit_ensemble_compiled")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Where dataclasses look for it.
    text = path.read_text(encoding="utf-8")
    exec(compile(text, path, "exec", optimize=optimise, dont_inherit=True), module.__dict__)
    images = random_images(120, seed=0)
    parts = CoreSplit(images.select(np.arange(60)), images.select(np.arange(60, 120)))
    config = load_recipe(CONFIGS / "digits_adapters.yaml", (*TINY, *RIDGE))
    training = module.EnsembleTraining.of(config, parts, Accelerator(cpu=True))
    trained, progress = training.fit(None, "train")
    assert "adapters" in vars(trained), "not later, when they are asked for first"
    assert progress.seconds > 0
