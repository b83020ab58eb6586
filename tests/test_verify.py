"""Verification of a run: it passes what the commands leave, and names whatever else was done to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run_command, tiny, works
from PIL import Image

from gen_unlearn.ledger import Ledger
from gen_unlearn.runs import RunFolder

PUBLIC = ["--set", "core.mode=public"]
Forgery = Callable[[Callable[[Path], None]], dict[str, Any]]


@dataclass(frozen=True)
class Runs:
    """Runs that tests share and must not change."""

    joint: Path
    public: Path
    plain: Path
    oracle: Path
    """Of `used`."""
    used: Path
    """`joint` after a deletion, an addition and another deletion."""
    used_public: Path
    """The same of `public`."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("verify")
    runs = Runs(*(root / name for name in ("joint", "public", "plain", "oracle", "used", "used_public")))
    works("train", *tiny(), "--out", runs.joint)
    works("train", *tiny(), *PUBLIC, "--out", runs.public)
    works("train", *tiny("digits_ddpm.yaml"), "--out", runs.plain)
    Image.new("L", (8, 8), 77).save(root / "new.png")
    for source, used in ((runs.joint, runs.used), (runs.public, runs.used_public)):
        shutil.copytree(source, used)
        works("forget", used, "--class", "3")
        works("add", used, root / "new.png", "--class", "4")
        works("forget", used, "--fraction", 0.02)
    works("train", *tiny(), "--out", runs.oracle, "--without", runs.used)
    return runs


def files_of(run: Path) -> dict[str, bytes]:
    """Return every file of a run but the lock, which a verification may make."""
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in state_files(run)}


def failed(*arguments: object) -> dict[str, str]:
    """Verify a run that must not pass; return what is said of every check that failed."""
    result = run_command("verify", *arguments, "--json")
    assert result.exit_code == 1, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["passed"] is False
    return {check["name"]: check["said"] for check in facts["checks"] if not check["passed"]}


@pytest.mark.parametrize("name", ["joint", "public", "plain", "oracle", "used", "used_public"])
def test_what_the_commands_leave_passes_and_stays_as_it_is(runs: Runs, name: str) -> None:
    path: Path = getattr(runs, name)
    before = files_of(path)
    facts = works("verify", path)
    assert facts.keys() == {"checks", "passed"}
    assert facts["passed"] is True
    names = ["ledger", "receipts", "files that no deletion changes", "exemplars"]
    assert [check["name"] for check in facts["checks"]] == names[: 3 if name == "plain" else 4]
    assert all(check.keys() == {"name", "passed", "skipped", "said"} for check in facts["checks"])
    assert all(check["passed"] is True and check["said"] for check in facts["checks"])
    head = RunFolder.open(path).ledger.head
    assert facts["checks"][0]["said"] == f"{4 if 'used' in name else 1} entries, head {head}"
    assert files_of(path) == before


def test_people_read_one_line_for_each_check(runs: Runs, tmp_path: Path) -> None:
    result = run_command("verify", runs.used)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * 4
    run = shutil.copytree(runs.used, tmp_path / "run")
    (run / "receipts" / "0001.json").unlink()
    result = run_command("verify", run)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "FAILED", "ok", "ok"]
    assert result.stderr == ""
    assert refused("verify", tmp_path).endswith("holds no run: manifest.json is missing")


# --- damage


def state_files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")


