"""What lies in a folder besides readable files, and what damaged files still give away."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from plants import Case, Subset, digits, encoded, parquet, recognise_nothing, sheet, store, subset

from gen_unlearn.data import IndexedImages
from gen_unlearn.decoding import decode_image
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.report.images import page_picture
from gen_unlearn.repro import image_ids
from gen_unlearn.residue import streams
from gen_unlearn.residue.search import DeletedImages, search_residue


@pytest.fixture(scope="module")
def case() -> Case:
    return digits()


def test_links_are_not_followed_but_listed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    store(tmp_path / "outside" / "store.safetensors", case.deleted)
    run = tmp_path / "run"
    run.mkdir()
    (run / "folder").symlink_to(tmp_path / "outside")
    (run / "file").symlink_to(tmp_path / "outside" / "store.safetensors")
    (run / "broken").symlink_to(tmp_path / "nothing")
    report = case.search(run)
    assert report.findings == ()
    assert report.files_searched == 0
    reason = "a symbolic link, which is not followed"
    assert report.not_searched == tuple((Path(name), reason) for name in ("broken", "file", "folder"))
    assert not report.clean


def test_pipes_are_listed_and_not_waited_for(case: Case, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert case.search(tmp_path).not_searched == ((Path("pipe"), "neither a file nor a folder"),)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_is_listed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0)
    (tmp_path / "file").write_text("secret")
    (tmp_path / "file").chmod(0)
    report = case.search(tmp_path)
    assert [path for path, _ in report.not_searched] == [Path("file"), Path("folder")]


def test_paths_are_searched(case: Case, tmp_path: Path) -> None:
    name, text = case.deleted.names[0], case.deleted.hex_ids[1]
    (tmp_path / "thumbs" / name).parent.mkdir(parents=True)
    (tmp_path / "thumbs" / name).touch()
    (tmp_path / text).mkdir()
    (tmp_path / text / "note.txt").write_text("nothing here")
    report = case.search(tmp_path)
    found = {(finding.path.as_posix(), finding.kind, finding.count) for finding in report.findings}
    assert found == {(f"thumbs/{name}", "file name", 1), (text, "id", 1)}


def test_skipped_files_and_folders_are_left_out(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "0001.json").write_text(case.deleted.hex_ids[0])
    (tmp_path / "kept.txt").write_text(case.deleted.hex_ids[0])
    assert len(case.search(tmp_path).findings) == 2
    report = case.search(tmp_path, skip=[tmp_path / "receipts"])
    assert [finding.path for finding in report.findings] == [Path("kept.txt")]
    monkeypatch.chdir(tmp_path)
    assert case.search(Path(), skip=[Path("receipts"), Path("kept.txt")]).clean


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def made(tmp_path: Path, some: Subset, plant: Callable[[Path, Subset], None]) -> bytes:
    path = tmp_path.with_name("made")
    plant(path, some)
    return path.read_bytes()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("note.txt", "nothing")
    return file.getvalue()


def damaged_array() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(100))
    return half(file.getvalue())


DAMAGED: dict[str, Callable[[Path, Subset], bytes]] = {
    "half.png": lambda path, some: half(made(path, some, sheet)),
    "not.png": lambda _path, _some: b"no picture",
    "half.parquet": lambda path, some: half(made(path, some, parquet)),
    "not.arrow": lambda _path, _some: b"no table at all",
    "half.safetensors": lambda path, some: half(made(path, some, store)),
    "not.safetensors": lambda _path, _some: b"no tensors",
    "half.npy": lambda _path, _some: damaged_array(),
    "half.npz": lambda _path, _some: half(archive()),
    "not.gz": lambda _path, _some: b"no gzip",
    "half.gz": lambda _path, _some: b"\x1f\x8b\x08" + bytes(20),
    "some.zst": lambda _path, _some: b"\x28\xb5\x2f\xfd" + bytes(20),
    "page.html": lambda _path, _some: b"<img src='data:image/png;base64,@'>",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_listed_and_their_bytes_searched(case: Case, tmp_path: Path, name: str) -> None:
    content = DAMAGED[name](tmp_path, case.retained)
    (tmp_path / name).write_bytes(content)
    report = case.search(tmp_path)
    assert report.findings == ()
    assert [path for path, _ in report.not_searched] == [Path(name)]
    (tmp_path / name).write_bytes(content + b" " + case.deleted.hex_ids[0].encode() + b" ")
    report = case.search(tmp_path)
    assert [(finding.path, finding.kind) for finding in report.findings] == [(Path(name), "id")]
    assert [path for path, _ in report.not_searched] == [Path(name)]


def test_what_decompresses_to_too_much_is_searched_in_part(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_DECOMPRESSED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros", case.deleted.hex_ids[0].encode() + bytes(1 << 23))
    report = case.search(tmp_path)
    assert [finding.kind for finding in report.findings] == ["id"]
    (gap,) = report.not_searched
    assert gap == (
        Path("bomb.zip"),
        "member 'zeros': only the first 1048576 decompressed bytes were searched",
    )


def test_archives_in_archives_end_somewhere(case: Case, tmp_path: Path) -> None:
    content = b"nothing"
    for _ in range(9):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("inner", content)
        content = file.getvalue()
    (tmp_path / "deep.zip").write_bytes(content)
    ((_, reason),) = case.search(tmp_path).not_searched
    assert "lie in one another" in reason


def test_pictures_like_bombs_are_listed(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    sheet(tmp_path / "sheet.png", case.deleted)
    ((_, reason),) = case.search(tmp_path).not_searched
    assert "decompression bomb" in reason


def test_an_image_of_one_colour_is_found_with_a_remark(tmp_path: Path) -> None:
    images = np.full((1, 8, 8, 1), 200, np.uint8)
    deleted = DeletedImages(image_ids(images), images)
    (tmp_path / "some.bin").write_bytes(b"head" + images.tobytes())
    Image.new("L", (500, 500), 200).save(tmp_path / "plot.png")
    (tmp_path / "short.bin").write_bytes(bytes([200] * 63))
    (finding,) = search_residue(tmp_path, deleted, recognise_nothing, (8, 8, 1)).findings
    assert (finding.path, finding.kind) == (Path("some.bin"), "pixels")
    assert "one colour all over" in finding.detail


def test_finds_what_the_report_shows_of_large_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 160, 200, 3), dtype=np.uint8)
    (tmp_path / "report.html").write_text(f'<img src="{page_picture(images[:2], 2).uri}">')
    for some, count in ((images[:1], 1), (images[2:], 0)):
        deleted = DeletedImages(image_ids(some), some)
        report = search_residue(tmp_path, deleted, recognise_nothing, images.shape[1:])
        assert [finding.kind for finding in report.findings] == ["picture"] * count


def test_finds_the_original_that_was_cropped_and_resized(tmp_path: Path) -> None:
    original = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    (tmp_path / "original.png").write_bytes(encoded(original))
    images = decode_image(original, size=(16, 16), channels=3)[None]
    deleted = DeletedImages(image_ids(images), images[:0])
    (finding,) = search_residue(tmp_path, deleted, recognise_nothing, (16, 16, 3)).findings
    assert finding.kind == "picture"


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_thumbnails_of_the_nearest_retained_images_are_no_residue(
    tmp_path: Path, quality: int, kind: str
) -> None:
    everything = np.concatenate([digits().deleted.images, digits().retained.images])
    flat = everything.reshape(len(everything), -1).astype(np.int16)
    distance = np.abs(flat[:, None] - flat).mean(axis=2) + 1000 * np.eye(len(flat))
    nearest = np.argsort(distance.min(axis=1))[:12]
    gone, kept = nearest, distance[nearest].argmin(axis=1)
    for number, row in enumerate(np.setdiff1d(kept, gone)):
        picture = Image.fromarray(everything[row, ..., 0])
        (tmp_path / str(number)).write_bytes(encoded(picture, kind, quality=quality))
    case = Case(subset(everything[gone], "gone"), subset(everything[kept], "kept"))
    assert case.search(tmp_path).clean


def test_a_report_is_json(case: Case, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(case.deleted.names[0])
    (tmp_path / "link").symlink_to("nowhere")
    assert json.loads(json.dumps(case.search(tmp_path).to_dict())) == {
        "clean": False,
        "files_searched": 1,
        "bytes_searched": len(case.deleted.names[0]),
        "findings": [{"path": "log.txt", "kind": "file name", "detail": "byte 0", "count": 1}],
        "not_searched": [{"path": "link", "reason": "a symbolic link, which is not followed"}],
    }


def test_mistakes_are_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder"):
        case.search(tmp_path / "nothing")
    deleted = DeletedImages(case.deleted.ids, case.deleted.images)
    with pytest.raises(ValueError, match="expected deleted images of shape"):
        search_residue(tmp_path, deleted, recognise_nothing, (9, 9, 1))
    (tmp_path / "id").write_text("0" * 32)
    with pytest.raises(ValueError, match="expected recognise"):
        search_residue(tmp_path, deleted, lambda ids: np.zeros(len(ids) + 1, bool), (8, 8, 1))
    with pytest.raises(ValueError, match="expected uint8 images"):
        DeletedImages(case.deleted.ids, case.deleted.images.astype(np.float32))
    with pytest.raises(ValueError, match="expected float32 tokens"):
        DeletedImages(case.deleted.ids, case.deleted.images, (), case.deleted.tokens.astype(np.float64))


def test_lists_of_every_type_in_tables(case: Case, tmp_path: Path) -> None:
    some = case.deleted
    flat = some.images.reshape(len(some.images), -1)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), 64)
    columns = {
        "fixed": fixed,
        "nulls": pa.array([None if row % 2 else flat[row].tolist() for row in range(len(flat))]),
        "ids": pa.array([row.tobytes() for row in some.ids], pa.binary(16)),
        "map": pa.array([[("name", name)] for name in some.names], pa.map_(pa.string(), pa.string())),
        "view": pa.array(list(some.names), pa.string_view()),
    }
    for name, column in columns.items():
        table = pa.table({name: column})
        with pa.ipc.new_file(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    pq.write_table(pa.table({"fixed": fixed.slice(3)}), tmp_path / "sliced.parquet")
    report = case.search(tmp_path)
    assert report.not_searched == ()
    kinds = {finding.path.stem: (finding.kind, finding.count) for finding in report.findings}
    assert kinds == {
        "fixed": ("pixels", 20),
        "nulls": ("pixels", 10),
        "ids": ("id", 20),
        "map": ("file name", 20),
        "view": ("file name", 20),
        "sliced": ("pixels", 17),
    }


def test_a_real_store_is_clean_after_a_deletion(few_images: IndexedImages, tmp_path: Path) -> None:
    gone = few_images.select(np.arange(4))
    deleted = DeletedImages(gone.ids, np.asarray(gone.images), gone.names)
    stored = ExemplarStore.from_images(few_images)
    stored.save_pretrained(tmp_path / "before")
    stored.delete(ForgetSet(gone.ids, "test"))
    stored.save_pretrained(tmp_path / "after")
    report = search_residue(tmp_path, deleted, recognise_nothing, few_images.image_shape)
    assert {(finding.path.parts[0], finding.kind, finding.count) for finding in report.findings} == {
        ("before", "pixels", 4),
        ("before", "id", 4),
    }
    assert search_residue(tmp_path / "after", deleted, recognise_nothing, few_images.image_shape).clean
