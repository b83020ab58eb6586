"""Adding exemplars: what is added is served and can be deleted again, and what was deleted stays out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run_command, tiny, works
from PIL import Image
from run_factory import snapshot

from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import ids_to_hex, image_ids
from gen_unlearn.runs import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a public core; the only one where every class but "7" is in the core."""
    out = tmp_path_factory.mktemp("add") / "run"
    works("train", *tiny(), "--set", "core.mode=public", "--set", "core.unseen_classes=['7']", "--out", out)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without exemplars."""
    out = tmp_path_factory.mktemp("add") / "plain"
    works("train", *tiny("digits_ddpm.yaml"), "--out", out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    """The run, to try things on."""
    return RunFolder(Path(shutil.copytree(trained, tmp_path / "run")))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Return random grey pictures, ``(count, 8, 8)``."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def save(pixels: np.ndarray, path: Path, **options: object) -> Path:
    """Save a grey picture, and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def ids_of(pixels: np.ndarray) -> list[str]:
    return ids_to_hex(image_ids(pixels[..., None]))


def held(run: RunFolder) -> dict[str, str]:
    """Return the class of every exemplar by its id."""
    folder = run.exemplar_folder()
    return {
        name: folder.class_names[label]
        for name, label in zip(ids_to_hex(folder.ids), folder.labels, strict=True)
    }


def refused_unchanged(run: RunFolder, *words: object) -> str:
    before = snapshot(run.path)
    said = refused(*words)
    assert snapshot(run.path) == before
    return said


def test_a_file_is_added_to_a_class(run: RunFolder, tmp_path: Path) -> None:
    (pixels,) = pictures(1)
    before, weights = held(run), (run.model_path / "unet" / "config.json").stat().st_mtime_ns
    file = save(pixels, tmp_path / "new.png")
    facts = works("add", run.path, file, "--class", "4")
    assert facts == {"added": 1, "already_there": 0}
    assert held(run) == before | {ids_of(pixels[None])[0]: "4"}
    assert (run.model_path / "unet" / "config.json").stat().st_mtime_ns == weights
    assert works("verify", run.path)["passed"]


def test_files_are_added_to_the_classes_that_their_folders_are_named_after(
    run: RunFolder, tmp_path: Path
) -> None:
    pixels = pictures(5)
    before = held(run)
    for number, label in enumerate("11229"):
        save(pixels[number], tmp_path / "new" / label / "deeper" / f"{number}.png")
    assert works("add", run.path, tmp_path / "new") == {"added": 5, "already_there": 0}
    assert held(run) == before | dict(zip(ids_of(pixels), "11229", strict=True))
    assert works("verify", run.path)["passed"]


def test_the_class_that_is_named_counts_for_all(run: RunFolder, tmp_path: Path) -> None:
    pixels = pictures(3)
    for number in range(3):
        save(pixels[number], tmp_path / "new" / "upload" / f"{number}.png")
    works("add", run.path, tmp_path / "new", "--class", "8")
    assert {held(run)[name] for name in ids_of(pixels)} == {"8"}


def test_other_pictures_are_converted_as_the_data_was(run: RunFolder, tmp_path: Path) -> None:
    save(np.repeat(np.repeat(pictures(1)[0], 4, 0), 4, 1), tmp_path / "large.png")
    before = len(held(run))
    works("add", run.path, tmp_path / "large.png", "--class", "1")
    folder = run.exemplar_folder()
    assert len(folder) == before + 1
    assert folder.image_shape == (8, 8, 1)
    folder.verify()


def test_a_dry_run_adds_nothing(run: RunFolder, tmp_path: Path) -> None:
    for number, pixels in enumerate(pictures(3)):
        save(pixels, tmp_path / "new" / "1" / f"{number}.png")
    before = snapshot(run.path)
    assert works("add", run.path, tmp_path / "new", "--dry-run") == {"would_add": 3}
    assert snapshot(run.path) == before
    assert "would add up to 3 images" in run_command("add", run.path, tmp_path / "new", "--dry-run").stdout


