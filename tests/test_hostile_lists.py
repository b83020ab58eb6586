"""Hostile lists, ids and options: one line on standard error, and nothing changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import refused, works
from PIL import Image
from run_factory import picture, unchanged

from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.repro import ids_to_hex


@pytest.fixture
def run(run_without_threes: Path, tmp_path: Path) -> Path:
    """A run to try things on."""
    return Path(shutil.copytree(run_without_threes, tmp_path / "run"))


@pytest.mark.parametrize(
    "words",
    [
        ["forget", "{run}", "--image", "{tmp}/none"],
        ["forget", "{run}", "--image", "{tmp}/missing.png"],
        ["forget", "{run}", "--like", "{tmp}/none"],
        ["add", "{run}", "{tmp}/none", "--class", "1"],
        ["add", "{run}", "{tmp}/missing.png", "--class", "1"],
        ["forget", "{run}", "--list", "{tmp}/none"],
        ["forget", "{run}/recipe.yaml", "--class", "1"],
        ["forget", "{run}/model", "--class", "1"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_refused(run: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "none" / "deeper").mkdir(parents=True)
    (tmp_path / "none" / "notes.txt").write_text("no image")
    with unchanged(tmp_path):
        refused(*(word.format(run=run, tmp=tmp_path) for word in words))


LISTS = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "comments": b"# one\n# two\n",
    "header only": b"id\n",
    "nul": b"\0\0\0\n",
    "nul in a name": b"one\0.png\n",
    "latin-1": "h\u00e4user.png\n".encode("latin-1"),
    "utf-16": "inside.png\n".encode("utf-16"),
    "parent": b"../outside.png\n",
    "hidden parent": b"folder/../../outside.png\n",
    "absolute": b"{tmp}/outside.png\n",
    "root": b"/etc/passwd\n",
    "home": b"~/outside.png\n",
    "link out": b"link.png\n",
    "folder": b"folder\n",
    "itself": b"list.txt\n",
    "device": b"/dev/zero\n",
    "unicode digits": ("\uff11" * 32).encode() + b"\n",
    "short id": b"0123456789abcdef\n",
    "long id": b"0" * 33 + b"\n",
    "unknown id": b"0" * 32 + b"\n",
    "binary": bytes(range(256)),
    "long line": b"x" * 100_000 + b"\n",
    "one good, one not": b"inside.png\nmissing.png\n",
}


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize("name", LISTS)
def test_a_hostile_list_is_refused(run: Path, tmp_path: Path, name: str, suffix: str) -> None:
    folder = tmp_path / "lists"
    (folder / "folder").mkdir(parents=True)
    Image.fromarray(picture(run)[..., 0]).save(tmp_path / "outside.png")
    Image.fromarray(picture(run)[..., 0]).save(folder / "inside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    path = folder / f"list{suffix}"
    path.write_bytes(LISTS[name].replace(b"{tmp}", os.fsencode(tmp_path)).replace(b".txt", suffix.encode()))
    with unchanged(tmp_path):
        refused("forget", run, "--list", path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfinside.png\r\n",
        b"\xef\xbb\xbfid\r\n{id}\r\n\r\n",
        b"# a list\r\n\r\n  {ID}  \r\n",
        b"file\n./folder/../inside.png\n",
        b"inside.png\ninside.png\n{id}\n",
    ],
)
def test_lists_of_other_systems_are_read(run: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "folder").mkdir()
    Image.fromarray(picture(run)[..., 0]).save(tmp_path / "inside.png")
    name = ids_to_hex(ExemplarFolder.open(run / "model" / "exemplars").ids[:1])[0].encode()
    (tmp_path / "list.txt").write_bytes(content.replace(b"{id}", name).replace(b"{ID}", name.upper()))
    assert works("forget", run, "--list", tmp_path / "list.txt")["ids"] == [name.decode()]


@pytest.mark.parametrize(
    "words",
    [
        ["--fraction", "0"],
        ["--fraction", "-1"],
        ["--fraction", "nan"],
        ["--fraction", "inf"],
        ["--fraction", "2"],
        ["--fraction", "1e-9"],
        ["--class", "1", "--near-duplicates", "0"],
        ["--class", "1", "--near-duplicates", "2"],
        ["--class", "1", "--near-duplicates", "nan"],
        ["--class", "1", "--near-duplicates", "-0.5"],
        ["--near-duplicates", "0.9"],
        ["--skip-unknown"],
        ["--class", ""],
        ["--class", " 1"],
        ["--class", "\uff11"],
        ["--class", "-1"],
        ["--class", "10"],
        ["--class", "1\n2"],
        ["--class", "../1"],
        ["--class", "1\0"],
        ["--class", "\udcff"],
        ["--class", "1", "--class", "eleven"],
        ["--id", ""],
        ["--id", "0" * 31],
        ["--id", "0" * 33],
        ["--id", "\uff11" * 32],
        ["--id", "0x" + "0" * 30],
        ["--id", "-" + "0" * 31],
        ["--id", "\udcff" * 32],
        ["--image", ""],
        ["--image", "a\0b.png"],
        ["--class", "1", "--wait", "soon"],
    ],
    ids=lambda words: ascii(" ".join(words)),
)
def test_hostile_options_are_refused(run: Path, tmp_path: Path, words: list[str]) -> None:
    with unchanged(tmp_path):
        refused("forget", run, *words)


@pytest.mark.parametrize(
    "words",
    [["--class", "eleven"], ["--fraction", "nan"], ["--class", "1", "--near-duplicates", "2"], ["--id", "0"]],
    ids=" ".join,
)
def test_a_dry_run_of_nonsense_shows_nothing(run: Path, tmp_path: Path, words: list[str]) -> None:
    with unchanged(tmp_path):
        refused("forget", run, *words, "--dry-run", "--out", tmp_path / "preview")


@pytest.mark.parametrize("wait", ["nan", "-1"])
def test_a_wait_that_never_ends_is_refused(run: Path, tmp_path: Path, wait: str) -> None:
    with unchanged(tmp_path):
        refused("forget", run, "--class", "1", "--wait", wait)


def test_an_id_in_upper_case_or_in_groups_is_an_id(run: Path) -> None:
    first, second = ids_to_hex(ExemplarFolder.open(run / "model" / "exemplars").ids[:2])
    grouped = " ".join(second[start : start + 4] for start in range(0, 32, 4))
    assert works("forget", run, "--id", first.upper(), "--id", grouped)["ids"] == [first, second]


def test_an_unknown_id_in_groups_is_refused_with_its_name(run: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        said = refused("forget", run, "--id", "00000000 00000000 00000000 00000000")
    assert "are not among the exemplars" in said
