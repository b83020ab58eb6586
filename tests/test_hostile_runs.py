"""Runs that were tampered with, and disks that take nothing more: one line, and nothing changes."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from command_line import refused, run_command, works
from PIL import Image
from run_factory import (
    ended,
    fork,
    list_again,
    make_run,
    random_images,
    shard_of,
    snapshot,
    trap_for_pickle,
    unchanged,
)
from safetensors.numpy import save

from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.sealing import RunKey
from gen_unlearn.shards import CONFIG, SUMS, Piece, bits_of, first_words


@pytest.fixture
def run(run_without_threes: Path, tmp_path: Path) -> Path:
    """A run to try things on."""
    return Path(shutil.copytree(run_without_threes, tmp_path / "run"))


NOBODY = 65534


def with_tensors(run: Path, **changed: np.ndarray) -> None:
    """Replace tensors of the shard, and list it as it is then."""
    rows = ExemplarFolder.open(run / "model" / "exemplars").all_rows()
    parts = {name: part for name, part in rows._asdict().items() if part is not None}
    shard_of(run).write_bytes(save({**parts, **changed}))
    list_again(run)


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def edited(name: str, old: str, new: str) -> Callable[[Path], object]:
    def edit(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return edit


def linked(name: str) -> Callable[[Path], object]:
    """Put a part of the run outside of it, and a link in its place."""

    def link(run: Path) -> None:
        outside = run.parent / "outside"
        (run / name).rename(outside)
        (run / name).symlink_to(outside)

    return link


def without_line(name: str, number: int) -> Callable[[Path], object]:
    def cut(run: Path) -> None:
        lines = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(lines[:number] + lines[number + 1 :]))

    return cut


def trap_for_yaml(run: Path) -> None:
    marker = run.parent / "sprung"
    (run / "recipe.yaml").write_text(f"data: !!python/object/apply:os.mkdir ['{marker}']\n")


def config_in_place(run: Path, content: bytes) -> None:
    (run / "model" / "exemplars" / CONFIG).write_bytes(content)
    list_again(run)


STORE = "model/exemplars/"
SOME_SUM = b"0" * 64
DEEP = b"[" * 100_000
TAMPERED = {
    "manifest empty": replaced("manifest.json", b""),
    "manifest cut": replaced("manifest.json", b'{"training": '),
    "manifest of another type": replaced("manifest.json", b"[]"),
    "manifest null": replaced("manifest.json", b"null"),
    "manifest not trained": edited("manifest.json", '"training": {', '"training": null, "more": {'),
    "manifest with more": edited("manifest.json", "{", '{"more": 1, '),
    "manifest not text": replaced("manifest.json", b"\xff\xfe"),
    "manifest deep": replaced("manifest.json", DEEP),
    "recipe empty": replaced("recipe.yaml", b""),
    "recipe cut": replaced("recipe.yaml", b"data: ["),
    "recipe a list": replaced("recipe.yaml", b"- data\n- model\n"),
    "recipe trap": trap_for_yaml,
    "recipe unknown key": edited("recipe.yaml", "seed:", "sed:"),
    "recipe deep": replaced("recipe.yaml", b"data: " + DEEP),
    "recipe of another core": edited("recipe.yaml", "mode: joint", "mode: public"),
    "key empty": replaced("ledger.key", b""),
    "key not text": replaced("ledger.key", b"\xff" * 32),
    "key short": replaced("ledger.key", b"00" * 31 + b"\n"),
    "key of another": replaced("ledger.key", b"00" * 32 + b"\n"),
    "ledger empty": replaced("ledger.jsonl", b""),
    "ledger null": replaced("ledger.jsonl", b"null\n"),
    "ledger empty entry": replaced("ledger.jsonl", b"{}\n"),
    "ledger deep": replaced("ledger.jsonl", DEEP + b"\n"),
    "ledger edited": edited("ledger.jsonl", '"images": 91', '"images": 90'),
    "ledger without training": without_line("ledger.jsonl", 0),
    "ledger without deletion": without_line("ledger.jsonl", 1),
    "ledger link": linked("ledger.jsonl"),
    "sums empty": replaced(STORE + SUMS, b""),
    "sums not text": replaced(STORE + SUMS, b"\xff\xfe\n"),
    "sums a word": replaced(STORE + SUMS, b"word\n"),
    "sums parent": replaced(STORE + SUMS, SOME_SUM + b"  ../../recipe.yaml\n"),
    "sums strange name": replaced(STORE + SUMS, SOME_SUM + b"  config.json\n" + SOME_SUM + b"  ..\n"),
    "sums of config": edited(STORE + SUMS, "  config.json", "0  config.json"),
    "sums without config": without_line(STORE + SUMS, 1),
    "sums link": linked(STORE + SUMS),
    "config edited": edited(STORE + CONFIG, '"8"', '"eight"'),
    "config listed, empty": partial(config_in_place, content=b"{}"),
    "config listed, a number": partial(config_in_place, content=b"1"),
    "shard garbage": lambda run: shard_of(run).write_bytes(b"garbage" * 100),
    "shard empty": lambda run: shard_of(run).write_bytes(b""),
    "shard gone": lambda run: shard_of(run).unlink(),
    "shard cut": lambda run: os.truncate(shard_of(run), 1000),
    "shard pickle": trap_for_pickle,
    "shard pickle, listed": partial(trap_for_pickle, listed=True),
    "shard link": lambda run: linked(str(shard_of(run).relative_to(run)))(run),
    "shard float labels, listed": lambda run: with_tensors(run, labels=np.ones(808, np.float64)),
    "shard few labels, listed": lambda run: with_tensors(run, labels=np.ones(8, np.int64)),
    "shard flat ids, listed": lambda run: with_tensors(run, ids=np.ones(808, np.uint8)),
    "shard negative labels, listed": lambda run: with_tensors(run, labels=np.full(808, -1)),
    "shard label 1000, listed": lambda run: with_tensors(run, labels=np.array([1, 1000] * 404)),
    "exemplars link": linked("model/exemplars"),
    "model link": linked("model"),
    "receipts link": linked("receipts"),
    "receipt link": linked("receipts/0001.json"),
    "key link": linked("ledger.key"),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_run_that_was_tampered_with_is_refused(
    run: Path, tmp_path: Path, tamper: Callable[[Path], object]
) -> None:
    tamper(run)
    assert run.exists()
    with unchanged(tmp_path):
        refused("forget", run, "--class", "1")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "tamper",
    [
        edited("manifest.json", '"images": 96', '"images": 97'),
        edited("recipe.yaml", "seed: 0", "seed: 1"),
        edited("receipts/0001.json", '"removed": 91', '"removed": 90'),
        replaced("receipts/0001.json", b"{}"),
        replaced("receipts/0002.json", b"{}"),
        lambda run: (run / "receipts" / "0001.json").unlink(),
        lambda run: (run / STORE / "note.txt").write_text("hello"),
        lambda run: (run / "model" / "note.txt").write_text("hello"),
        lambda run: (run / "model" / "unet" / "config.json").unlink(),
        without_line("ledger.jsonl", 1),
        without_line("held_out.txt", 1),
        partial(trap_for_pickle, listed=True),
        TAMPERED["shard link"],
    ],
)
def test_a_verification_finds_what_was_tampered_with(
    run: Path, tmp_path: Path, tamper: Callable[[Path], object]
) -> None:
    assert run_command("verify", run).exit_code == 0
    tamper(run)
    with unchanged(tmp_path):
        result = run_command("verify", run)
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.stdout
    assert result.stderr == ""
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["safetensors", "sums"])
def test_a_deletion_refuses_links_among_what_it_takes_away_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("gen_unlearn.shards._TARGET_BYTES", 1)  # An exemplar to a shard, most in groups.
    data = random_images(1500, seed=0)
    run = make_run(tmp_path / "run", data)
    words, names = first_words(data.ids), ids_to_hex(data.ids)
    file = min(run.exemplars_path.glob(f"*.{kind}"))
    below = [bits_of(word).startswith(Piece.from_name(file.name).prefix) for word in words]
    linked(str(file.relative_to(run.path)))(run.path)
    with unchanged(tmp_path):
        said = refused("forget", run.path, "--id", names[below.index(True)])
    assert f"got {file}, a link to {tmp_path / 'outside'}" in said
    works("forget", run.path, "--id", names[words.argmax()])
    assert file.is_symlink()
    verified = run_command("verify", run.path)
    assert verified.exit_code == 1
    assert f"got {file}, a link to" in verified.stdout


def test_what_links_in_a_folder_to_purge_point_to_is_not_left_behind_in_silence(
    run: Path, tmp_path: Path
) -> None:
    pictures = run / "samples" / "1"
    pictures.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (pictures / "more").symlink_to(tmp_path / "disk")
    with unchanged(tmp_path):
        assert f"got {pictures / 'more'}, a link to" in refused("forget", run, "--class", "1")


def test_a_manifest_with_fewer_classes_is_refused(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"class_names": ["0"]}))
    with unchanged(run):
        facts = works("forget", run, "--class", "1", "--dry-run", "--out", tmp_path / "preview")
    assert facts["would_remove"].keys() == {"1"}, "the exemplars know their classes"
    with unchanged(tmp_path):
        assert "manifest.json was changed" in refused("forget", run, "--class", "1")


def plant_change(run: Path, key: RunKey, **commit: object) -> None:
    """Put a decided change into the run that does nothing, but for what is given, and seal it."""
    entries = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    files = {name: commit.pop(name) for name in ("new", "obsolete") if name in commit}
    harmless = {
        "stores": {"exemplars": {"new": [], "obsolete": []} | files},
        "receipt": None,
        "ledger_size": len(entries[0]),
        "line": entries[1].decode(),
        "purge": [],
        "private": [],
    }
    (run / ".change" / "exemplars").mkdir(parents=True)
    shutil.copy(run / STORE / SUMS, run / ".change" / "exemplars" / SUMS)
    (run / ".change" / "receipt.json").write_text("{}")
    fields = harmless | commit
    seal = key.seal("commit", json.dumps(fields, sort_keys=True))
    (run / ".change" / "commit.json").write_text(json.dumps({"seal": seal} | fields))


def test_a_change_is_finished_only_if_the_key_of_the_run_sealed_it(run: Path, tmp_path: Path) -> None:
    before = snapshot(run)
    plant_change(run, RunKey.from_file(run / "ledger.key"))
    assert works("verify", run)["passed"]
    assert snapshot(run) == before
    plant_change(run, RunKey.fresh())
    with unchanged(tmp_path):
        said = refused("verify", run)
    assert "was not written by this program" in said
    assert said.endswith("by hand")


@pytest.mark.parametrize(
    "commit",
    [
        {"purge": ["../victim"]},
        {"purge": ["../victim/file"]},
        {"purge": ["samples/../../victim"]},
        {"purge": ["{tmp}/victim"]},
        {"purge": ["."]},
        {"purge": [""]},
        {"purge": [".."]},
        {"obsolete": ["../../../victim/file"]},
        {"obsolete": ["{tmp}/victim/file"]},
        {"obsolete": ["../model_index.json"]},
        {"new": ["../../../victim/file"]},
        {"private": ["../victim/file"]},
        {"private": ["{tmp}/victim/file"]},
        {"private": ["ledger.key"]},
        {"private": 5},
        {"receipt": "../../victim/file"},
        {"receipt": "{tmp}/victim/file"},
        {"receipt": "../recipe.yaml"},
        {"more": 5},
        {"purge": ["model"]},
        {"purge": ["ledger.key"]},
        {"obsolete": [SUMS]},
        {"ledger_size": 0},
        {"ledger_size": -1},
        {"ledger_size": 10**6},
        {"line": "{}\n"},
        {"line": 5},
        {"new": 5},
    ],
    ids=str,
)
def test_a_planted_change_reaches_nothing(run: Path, tmp_path: Path, commit: dict[str, object]) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    planted = json.loads(json.dumps(commit).replace("{tmp}", str(tmp_path)))
    plant_change(run, RunKey.fresh(), **planted)
    with unchanged(tmp_path):
        refused("forget", run, "--class", "1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"{}",
        b"[]",
        b"null",
        DEEP,
    ],
    ids=lambda content: repr(content[:4]),
)
def test_a_planted_change_that_says_nothing_is_refused(run: Path, tmp_path: Path, content: bytes) -> None:
    plant_change(run, RunKey.from_file(run / "ledger.key"))
    (run / ".change" / "commit.json").write_bytes(content)
    with unchanged(tmp_path):
        refused("forget", run, "--class", "1")


def test_a_change_from_before_the_last_entry_is_not_finished_again(run: Path, tmp_path: Path) -> None:
    """Put back later, a change that this program sealed would cut the ledger back to where it was."""
    plant_change(run, RunKey.from_file(run / "ledger.key"))
    put_back = tmp_path / "kept"
    (run / ".change").rename(put_back)
    works("forget", run, "--class", "1")
    works("forget", run, "--class", "2")
    put_back.rename(run / ".change")
    with unchanged(tmp_path):
        assert "before the ledger's last entry" in refused("info", run)


@pytest.mark.parametrize("what", ["folder", "shards", "file"])
def test_a_planted_change_that_leads_elsewhere_reaches_nothing(run: Path, tmp_path: Path, what: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    before = snapshot(victim)
    if what == "folder":
        (run / ".change").symlink_to(victim)
    elif what == "shards":
        (run / ".change").mkdir()
        (run / ".change" / "exemplars").symlink_to(victim)
    else:
        (run / ".change").write_text("in the way")
    result = run_command("forget", run, "--class", "1")
    assert result.exit_code in (0, 2), result.exception
    assert (result.exit_code == 0) == (what == "shards"), "what a change left unfinished may be cleared up"
    assert snapshot(victim) == before


@dataclass
class FullDisk:
    """Be an `os.fsync` that finds the disk full once.

    Attributes:
        number: which time, from 1; counted down, so that it is 0 or less once it was full.
    """

    number: int
    flush: ClassVar[Callable[[int], None]] = staticmethod(os.fsync)

    def __call__(self, descriptor: int) -> None:
        self.number -= 1
        if self.number == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.flush(descriptor)


def test_a_full_disk_leaves_the_old_state_or_the_new_one_or_a_change_to_finish(
    run_without_threes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, number, found = tmp_path / "run", 0, []
    while True:
        number += 1
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(run_without_threes, run)
        before, disk = snapshot(run), FullDisk(number)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk)
            result = run_command("forget", run, "--class", "1")
        if disk.number > 0:
            break
        if result.exit_code == 0:
            found.append("new")
        elif snapshot(run) == before:
            assert result.stderr.splitlines() == ["error: [Errno 28] No space left on device"]
            found.append("old")
        else:
            assert result.stderr.startswith(
                f"error: the change of {run} is decided but could not be finished"
            )
            assert result.stderr.endswith("No space left on device; the next command will finish it\n")
            found.append("to finish")
        assert result.exit_code in (0, 2), result.exception
        if found[-1] != "old":
            assert works("verify", run)["passed"]
            assert not (run / ".change").exists()
            assert not (run / ".change.done").exists()
            assert len(list((run / "receipts").iterdir())) == 2
    assert result.exit_code == 0
    assert found == sorted(found, key=["old", "new", "to finish"].index), "once it is decided, it stays so"
    assert found.count("old") > 4
    assert found.count("to finish") > 4


@pytest.mark.parametrize("kilobytes", [1, 30])
def test_a_file_that_cannot_grow_leaves_the_old_state(run: Path, tmp_path: Path, kilobytes: int) -> None:
    def forget() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, 1024 * kilobytes))
        with unchanged(run):
            assert "too large" in refused("forget", run, "--class", "1")

    assert ended(fork(forget)) == 0
    with unchanged(tmp_path):
        assert works("verify", run)["passed"]


def as_nobody() -> None:
    """Give up the rights of root, which no file mode binds."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.fixture
