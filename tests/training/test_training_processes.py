"""Two processes train what one does: weights, losses, adapters, resume points."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command_line import CONFIGS, works
from lora_runs import tiny_overrides
from safetensors.torch import load_file
from torch import Tensor
from two_processes import as_two

from gen_unlearn.commands.train import train
from gen_unlearn.commands.verify import replay
from gen_unlearn.config import Recipe, load_recipe
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.batches import DiffusionBatch, DiffusionBatches
from gen_unlearn.training.checkpoint import TrainingInterruptedError

TINY_DENOISER = (
    "model.block_out_channels=[8, 16]",
    "model.norm_num_groups=4",
    "model.layers_per_block=1",
    "training.images=36",
    "training.batch_size=12",
    "training.warmup_images=12",
    "training.exemplars_per_class=[1, 3]",
)
TINY_CLASSIFIER = (
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "training.images=80",
    "training.batch_size=40",
    "training.warmup_images=40",
    "training.shift=1",
)
TINY_ADAPTERS = (
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "model.adapters.count=12",
    "training.images=80",
    "training.batch_size=40",
)
FEW_ADAPTED = ("training.images=24", "model.adapters.lora.epochs=1")
GENERATORS = [
    ("digits_spm.yaml", ()),
    ("digits_spm.yaml", ("model.label_embedding=true", "training.gradient_accumulation_steps=2")),
    ("digits_spm.yaml", ("model.fusion_type=additive", "model.pixel_fusion_width=0.3")),
    ("digits_ddpm.yaml", ("training.horizontal_flip=true",)),
]
CLASSIFIERS = [
    ("digits_spm_classifier.yaml", ("model.kind=parametric",)),
    ("digits_spm_classifier.yaml", ()),
    ("digits_spm_classifier.yaml", ("training.vote=exemplars",)),
    ("digits_spm_classifier.yaml", ("training.exemplars=sampled", "training.support_per_class=[2, 4]")),
]


def tiny(name: str, extra: Sequence[str]) -> Recipe:
    kind = TINY_CLASSIFIER if "classifier" in name else TINY_DENOISER
    return load_recipe(CONFIGS / name, [*kind, *extra])


def weights(run: RunFolder) -> dict[str, Tensor]:
    (file,) = [*run.model_path.glob("unet/*.safetensors"), *run.model_path.glob("classifier/*.safetensors")]
    return load_file(file)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Hold that weights are equal but for rounding, which AdamW makes larger where gradients vanish."""
    assert found.keys() == expected.keys()
    one, other = (torch.cat([part[key].flatten() for key in expected]) for part in (found, expected))
    assert (one - other).norm() < 1e-4 * other.norm()


def loss(run: RunFolder) -> float:
    assert run.manifest.training is not None
    return run.manifest.training.loss


@pytest.mark.parametrize(("name", "extra"), [*GENERATORS, *CLASSIFIERS])
def test_two_processes_train_as_one(name: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny(name, extra)
    alone = train(config, tmp_path / "one")

    def together(rank: int) -> None:
        run = train(config, tmp_path / "two")
        assert run.manifest.training is not None, f"process {rank} came back too early"

    as_two(together)
    both = RunFolder.open(tmp_path / "two")
    assert loss(both) == pytest.approx(loss(alone), rel=1e-5)
    assert_close(weights(both), weights(alone))
    works("verify", both.path)
    assert not both.path.joinpath("checkpoints").exists()


def interrupted_in_process_one(config: Recipe, out: Path, micro_batch: int) -> None:
    """Train in two processes, of which only one is asked to stop; both do, after the same step."""
    original = DiffusionBatches.__getitem__

    def getitem(self: DiffusionBatches, index: int) -> DiffusionBatch:
        if index == micro_batch and self.process_index == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, index)

    def stopped(_rank: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DiffusionBatches, "__getitem__", getitem)
            with pytest.raises(TrainingInterruptedError):
                train(config, out)

    as_two(stopped)


def test_both_stop_and_two_continue_to_the_bit_and_one_closely(tmp_path: Path) -> None:
    config = tiny("digits_spm.yaml", ("training.images=60",))
    as_two(lambda _: train(config, tmp_path / "whole"))
    for out in ("two", "one"):
        interrupted_in_process_one(config, tmp_path / out, micro_batch=2)
        (point,) = (tmp_path / out / "checkpoints").glob("step-*")
        assert point.name == "step-00000004", "the step after the one that it was asked in"
    as_two(lambda _: train(config, tmp_path / "two"))
    whole, again = weights(RunFolder.open(tmp_path / "whole")), weights(RunFolder.open(tmp_path / "two"))
    assert all(torch.equal(again[key], value) for key, value in whole.items())
    assert_close(weights(train(config, tmp_path / "one")), whole)


