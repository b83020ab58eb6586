"""The training loop: it learns, repeats itself to the byte, and continues as if it had not stopped."""

from __future__ import annotations

import math
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from run_factory import ended, fork
from torch import Tensor

from gen_unlearn.commands.fit import fit
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.batches import DiffusionBatch, DiffusionBatches
from gen_unlearn.training.checkpoint import CheckpointFolder, TrainingInterruptedError
from gen_unlearn.training.diffusion_config import TrainingConfig
from gen_unlearn.training.schedule import learning_rate

RECIPES = Path(__file__).parents[2] / "configs"
TINY = (
    "model.block_out_channels=[8, 16]",
    "model.norm_num_groups=4",
    "model.layers_per_block=1",
    "noise.num_train_timesteps=100",
    "training.images=84",
    "training.batch_size=12",
    "training.warmup_images=24",
    "training.exemplars_per_class=[1, 3]",
)
STAYING = ("training.exemplar_refresh_steps=3",)
ACCUMULATED = "training.gradient_accumulation_steps=2"
EXAMPLES = ["digits_spm.yaml", "digits_ddpm.yaml"]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Let each test choose its precision: Accelerate keeps it for the life of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def data(digits_split: Split) -> IndexedImages:
    return digits_split.train.select(np.arange(120))


@pytest.fixture(scope="module")
def plain(data: IndexedImages) -> dict[str, dict[str, Tensor]]:
    """The weights of each example of a recipe, trained without interruption; tests must not change them."""
    return {base: trained(recipe(base=base), data) for base in EXAMPLES}


def recipe(*overrides: str, base: str = "digits_spm.yaml") -> RunConfig:
    return load_config(RECIPES / base, [*TINY, *overrides])


def trained(config: RunConfig, data: IndexedImages, folder: Path | None = None) -> dict[str, Tensor]:
    checkpoints = None if folder is None else CheckpointFolder(folder, config.digest)
    pipeline, progress = fit(config, data, checkpoints=checkpoints)
    assert math.isfinite(progress.loss)
    return pipeline.unet.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def interrupted(index: int, error: Exception | None = None) -> Iterator[None]:
    """Press Ctrl-C, or fail with `error`, while micro-batch `index` is being made."""
    original = DiffusionBatches.__getitem__

    def getitem(self: DiffusionBatches, asked: int) -> DiffusionBatch:
        if asked == index:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBatches, "__getitem__", getitem)
        yield


@pytest.mark.parametrize("base", EXAMPLES)
def test_weights_move_and_depend_on_the_seed_alone(
    data: IndexedImages, plain: dict[str, dict[str, Tensor]], base: str
) -> None:
    config = recipe(base=base)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    fresh = build_denoiser(config.model, data.image_shape, 10).state_dict()
    torch.manual_seed(99)
    one = trained(config, data)
    assert_equal(one, plain[base])
    other = trained(replace(config, seed=1), data)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert not [name for name in one if torch.equal(one[name], fresh[name])], "every weight learns"


@pytest.mark.parametrize(
    ("base", "extra"), [("digits_spm.yaml", ()), ("digits_spm.yaml", STAYING), ("digits_ddpm.yaml", ())]
)
def test_the_loss_falls(data: IndexedImages, base: str, extra: tuple[str, ...]) -> None:
    settings = ("training.batch_size=20", "training.learning_rate=8e-3", "training.warmup_images=80", *extra)
    _, start = fit(recipe("training.images=80", *settings, base=base), data)
    _, end = fit(recipe("training.images=900", *settings, base=base), data)
    assert start.loss > 0.5
    assert end.loss < 0.75 * start.loss


@pytest.mark.parametrize(
    "extra",
    [
        (),
        (ACCUMULATED,),
        ("model.dropout=0.2",),
        STAYING,
        (*STAYING, ACCUMULATED),
    ],
)
@pytest.mark.parametrize("base", EXAMPLES)
def test_continues_after_ctrl_c_as_if_it_had_not_stopped(
    data: IndexedImages, base: str, extra: tuple[str, ...], tmp_path: Path
) -> None:
    """Seven steps, of which the fifth works with exemplars that stay, and the seventh with others."""
    config = recipe(*extra, base=base)
    uninterrupted, handler = trained(config, data), signal.getsignal(signal.SIGINT)
    with interrupted(3), pytest.raises(TrainingInterruptedError) as stopped:
        trained(config, data, tmp_path)
    done = 4 // config.training.gradient_accumulation_steps
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.value.done == done * config.training.batch_size
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{done:08d}"]
    assert_equal(uninterrupted, trained(config, data, tmp_path))


