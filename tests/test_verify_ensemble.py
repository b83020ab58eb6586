"""Verify and replay adapter ensembles on the command line, and what their owner may have altered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, refused, run_command, works
from ensemble_factory import RIDGE, TINY
from PIL import Image
from run_factory import snapshot, unchanged
from safetensors.numpy import load_file, save_file

from gen_unlearn.adapters.adapter_folder import AdapterFolder, stage_adapters
from gen_unlearn.commands.verify import replay
from gen_unlearn.commands.verify_ensemble import replay_sample
from gen_unlearn.ledger import Ledger
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import SUMS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensembles") / "trained"
    options = [word for override in (*TINY, *RIDGE) for word in ("--set", override)]
    works("train", "--config", CONFIGS / "digits_adapters.yaml", *options, "--out", path)
    return path


@pytest.fixture(scope="module")
def used(trained: Path) -> Path:
    """The run after deletions, one of them deferred, and an addition."""
    path = Path(shutil.copytree(trained, trained.parent / "used"))
    works("forget", path, "--class", "3")
    Image.new("L", (8, 8), 77).save(trained.parent / "new.png")
    works("add", path, trained.parent / "new.png", "--class", "4")
    works("forget", path, "--fraction", 0.005, "--defer")
    works("forget", path, "--fraction", 0.01)
    return path


@pytest.fixture
def waiting(trained: Path, tmp_path: Path) -> Path:
    """The run with a deletion whose adapters wait."""
    path = Path(shutil.copytree(trained, tmp_path / "waiting"))
    works("forget", path, "--fraction", 0.003, "--defer")
    return path


def failed(*arguments: object) -> dict[str, str]:
    result = run_command("verify", *arguments, "--json")
    assert result.exit_code == 1, result.output
    checks = json.loads(result.stdout.splitlines()[-1])["checks"]
    return {check["name"]: check["said"] for check in checks if not check["passed"]}


def said(*arguments: object) -> dict[str, str]:
    return {check["name"]: check["said"] for check in works("verify", *arguments)["checks"]}


def test_a_used_run_is_replayed_in_every_byte(used: Path) -> None:
    files = len([path for path in (used / "model").rglob("*") if path.is_file()])
    adapters = len(list((used / "model" / "adapters").glob("*.safetensors")))
    with unchanged(used):
        found = said(used, "--replay")
    assert found["adapters"] == f"{adapters} of 12 have members, every byte as listed"
    assert found["replay of the adapters"] == f"{adapters} files, SHA-256 equal"
    assert found["replay of the whole pipeline"].startswith(f"{files} files, SHA-256 equal")
    assert [receipt.level for receipt in RunFolder.open(used).receipts()] == ["bit-exact"] * 2


def test_a_run_whose_adapters_wait_is_replayed_as_it_is(waiting: Path) -> None:
    with unchanged(waiting):
        found = said(waiting, "--replay")
    assert found["adapters"].endswith(f"do not answer: gen-unlearn forget {waiting} --rebuild")
    assert found["replay of the whole pipeline"].endswith("files, SHA-256 equal")


def test_waiting_adapters_are_rebuilt_on_the_command_line(waiting: Path) -> None:
    facts = works("forget", waiting, "--rebuild")
    assert facts["level"] == "bit-exact"
    assert facts["receipt"] == str(waiting / "receipts" / "0002.json")
    assert "wait" not in said(waiting)["adapters"]
    none = {"rebuilt": 0, "completes": [], "receipt": None}
    assert works("forget", waiting, "--rebuild") == none
    for option in ("--defer", "--class=1", "--fraction=0.5"):
        assert "expected --rebuild alone" in refused("forget", waiting, "--rebuild", option)


def test_a_sample_is_replayed_and_what_it_can_miss_is_said(used: Path) -> None:
    found = said(used, "--replay", "--sample", 3)
    (name,) = (name for name in found if name.startswith("replay"))
    assert name == "replay of a sample of 3"
    assert "probability 1 - (1 - f)^3, 95% for f = 63.16%" in found[name]
    for count in (0, -1):
        assert "--sample" in refused("verify", used, "--replay", f"--sample={count}")
        with pytest.raises(ValueError, match="a sample of at least 1 adapter, got"):
            replay(RunFolder.open(used), count)
    assert "expected --replay with --sample" in refused("verify", used, "--sample", 3)


def test_another_environment_is_named(trained: Path, tmp_path: Path) -> None:
    def older(run: RunFolder) -> None:
        text = run.manifest_path.read_text()
        run.manifest_path.write_text(text.replace('"scipy": "', '"scipy": "0.'))

    run = forged(trained, tmp_path, older)
    found = said(run.path, "--replay")["replay of the adapters"]
    assert "SHA-256 equal; the software differs from the training's: scipy 0." in found


def forged(path: Path, tmp_path: Path, alter: Callable[[RunFolder], None]) -> RunFolder:
    """Alter a run as its owner could, who has the key: the ledger fits."""
    run = RunFolder.open(Path(shutil.copytree(path, tmp_path / "forged")))
    alter(run)
    exemplars = run.exemplar_folder()
    shutil.rmtree(run.receipts_path, ignore_errors=True)
    run.ledger_path.unlink()
    state = run.state_of(exemplars)
    Ledger.start(run.ledger_path, run.key, state, len(exemplars), run.unchanging_files())
    return run


def put(run: RunFolder, source: AdapterFolder, adapter: int) -> None:
    """Put an adapter of another state in the place of the run's, as if it had the members that it should."""
    folder = run.adapter_folder()
    change = stage_adapters(folder, {adapter: (folder.sizes[adapter], source.state(adapter))}, folder.path)
    (folder.path / SUMS).write_text(change.sums)
    for name in change.obsolete:
        (folder.path / name).unlink()


