"""A process of a group that works alone: it trains what it would without a group, and the group goes on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from command_line import CONFIGS, TINY_OVERRIDES
from run_factory import ended, fork

from gen_unlearn.commands.fit import fit
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import load_digits_images
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.processes import alone, process_state

ACCUMULATION = 2
PATIENCE = timedelta(seconds=90)
STATES = (PartialState, AcceleratorState, GradientState)
STEPS = (2, 5)
"""Of the models of both processes: had they to meet after each step, one would wait for ever."""


def _recipe(rank: int) -> RunConfig:
    config = load_config(CONFIGS / "digits_ddpm.yaml", TINY_OVERRIDES)
    return replace(config, seed=rank, training=replace(config.training, images=24 * STEPS[rank]))


def _trained(rank: int) -> str:
    """Train the model of a process; return the digest of its weights."""
    pipeline = fit(_recipe(rank), load_digits_images())[0]
    assert isinstance(pipeline, ClassConditionalDDPMPipeline)
    return weights_digest(pipeline)


def _place() -> list[int]:
    state = process_state()
    return [state.num_processes, state.process_index]


def _environment_of(rank: int) -> dict[str, str]:
    """Return what a launcher tells one of two processes."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}
    rest = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return {name: str(value) for name, value in told.items()} | rest


def _take_part(rank: int, folder: Path) -> dict[str, object]:
    """Be one of two processes that meet in a folder: alone for a while, then with the other again."""
    meeting = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", meeting, PATIENCE, world_size=2, rank=rank)
    try:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
        found: dict[str, object] = {"before": _place()}
        with alone():
            found["within"] = _place()
            found["trained"] = _trained(rank)
            found["made within"] = Accelerator(gradient_accumulation_steps=1).num_processes
        accelerator.wait_for_everyone()
        told = _environment_of(rank)
        found["told"] = {name: os.environ.get(name) for name in told} == told
        found["after"] = _place()
        found["gathered"] = accelerator.gather(torch.tensor([rank + 10])).tolist()
        found["gradient"] = _gradient(accelerator, 4.0 * rank)
        return found
    finally:
        torch.distributed.destroy_process_group()


def _gradient(accelerator: Accelerator, own: float) -> float:
    """Return the gradient of a weight after the group's step, from what is this process's own."""
    model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
    accelerator.backward(own * model(torch.ones(1, 1)).sum())
    return float(model.module.weight.grad)


def _process(rank: int, folder: Path) -> None:
    """Be one of the processes, with nothing of the states of the one that this is a copy of."""
    os.environ |= _environment_of(rank)
    for state in STATES:
        state._shared_state.clear()
    (folder / f"{rank}.json").write_text(json.dumps(_take_part(rank, folder)))


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train here as the other processes do, whatever there is, and leave no trace."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for state in STATES:
        monkeypatch.setattr(state, "_shared_state", {})


@pytest.mark.usefixtures("on_the_cpu")
def test_processes_of_a_group_train_alone_and_meet_again(tmp_path: Path) -> None:
    children = [fork(partial(_process, rank, tmp_path)) for rank in (0, 1)]
    expected = [_trained(rank) for rank in (0, 1)]
    assert expected[0] != expected[1]
    assert [ended(child) for child in children] == [0, 0]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "before": [2, rank],
            "within": [1, 0],
            "trained": expected[rank],
            "made within": 1,
            "told": True,
            "after": [2, rank],
            "gathered": [10, 11],
            "gradient": 2.0 / ACCUMULATION,  # The mean of 0 and 4 over the accumulation.
        }


@pytest.mark.usefixtures("on_the_cpu")
def test_what_was_before_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "1234")
    outer = Accelerator(cpu=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        _fail_alone(outer)
    assert os.environ["MASTER_PORT"] == "1234"
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    assert AcceleratorState().mixed_precision == outer.mixed_precision == "no"


def _fail_alone(outer: Accelerator) -> None:
    """Look around within, another precision and another time alone included, and fail."""
    with alone():
        assert "MASTER_PORT" not in os.environ
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"
        inner = Accelerator(cpu=True, mixed_precision="bf16")
        with alone():
            assert process_state().device.type == "cpu"
        assert AcceleratorState().mixed_precision == inner.mixed_precision == "bf16"
        assert outer.mixed_precision == "no"
        raise RuntimeError("on purpose")
