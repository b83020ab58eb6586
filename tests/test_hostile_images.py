"""Hostile pictures and names of files: one line on standard error, and nothing changes."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, works
from PIL import Image
from run_factory import picture, trap_for_pickle, unchanged


@pytest.fixture
def run(run_without_threes: Path, tmp_path: Path) -> Path:
    """A run to try things on."""
    return Path(shutil.copytree(run_without_threes, tmp_path / "run"))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """Return a PNG file of 1-bit grey with any size in its header and any compressed data."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def text_bomb() -> bytes:
    """Return a PNG file with a comment that takes much more memory than it has bytes."""
    content = b"Comment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + content))
    small = png(8, 8, zlib.compress(bytes(16)))
    return small[:33] + chunk + small[33:]


PICTURES = {
    "truncated.jpg": lambda: encoded("JPEG")[:900],
    "truncated.png": lambda: encoded("PNG")[:900],
    "header.png": lambda: encoded("PNG")[:20],
    "empty.png": lambda: b"",
    "text.png": lambda: b"no picture\n" * 10,
    "script.svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "program.eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "pickle.png": lambda: pickle.dumps(np.zeros((8, 8))),
    "sixty-thousand.png": lambda: png(60000, 60000, zlib.compress(b"")),
    "bomb.png": lambda: png(14000, 14000, zlib.compress(bytes(14000 * (14000 // 8 + 1)), 9)),
    "comment.png": text_bomb,
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(PICTURES[name]())
    assert file.stat().st_size < 200_000
    with unchanged(tmp_path):
        for words in (["forget", run, "--image", file], ["forget", run, "--like", file]):
            assert name in refused(*words)
        assert name in refused("add", run, file, "--class", "1")
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(picture(run)[..., 0]).save(folder / "good.png")
    file.rename(folder / "hostile.png")
    with unchanged(tmp_path):
        assert "hostile.png" in refused("forget", run, "--image", folder)
        assert "hostile.png" in refused("add", run, folder, "--class", "1")


def test_what_a_file_is_called_does_not_matter(run: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(run)[..., 0]).save(tmp_path / "moving.png", "GIF")
    assert works("forget", run, "--image", tmp_path / "moving.png")["removed"] == 1


def test_a_link_out_of_a_folder_of_images_is_refused(run: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(run)[..., 0]).save(tmp_path / "outside.png")
    for target in (tmp_path / "outside.png", tmp_path):
        folder = tmp_path / f"folder-{target.name}"
        folder.mkdir()
        (folder / "link.png").symlink_to(target)
        with unchanged(tmp_path):
            assert "link" in refused("forget", run, "--image", folder)
            assert "link" in refused("add", run, folder, "--class", "1")


@pytest.mark.parametrize("place", ["", "preview", "model/exemplars", "receipts/../preview", "link/preview"])
def test_pictures_of_what_is_to_be_deleted_do_not_stay_in_the_run(
    run: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(run)
    out = tmp_path / "elsewhere" / place if place.startswith("link") else run / place
    with unchanged(tmp_path):
        said = refused("forget", run, "--class", "1", "--dry-run", "--out", out)
    assert "outside of the run" in said


def test_names_that_are_not_utf8_are_shown_escaped(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    name = Path(os.fsdecode(b"caf\xe9.png"))
    (folder / name).write_bytes(b"no picture")
    (folder / os.fsdecode(b"\xff.txt")).write_bytes(b"0" * 32 + b"\n")
    with unchanged(tmp_path):
        for path in (folder / name, folder):
            assert "caf" in refused("forget", run, "--image", path)
            assert "caf" in refused("forget", run, "--like", folder / name)
            assert "caf" in refused("add", run, path, "--class", "1")
        refused("forget", run, "--list", folder / os.fsdecode(b"\xff.txt"))
        refused("forget", folder / os.fsdecode(b"\xff"), "--class", "1")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["name", "bomb", "pickle"])
def test_a_process_refuses_in_one_line(run: Path, tmp_path: Path, what: str) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(file)).write_bytes(PICTURES["bomb.png" if what == "bomb" else "truncated.png"]())
    if what == "pickle":
        trap_for_pickle(run, listed=True)
    with unchanged(tmp_path):
        words = [sys.executable, "-m", "gen_unlearn", "forget", str(run), "--image", file]
        result = subprocess.run(words, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (2, b""), result.stderr
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.count(b"\n") == 1
    assert not (tmp_path / "sprung").exists()


def test_images_with_names_that_are_not_utf8_are_deleted(run: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(picture(run)[..., 0]).save(file)
    assert works("forget", run, "--image", file, "--reason", os.fsdecode(b"caf\xe9"))["removed"] == 1
    assert works("verify", run)["passed"]


def test_images_with_names_that_are_not_utf8_are_shown(run: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(picture(run)[..., 0]).save(file)
    works("forget", run, "--image", file, "--dry-run", "--out", tmp_path / "preview")
    names = {path.name for path in (tmp_path / "preview").iterdir()}
    assert names == {"table.csv", "contact_sheet.png"}