def test_an_adapter_that_still_knows_deleted_images_is_noticed_by_the_replay(
    trained: Path, used: Path, tmp_path: Path
) -> None:
    before, after = (RunFolder.open(path).adapter_folder() for path in (trained, used))
    stale = next(a for a in after.files if before.state(a)["gram"].sum() != after.state(a)["gram"].sum())
    run = forged(used, tmp_path, lambda run: put(run, before, stale))
    assert works("verify", run.path)["passed"] is True
    found = failed(run.path, "--replay")
    assert found.keys() == {"replay of the adapters", "replay of the whole pipeline"}
    assert f"1 of {len(after.files)} files differ: {stale:05d}" in found["replay of the adapters"]
    with pytest.raises(ValueError, match=f"files differ: {stale:05d}"):
        replay_sample(run, 1000)


def test_weights_that_do_not_follow_from_the_sums_are_noticed(used: Path, tmp_path: Path) -> None:
    def alter(run: RunFolder) -> None:
        folder = run.adapter_folder()
        adapter = next(iter(folder.files))
        state = dict(folder.state(adapter) or {})
        state["weights"] = np.nextafter(state["weights"], np.inf)
        change = stage_adapters(folder, {adapter: (folder.sizes[adapter], state)}, folder.path)
        (folder.path / SUMS).write_text(change.sums)
        for name in change.obsolete:
            (folder.path / name).unlink()

    run = forged(used, tmp_path, alter)
    assert works("verify", run.path)["passed"] is True
    assert "replay of the adapters" in failed(run.path, "--replay")


def test_other_keys_are_noticed_by_the_routes(used: Path, tmp_path: Path) -> None:
    def alter(run: RunFolder) -> None:
        (path,) = run.classifier_path.glob("*.safetensors")
        tensors = load_file(path)
        tensors["key_codes"] = tensors["key_codes"][::-1].copy()
        save_file(tensors, path, {"format": "pt"})

    run = forged(used, tmp_path, alter)
    assert failed(run.path) == {
        "adapters": "records are routed to other adapters than their codes and the keys say"
    }


def test_other_numbers_of_members_are_noticed(used: Path, tmp_path: Path) -> None:
    def alter(run: RunFolder) -> None:
        folder = run.adapter_folder()
        adapter = next(iter(folder.files))
        changed = {adapter: (folder.sizes[adapter] + 1, folder.state(adapter))}
        change = stage_adapters(folder, changed, folder.path)
        (folder.path / SUMS).write_text(change.sums)
        (folder.path / change.obsolete[0]).unlink()

    run = forged(used, tmp_path, alter)
    assert "1 do not have the members that are routed to them" in failed(run.path)["adapters"]


def test_an_oracle_of_a_receipt_has_the_same_files(trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "run"))
    receipt = works("forget", path, "--fraction", 0.01)["receipt"]
    options = [word for override in (*TINY, *RIDGE) for word in ("--set", override)]
    recipe = CONFIGS / "digits_adapters.yaml"
    works("train", "--config", recipe, *options, "--out", tmp_path / "oracle", "--without", receipt)
    assert snapshot(tmp_path / "oracle" / "model") == snapshot(path / "model")
