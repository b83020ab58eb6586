"""What the training of an adapter ensemble that generates refuses at first, and says when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from command_line import refused, run_command
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from lora_runs import TINY, tiny_ensemble

from gen_unlearn.adapters import resumable
from gen_unlearn.adapters.determinism import environment
from gen_unlearn.commands.fit_lora_ensemble import LoraEnsembleTraining
from gen_unlearn.config import load_config
from gen_unlearn.core import split_core
from gen_unlearn.data import load_split
from gen_unlearn.manifest import differences


@pytest.fixture
def unconditional(tmp_path: Path) -> Path:
    """A pipeline of a UNet without classes."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "given")
    return tmp_path / "given"


def test_guidance_needs_a_null_class(unconditional: Path, tmp_path: Path) -> None:
    options = tiny_ensemble(f"model.weights={unconditional}", "sampling.guidance_scale=1.3")
    message = refused("train", *options, "--out", tmp_path / "run")
    assert "expected sampling.guidance_scale 1 for a backbone without a null class, got 1.3" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["mixed_precision=bf16", "log_with=tensorboard"])
def test_the_router_has_no_precision_of_its_own(override: str, tmp_path: Path) -> None:
    options = tiny_ensemble(f"model.router.training.{override}")
    assert "expected no mixed_precision or log_with in model.router.training" in refused(
        "train", *options, "--out", tmp_path / "run"
    )


def test_what_adapters_need_on_cuda_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_runs import RECIPE

    config = load_config(RECIPE, [f"{key}={value}" for key, value in TINY.items()])
    parts = split_core(load_split(config.data).train, config.core)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", property(lambda _: torch.device("cuda")))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ValueError, match="expected CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        LoraEnsembleTraining.of(config, parts, accelerator)


def test_ctrl_c_in_the_fit_of_adapters_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = resumable.write_undated, []

    def stop_after_two(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(resumable, "write_undated", stop_after_two)
    result = run_command("train", *tiny_ensemble(), "--out", tmp_path / "run")
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert last.startswith("stopped at 2 of ")
    assert last.endswith(f"adapters; continue with: gen-unlearn train {tmp_path / 'run'}")


def test_an_environment_with_another_device_differs() -> None:
    here = environment()
    assert differences(here) == ""
    assert differences(here | {"device": "some GPU"}) == "device some GPU -> None"
    without = {name: version for name, version in here.items() if name != "scipy"}
    assert differences(without) == f"scipy None -> {here['scipy']}"
    assert differences({"torch": here["torch"]}) == ""