def read_only(run_without_threes: Path) -> Iterator[Path]:
    """A copy of the run that belongs to nobody, who cannot write to it."""
    works("verify", run_without_threes)  # Imports what nobody may not be allowed to.
    folder = Path(tempfile.mkdtemp())
    run = Path(shutil.copytree(run_without_threes, folder / "run"))
    (run / ".lock").unlink()
    for path in (folder, run, *run.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield run
    for path in (folder, run, *run.rglob("*")):
        path.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


def test_a_run_that_cannot_be_written_is_left_alone(read_only: Path, tmp_path: Path) -> None:
    file = tmp_path / "new.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file)
    Image.init()  # Pillow imports its decoders when they are first needed, and nobody may not read them.

    def change() -> None:
        pixels = file.read_bytes()
        as_nobody()
        assert "Permission denied" in refused("forget", read_only, "--class", "1")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "new.png").write_bytes(pixels)
            assert "Permission denied" in refused("add", read_only, Path(folder) / "new.png", "--class", "1")

    with unchanged(read_only):
        assert ended(fork(change)) == 0


def test_a_run_that_cannot_be_written_can_be_read(read_only: Path) -> None:
    def read() -> None:
        as_nobody()
        assert works("verify", read_only)["passed"]

    with unchanged(read_only):
        assert ended(fork(read)) == 0