def test_another_number_of_processes_is_refused_where_the_network_draws(tmp_path: Path) -> None:
    config = tiny("digits_ddpm.yaml", ("model.dropout=0.2", "training.images=60"))
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=2)
    with pytest.raises(ValueError, match=r"as wrote .*, 2, got 1: the network draws random numbers"):
        train(config, tmp_path / "run")
    as_two(lambda _: train(config, tmp_path / "run"))
    RunFolder.open(tmp_path / "run")


def test_batches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    def refused(_rank: int) -> None:
        with pytest.raises(ValueError, match="must be a multiple of"):
            train(tiny("digits_ddpm.yaml", ("training.batch_size=25",)), tmp_path / "generator")
        with pytest.raises(ValueError, match="must be a multiple of"):
            train(tiny("digits_spm_classifier.yaml", ("training.batch_size=25",)), tmp_path / "classifier")

    as_two(refused)
    assert not list(tmp_path.iterdir())


def test_a_torn_resume_point_is_passed_over(tmp_path: Path) -> None:
    config = tiny("digits_ddpm.yaml", ("training.images=60",))
    expected = weights(train(config, tmp_path / "whole"))
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=2)
    (point,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    torn = shutil.copytree(point, point.with_name("step-00000006"))
    for file in torn.glob("model*.safetensors"):
        os.truncate(file, file.stat().st_size - 1)
    (shutil.copytree(point, point.with_name("step-00000007")) / "progress.json").unlink()
    assert_close(weights(train(config, tmp_path / "run")), expected)


@pytest.mark.parametrize("name", ["digits_adapters.yaml", "digits_lora.yaml"])
def test_two_processes_train_an_ensemble_that_one_replays(name: str, tmp_path: Path) -> None:
    config = load_recipe(CONFIGS / name, tiny_overrides(*FEW_ADAPTED) if "lora" in name else TINY_ADAPTERS)
    as_two(lambda _: train(config, tmp_path / "run"))
    assert len(RunFolder.open(tmp_path / "run").adapter_folder().sizes) == 12
    checks = {check["name"]: check for check in works("verify", tmp_path / "run", "--replay")["checks"]}
    assert "12 files, SHA-256 equal" in checks["replay of the adapters"]["said"]
    assert checks["replay of the whole pipeline"]["skipped"], "one process cannot repeat what two rounded"

    def replayed(_rank: int) -> None:
        found = {check.name: check for check in replay(RunFolder.open(tmp_path / "run"))}
        assert "SHA-256 equal" in found["replay of the whole pipeline"].said

    as_two(replayed)


def test_points_are_kept_although_a_torn_one_is_ahead(tmp_path: Path) -> None:
    """It would have been the newest, and the others too many."""
    config = tiny("digits_ddpm.yaml", ("training.images=84", "training.checkpoint_images=24"))
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=1)
    (point,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    point.rename(point.with_name("step-00000008"))
    (point.with_name("step-00000008") / "model.safetensors").unlink()
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=4)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000006"]


def test_a_point_of_before_there_were_several_processes_is_continued_by_one(tmp_path: Path) -> None:
    config = tiny("digits_ddpm.yaml", ("training.images=60",))
    expected = weights(train(config, tmp_path / "whole"))
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=2)
    (file,) = (tmp_path / "run" / "checkpoints").glob("step-*/progress.json")
    noted = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: noted[name] for name in noted if name not in ("drew", "processes", "sizes")})
    )

    def refused(_rank: int) -> None:
        with pytest.raises(ValueError, match=r"as wrote .*, 1, got 2"):
            train(config, tmp_path / "run")

    as_two(refused)
    assert_close(weights(train(config, tmp_path / "run")), expected)


def test_a_stop_in_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    config = tiny("digits_ddpm.yaml", ("training.images=48",))
    interrupted_in_process_one(config, tmp_path / "run", micro_batch=3)
    (point,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert point.name == "step-00000004"
    as_two(lambda _: train(config, tmp_path / "run"))