def flipped(place: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[place(len(content))] ^= 1
        return bytes(changed)

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first byte": flipped(lambda _: 0),
    "middle byte": flipped(lambda size: size // 2),
    "last byte": flipped(lambda size: size - 1),
    "second last byte": flipped(lambda size: size - 2),
    "without its end": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "longer": lambda content: content + b"0",
    "carriage return": lambda content: content[:-1] + b"\r\n",
}


def assert_noticed(run: Path, where: str) -> None:
    result = run_command("verify", run)
    assert result.exit_code in (1, 2), where
    assert isinstance(result.exception, SystemExit), where
    reasons = [line for line in result.output.splitlines() if line.startswith(("FAILED ", "error: "))]
    assert reasons, where
    assert "Traceback" not in result.output, where
    assert result.exit_code == 1 or result.output.splitlines() == reasons, where


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_of_the_state_is_noticed(runs: Runs, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(runs.used_public, tmp_path / "run"))
    files = state_files(run)
    names = {path.relative_to(run).as_posix() for path in files}
    assert names >= {"recipe.yaml", "manifest.json", "held_out.txt", "core.txt", "ledger.jsonl", "ledger.key"}
    assert names >= {"receipts/0001.json", "receipts/0003.json", "model/model_index.json"}
    assert names >= {"model/exemplars/SHA256SUMS", "model/exemplars/config.json", "model/unet/config.json"}
    for path in files:
        content = path.read_bytes()
        path.write_bytes(DAMAGE[damage](content))
        assert_noticed(run, f"{damage} of {path.relative_to(run)}")
        path.write_bytes(content)
    assert works("verify", run)["passed"] is True


@pytest.mark.parametrize("damage", ["last byte", "without its end"])
@pytest.mark.parametrize("name", ["ledger.key", "model/exemplars/SHA256SUMS"])
def test_damage_to_the_end_of_a_last_line_is_noticed(
    runs: Runs, tmp_path: Path, name: str, damage: str
) -> None:
    path = Path(shutil.copytree(runs.used, tmp_path / "run")) / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert_noticed(tmp_path / "run", f"{damage} of {name}")


@pytest.mark.parametrize("name", ["oracle", "plain"])
def test_damage_to_other_kinds_of_runs_is_noticed(runs: Runs, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(getattr(runs, name), tmp_path / "run"))
    for path in state_files(run):
        content = path.read_bytes()
        path.write_bytes(DAMAGE["middle byte"](content))
        assert_noticed(run, str(path.relative_to(run)))
        path.write_bytes(content)
    assert works("verify", run)["passed"] is True


def test_a_missing_file_of_the_state_is_noticed(runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.used_public, tmp_path / "run"))
    for path in state_files(run):
        content, mode = path.read_bytes(), path.stat().st_mode
        path.unlink()
        assert_noticed(run, str(path.relative_to(run)))
        path.write_bytes(content)
        path.chmod(mode)
    assert works("verify", run)["passed"] is True


@pytest.mark.parametrize(
    ("extra", "check"),
    [
        ("model/unet/extra.bin", "files that no deletion changes"),
        ("model/deleted.png", "files that no deletion changes"),
        ("without.txt", "files that no deletion changes"),
        ("core.txt", "files that no deletion changes"),
        ("receipts/0009.json", "receipts"),
        ("receipts/0001.json~", "receipts"),
        ("model/exemplars/notes.txt", "exemplars"),
        ("model/exemplars/.1.unfinished", "exemplars"),
    ],
)
def test_a_file_that_nobody_filed_is_noticed(runs: Runs, tmp_path: Path, extra: str, check: str) -> None:
    run = Path(shutil.copytree(runs.used, tmp_path / "run"))
    (run / extra).write_text("")
    found = failed(run)
    assert found.keys() == {check}
    assert Path(extra).name in found[check]


def test_what_is_derived_belongs_to_no_state(runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.used, tmp_path / "run"))
    (run / "samples").mkdir()
    (run / "samples" / "any.safetensors").write_text("")
    (run / "report.html").write_text("")
    assert works("verify", run)["passed"] is True


# --- states that are whole, but not those of the ledger


def restore(part: str) -> Callable[[Path, Path], None]:
    def change(run: Path, older: Path) -> None:
        target, source = run / part, older / part
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    return change


@pytest.mark.parametrize("name", ["used", "used_public"])
def test_exemplars_from_before_a_deletion_are_noticed_and_named(
    runs: Runs, tmp_path: Path, name: str
) -> None:
    used: Path = getattr(runs, name)
    run = Path(shutil.copytree(used, tmp_path / "run"))
    older = runs.joint if name == "used" else runs.public
    restore("model/exemplars")(run, older)
    for options in ([], ["--replay"]):
        assert failed(run, *options) == {
            "exemplars": "they are not in the state that the ledger's last entry describes"
        }


@pytest.mark.parametrize(
    ("part", "check"),
    [
        ("ledger.jsonl", "receipts"),
        ("receipts", "receipts"),
        ("manifest.json", None),
        ("model/unet/diffusion_pytorch_model.safetensors", "files that no deletion changes"),
    ],
)
def test_a_part_of_another_state_is_noticed(runs: Runs, tmp_path: Path, part: str, check: str | None) -> None:
    """Parts from before the deletions, or from a run of another key."""
    run = Path(shutil.copytree(runs.used, tmp_path / "run"))
    other = runs.joint if part == "ledger.jsonl" else runs.public
    (run / part).parent.mkdir(exist_ok=True)
    if part == "receipts":
        restore("receipts")(run, runs.used_public)
    else:
        restore(part)(run, other)
    found = failed(run)
    assert check is None or check in found