def test_what_is_there_is_not_added_again(run: RunFolder, tmp_path: Path) -> None:
    pixels = pictures(2)
    rows = run.exemplar_folder().all_rows()
    save(pixels[0], tmp_path / "new" / "1" / "first.png")
    save(pixels[0], tmp_path / "new" / "1" / "again.png")
    save(rows.pixels[0][..., 0], tmp_path / "new" / str(rows.labels[0]) / "held.png")
    count = len(rows.ids)
    assert works("add", run.path, tmp_path / "new") == {"added": 1, "already_there": 2}
    assert len(run.exemplar_folder()) == count + 1
    before = snapshot(run.path)
    assert works("add", run.path, tmp_path / "new") == {"added": 0, "already_there": 3}
    assert snapshot(run.path) == before, "nothing was new, so nothing is in the ledger"
    assert len(run.ledger.entries) == 2


def test_an_image_may_be_in_two_classes_and_is_deleted_from_both(run: RunFolder, tmp_path: Path) -> None:
    file = save(pictures(1)[0], tmp_path / "new.png")
    before = snapshot(run.model_path)
    for label in ("1", "2"):
        assert works("add", run.path, file, "--class", label)["added"] == 1
    assert works("forget", run.path, "--image", file)["removed_per_class"] == {"1": 1, "2": 1}
    assert snapshot(run.model_path) == before


def test_adding_and_deleting_leaves_no_trace_in_the_model(run: RunFolder, tmp_path: Path) -> None:
    before = snapshot(run.model_path)
    for number, pixels in enumerate(pictures(40)):
        save(pixels, tmp_path / "new" / str(number % 10) / f"{number}.png")
    works("add", run.path, tmp_path / "new")
    assert snapshot(run.model_path) != before
    assert works("forget", run.path, "--image", tmp_path / "new")["removed"] == 40
    assert snapshot(run.model_path) == before
    assert works("verify", run.path)["passed"]


def test_what_is_added_makes_the_store_that_a_fresh_one_would_be(run: RunFolder, tmp_path: Path) -> None:
    pixels = pictures(30)
    rows = run.exemplar_folder().all_rows()
    for number in range(30):
        save(pixels[number], tmp_path / "new" / "5" / f"{number}.png")
        if number % 10 == 9:
            works("add", run.path, tmp_path / "new")
    images = np.concatenate([pixels[..., None], rows.pixels])
    labels = np.concatenate([np.full(30, 5), rows.labels])
    names = run.manifest.class_names
    data = IndexedImages(images, labels, image_ids(images), names, ("",) * len(images))
    ExemplarStore.from_images(data).save_pretrained(tmp_path / "fresh")
    assert snapshot(tmp_path / "fresh") == snapshot(run.exemplars_path)


def test_what_is_added_is_served(run: RunFolder, tmp_path: Path) -> None:
    works("forget", run.path, "--class", "7")
    pipeline = run.load_pipeline()
    assert isinstance(pipeline, SemiParametricDDPMPipeline)
    assert pipeline.exemplars is not None
    assert not len(pipeline.exemplars.by_class(7))
    save(pictures(1)[0], tmp_path / "new.png")
    works("add", run.path, tmp_path / "new.png", "--class", "7")
    facts = works("sample", run.path, "--class", "7", "--count", "2", "--out", tmp_path / "samples")
    assert facts["images"] == 2


def test_the_ledger_tells_of_an_addition_and_there_is_no_receipt(run: RunFolder, tmp_path: Path) -> None:
    count = len(run.exemplar_folder())
    for number, pixels in enumerate(pictures(3)):
        save(pixels, tmp_path / "new" / "1" / f"{number}.png")
    works("add", run.path, tmp_path / "new")
    entry = run.ledger.entries[-1]
    assert (entry.kind, entry.images, entry.remaining) == ("added", 3, count + 3)
    assert (entry.receipt, entry.receipt_sum, entry.level, entry.tombstones) == (None, None, None, ())
    assert entry.describes(run.exemplar_folder().digest, run.key)
    assert not run.receipts_path.exists()
    text = run.ledger_path.read_text()
    assert not [name for name in ids_of(pictures(3)) if name in text], "an id would tell who is in the run"


