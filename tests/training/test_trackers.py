"""Trackers: what is logged where, by whom, and what cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_line import CONFIGS, TINY_OVERRIDES, refused, run_command, works
from two_processes import as_two

from gen_unlearn.commands.fit import fit
from gen_unlearn.config import load_config
from gen_unlearn.data import load_digits_images
from gen_unlearn.processes import process_state
from gen_unlearn.training.trackers import FOLDER, TRACKERS, require_tracker, tracked

TINY = {
    "data.test_fraction": "0.9",
    "model.encoder.width": "4",
    "model.encoder.depth": "0",
    "model.key_dim": "8",
    "training.images": "816",
    "training.batch_size": "16",
    "training.warmup_images": "16",
}


def tiny(**training: str) -> list[object]:
    values = TINY | {f"training.{key}": value for key, value in training.items()}
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["--config", CONFIGS / "digits_spm_classifier.yaml", *overrides]


def log(tracker: str, run: Path, values: dict[str, float]) -> None:
    """Log some values to the folder of a run, which must be there."""
    process_state()
    AcceleratorState._reset_state()
    require_tracker(tracker, run)
    accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=run)
    with tracked(accelerator, tracker, {"recipe": "0" * 64, "seed": 0}):
        accelerator.log(values, 50)


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Read TensorBoard's files: the values of every curve by the step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / FOLDER)).Reload()
    names = events.Tags()["scalars"]
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def event_files(run: Path) -> list[Path]:
    return list((run / FOLDER).glob("events.out.tfevents.*"))


def test_a_training_leaves_curves_that_a_deletion_removes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    works("train", *tiny(log_with="tensorboard"), "--out", run)
    found = curves(run)
    assert {"loss", "lr"} <= found.keys()
    assert list(found["loss"]) == [50]
    assert 0 < found["loss"][50] < 10
    forgotten = works("forget", run, "--class", "3")
    assert FOLDER in forgotten["purged"]
    assert not (run / FOLDER).exists()


def test_a_training_that_logs_is_the_same(tmp_path: Path) -> None:
    trained = [
        works("train", *tiny(**settings), "--out", tmp_path / name)
        for name, settings in (("logged", {"log_with": "tensorboard"}), ("not", {}))
    ]
    assert trained[0]["weights_digest"] == trained[1]["weights_digest"]
    assert trained[0]["recipe"] == trained[1]["recipe"]


def test_what_was_logged_is_written_also_when_a_training_is_stopped(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)

    def interrupted() -> None:
        with tracked(accelerator, "tensorboard", {"seed": 0}):
            accelerator.log({"loss": 0.25}, 50)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert curves(tmp_path) == {"loss": {50: 0.25}}
    assert accelerator.trackers == []


def test_of_two_processes_one_writes(tmp_path: Path) -> None:
    as_two(lambda rank: log("tensorboard", tmp_path, {"loss": float(rank)}))
    assert len(event_files(tmp_path)) == 1
    assert curves(tmp_path) == {"loss": {50: 0.0}}


@pytest.mark.slow
def test_weights_and_biases_stays_offline_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason='by hand, after pip install "gen_unlearn[trackers]"')
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    log("wandb", run, {"loss": 0.25, "lr": 0.5})
    (content,) = (path.read_bytes() for path in run.glob(f"{FOLDER}/wandb/offline-run-*/run-*.wandb"))
    assert b"loss" in content
    assert b"0.25" in content
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "and nothing where the command was started"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # As where it is not installed.
    message = refused("train", *tiny(log_with=name), "--out", tmp_path / "run")
    assert f"the package {name}, which is not installed" in message
    assert 'pip install "gen_unlearn[trackers]"' in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_told_which_are_known(tmp_path: Path) -> None:
    message = refused("train", *tiny(log_with="notebook"), "--out", tmp_path / "run")
    assert "one of tensorboard, wandb, got 'notebook'" in message
    assert not (tmp_path / "run").exists()


def test_without_a_folder_nothing_is_logged_and_no_package_is_needed() -> None:
    """As where a run is trained again in memory, to compare."""
    require_tracker("wandb", None)
    config = load_config(CONFIGS / "digits_ddpm.yaml", [*TINY_OVERRIDES, "training.log_with=tensorboard"])
    _, progress = fit(config, load_digits_images())
    assert progress.step == config.training.steps


def test_the_command_says_nothing_more(tmp_path: Path) -> None:
    result = run_command("train", *tiny(log_with="tensorboard", images="32"), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