def test_the_key_of_another_run_is_noticed(runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.used, tmp_path / "run"))
    shutil.copy(runs.public / "ledger.key", run / "ledger.key")
    assert "belongs to another key" in failed(run)["ledger"]


# --- replay


@pytest.mark.parametrize("name", ["joint", "used", "oracle"])
def test_a_joint_core_is_replayed_as_far_as_it_promises(runs: Runs, name: str) -> None:
    facts = works("verify", getattr(runs, name), "--replay")
    said = {check["name"]: check["said"] for check in facts["checks"][4:]}
    assert said.keys() == {"replay of the exemplars", "replay of the weights"}
    assert said["replay of the exemplars"].endswith("files, SHA-256 equal")
    assert said["replay of the weights"].startswith("not done: the core is joint")
    assert [check["name"] for check in facts["checks"] if check["skipped"]] == ["replay of the weights"]
    lines = run_command("verify", getattr(runs, name), "--replay").stdout.splitlines()
    assert next(line for line in lines if "not done" in line).startswith("skipped replay of the weights: ")


@pytest.mark.parametrize("name", ["public", "used_public"])
def test_a_public_core_is_replayed_in_every_byte(runs: Runs, name: str) -> None:
    run: Path = getattr(runs, name)
    before = files_of(run)
    facts = works("verify", run, "--replay")
    said = {check["name"]: check["said"] for check in facts["checks"][4:]}
    assert said.keys() == {"replay of the exemplars", "replay of the whole pipeline"}
    files = len([path for path in (run / "model").rglob("*") if path.is_file()])
    assert said["replay of the whole pipeline"] == f"{files} files, SHA-256 equal"
    assert files_of(run) == before


@pytest.fixture
def forged(runs: Runs, tmp_path: Path) -> Forgery:
    """Change a run with a public core as its owner could, who has the key: the ledger fits the change."""

    def change(alter: Callable[[Path], None]) -> dict[str, Any]:
        run = RunFolder.open(Path(shutil.copytree(runs.public, tmp_path / "run")))
        alter(run.path)
        exemplars = run.exemplar_folder()
        run.ledger_path.unlink()
        Ledger.start(run.ledger_path, run.key, exemplars.digest, len(exemplars), run.unchanging_files())
        assert works("verify", run.path)["passed"] is True
        return failed(run.path, "--replay")

    return change


def test_weights_of_another_training_are_noticed_by_the_replay(runs: Runs, forged: Forgery) -> None:
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    found = forged(lambda run: restore(weights)(run, runs.joint))
    assert found.keys() == {"replay of the whole pipeline"}
    assert "1 of" in found["replay of the whole pipeline"]
    assert "unet/diffusion_pytorch_model.safetensors" in found["replay of the whole pipeline"]


def test_another_core_is_noticed_by_the_replay(
    forged: Forgery,
) -> None:
    def drop_one(run: Path) -> None:
        lines = (run / "core.txt").read_text().splitlines(keepends=True)
        (run / "core.txt").write_text("".join(lines[1:]))

    found = forged(drop_one)
    assert "unet/diffusion_pytorch_model.safetensors" in found["replay of the whole pipeline"]


def test_a_core_that_left_the_source_is_named(runs: Runs, tmp_path: Path) -> None:
    run = RunFolder.open(Path(shutil.copytree(runs.public, tmp_path / "run")))
    stranger = "ab" * 16
    run.core_path.write_text(run.core_path.read_text() + f"{stranger}\n")
    exemplars = run.exemplar_folder()
    run.ledger_path.unlink()
    Ledger.start(run.ledger_path, run.key, exemplars.digest, len(exemplars), run.unchanging_files())
    held = len(run.core_ids)
    said = failed(run.path, "--replay")["replay of the whole pipeline"]
    assert said == f"the source no longer has the whole core: {held - 1} of {held} images"


def test_a_plain_model_has_nothing_to_replay(runs: Runs) -> None:
    said = refused("verify", runs.plain, "--replay")
    assert "has no exemplars: no exact deletion from it could be replayed" in said