def test_what_was_deleted_stays_out(run: RunFolder, tmp_path: Path) -> None:
    pixels = run.exemplar_folder().all_rows().pixels[3][..., 0]
    file = save(pixels, tmp_path / "taken back.png")
    works("forget", run.path, "--image", file)
    again = save(pixels, tmp_path / "again.png", compress_level=1)
    colour = tmp_path / "colour.png"
    Image.fromarray(pixels).convert("RGB").save(colour)
    bitmap = save(pixels, tmp_path / "again.bmp")
    assert len({path.read_bytes() for path in (again, colour, bitmap)}) == 3
    for path in (file, again, colour, bitmap):
        said = refused_unchanged(run, "add", run.path, path, "--class", "1")
        assert "were deleted from this run, and stay deleted" in said
        assert path.name in said
    folder = tmp_path / "folder" / "1"
    save(pixels, folder / "bad.png")
    save(pictures(1)[0], folder / "good.png")
    said = refused_unchanged(run, "add", run.path, tmp_path / "folder")
    assert said.startswith("error: 1 of 2 images were deleted")
    (folder / "bad.png").unlink()
    assert works("add", run.path, tmp_path / "folder")["added"] == 1
    assert works("verify", run.path)["passed"]


def test_what_was_added_and_deleted_stays_out(run: RunFolder, tmp_path: Path) -> None:
    file = save(pictures(1)[0], tmp_path / "new.png")
    works("add", run.path, file, "--class", "1")
    works("forget", run.path, "--image", file)
    assert "stay deleted" in refused_unchanged(run, "add", run.path, file, "--class", "1")


def test_held_out_and_core_images_are_refused(run: RunFolder, tmp_path: Path) -> None:
    split = run.load_split()
    train = split.train
    core = train.select(train.rows_of(run.core_ids[:1])).all_images()[0][..., 0]
    save(split.test.all_images()[0][..., 0], tmp_path / "held out.png")
    save(core, tmp_path / "core.png")
    said = refused_unchanged(run, "add", run.path, tmp_path / "held out.png", "--class", "1")
    assert "1 of 1 images are held out for testing" in said
    said = refused_unchanged(run, "add", run.path, tmp_path / "core.png", "--class", "1")
    assert "1 of 1 images are in the public core already" in said


def test_unknown_classes_are_refused(run: RunFolder, tmp_path: Path) -> None:
    file = save(pictures(1)[0], tmp_path / "new" / "eleven" / "new.png")
    assert "'eleven'" in refused_unchanged(run, "add", run.path, file, "--class", "eleven")
    assert "'10'" in refused_unchanged(run, "add", run.path, file, "--class", "10")
    said = refused_unchanged(run, "add", run.path, tmp_path / "new")
    assert "eleven" in said
    assert "--class" in said
    for source in (file, file.parent):
        assert "--class" in refused_unchanged(run, "add", run.path, source)


def test_a_folder_with_images_at_two_levels_is_refused(run: RunFolder, tmp_path: Path) -> None:
    save(pictures(1)[0], tmp_path / "new" / "1" / "new.png")
    save(pictures(1)[0], tmp_path / "new" / "new.png")
    assert "got both" in refused_unchanged(run, "add", run.path, tmp_path / "new")


def test_a_model_without_exemplars_takes_none(plain: Path, tmp_path: Path) -> None:
    file = save(pictures(1)[0], tmp_path / "new.png")
    assert "class-conditional" in refused_unchanged(RunFolder(plain), "add", plain, file, "--class", "1")