def test_continues_from_the_newest_resume_point_after_a_crash(
    data: IndexedImages, plain: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    config = recipe("training.checkpoint_images=24")
    with interrupted(5, RuntimeError("out of memory")), pytest.raises(RuntimeError, match="memory"):
        trained(config, data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"], "older ones are dropped"
    (tmp_path / "unfinished").mkdir()  # of a crash while writing
    assert_equal(plain["digits_spm.yaml"], trained(config, data, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_reaches_the_loading_processes_too_waits_for_the_step(
    data: IndexedImages, plain: dict[str, dict[str, Tensor]], tmp_path: Path, number: signal.Signals
) -> None:
    config = recipe("training.dataloader_workers=1")
    original = DiffusionBatches.__getitem__

    def getitem(self: DiffusionBatches, asked: int) -> DiffusionBatch:
        if asked == 3:
            os.killpg(os.getpgrp(), number)
        return original(self, asked)

    def stopped() -> None:
        os.setpgid(0, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DiffusionBatches, "__getitem__", getitem)
            with pytest.raises(TrainingInterruptedError):
                trained(config, data, tmp_path)

    assert ended(fork(stopped)) == 0
    assert_equal(plain["digits_spm.yaml"], trained(config, data, tmp_path))


def test_an_interruption_in_the_last_step_leaves_a_loss(data: IndexedImages, tmp_path: Path) -> None:
    config = recipe()
    with interrupted(6), pytest.raises(TrainingInterruptedError):
        trained(config, data, tmp_path)
    _, progress = fit(config, data, checkpoints=CheckpointFolder(tmp_path, config.digest))
    assert math.isfinite(progress.loss)


def test_keeps_as_many_as_asked_and_refuses_those_of_another_recipe(
    data: IndexedImages, tmp_path: Path
) -> None:
    config = recipe("training.checkpoint_images=12", "training.images=36")
    fit(config, data, checkpoints=CheckpointFolder(tmp_path, config.digest, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    with pytest.raises(ValueError, match=r"step-00000003 belongs to another recipe"):
        trained(recipe("training.images=36", "seed=1"), data, tmp_path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.mark.parametrize("save", [partial(pickle.dump, protocol=2), torch.save])
def test_a_resume_point_runs_no_code(
    data: IndexedImages,
    save: Callable[[object, IO[bytes]], None],
    tmp_path: Path,
) -> None:
    config = recipe("training.images=48")
    folder, target = tmp_path / "checkpoints", tmp_path / "executed"
    with interrupted(2), pytest.raises(TrainingInterruptedError):
        trained(config, data, folder)
    files = list((folder / "step-00000003").iterdir())
    pickled = [path for path in files if path.suffix not in (".safetensors", ".json")]
    assert "optimizer.bin" in {path.name for path in pickled}
    for path in pickled:
        healthy = path.read_bytes()
        with path.open("wb") as file:
            save(Bomb(target), file)
        with suppress(
            pickle.UnpicklingError, RuntimeError
        ):  # Accelerate itself goes on without random states.
            trained(config, data, folder)
        assert not target.exists(), path.name
        path.write_bytes(healthy)


@pytest.mark.parametrize("base", EXAMPLES)
def test_accumulation_changes_nothing_but_rounding(data: IndexedImages, base: str) -> None:
    settings = ("training.images=36", "training.learning_rate=1e-4")
    whole = trained(recipe(*settings, base=base), data)
    parts = trained(recipe(*settings, "training.gradient_accumulation_steps=3", base=base), data)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=2e-5)
    assert any(not torch.equal(parts[name], whole[name]) for name in whole)


def test_the_averaged_weights_are_what_is_kept(data: IndexedImages) -> None:
    """With a greatest decay of 0 the last weights are kept; with more, an average that lags behind."""
    last = trained(recipe("training.images=36", "training.ema_max_decay=0"), data)
    averaged = trained(recipe("training.images=36", "training.ema_max_decay=0.9999"), data)
    barely = trained(recipe("training.images=36", "training.ema_max_decay=1e-7"), data)
    assert not any(torch.equal(last[name], averaged[name]) for name in last)
    assert all(torch.allclose(last[name], barely[name], atol=1e-6) for name in last)


@pytest.mark.parametrize("base", EXAMPLES)
def test_mixed_precision_leaves_full_precision_weights(
    data: IndexedImages, plain: dict[str, dict[str, Tensor]], base: str
) -> None:
    half, full = trained(recipe("training.mixed_precision=bf16", base=base), data), plain[base]
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert 0 < max((full[name] - half[name]).abs().max() for name in full) < 0.1


def test_one_process_can_train_in_two_precisions(data: IndexedImages) -> None:
    trained(recipe("training.images=12"), data)
    trained(recipe("training.images=12", "training.mixed_precision=bf16"), data)


def test_a_model_can_predict_velocity(data: IndexedImages, plain: dict[str, dict[str, Tensor]]) -> None:
    velocity = trained(recipe("noise.prediction_type=v_prediction"), data)
    noise = plain["digits_spm.yaml"]
    assert any(not torch.equal(noise[name], velocity[name]) for name in noise)
    labelled = ("training.images=24", "noise.prediction_type=v_prediction", "model.label_embedding=true")
    pipeline, _ = fit(recipe(*labelled), data)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    images = sample_images(pipeline, [1, None], [0, 0], replace(recipe().sampling, num_inference_steps=2))
    assert images.shape == (2, 8, 8, 1)


def test_leaves_the_random_numbers_of_the_caller_alone(data: IndexedImages) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(recipe("training.images=24"), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_rises_linearly_and_falls_by_half_a_cosine() -> None:
    config = TrainingConfig(images=1000, batch_size=10, learning_rate=2.0, warmup_images=90)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 90) == pytest.approx(2.0)
    assert learning_rate(config, 545) == pytest.approx(1.0)
    assert learning_rate(config, 1000) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(config, 300) == pytest.approx(1 + math.cos(math.pi * 210 / 910))
    assert learning_rate(replace(config, warmup_images=0), 0) == 2.0
