"""Every kind of request finds the right images, and a dry run shows them and deletes nothing."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, tiny, works
from PIL import Image
from run_factory import snapshot

from gen_unlearn.decoding import decode_image
from gen_unlearn.repro import ids_to_hex, image_id
from gen_unlearn.runs import RunFolder

CLASSES = ("cats", "dogs", "owls")
FOLDER = {
    "data.test_fraction": "0.2",
    "model.attention_head_dim": "8",
    "model.down_block_types": "[DownBlock2D, DownBlock2D]",
    "model.up_block_types": "[UpBlock2D, UpBlock2D]",
}
Row = dict[str, str]


@dataclass(frozen=True)
class Shop:
    """Runs that tests share and must not change, and the folder that the images of one came from.

    `photos` is of a folder of pictures of 32x32, `digits` of the handwritten digits, `public` of digits with
    a public core.
    """

    source: Path
    photos: RunFolder
    digits: RunFolder
    public: RunFolder

    def files(self) -> list[Path]:
        """Return the files of the source."""
        return sorted(self.source.rglob("*.png"))

    def held(self) -> list[Path]:
        """Return the files that are exemplars of `photos`, but for twins and what is there twice."""
        known = set(ids_to_hex(self.photos.exemplar_folder().ids))
        return [file for file in self.files() if id_of(file) in known and file.stem.startswith("photo")]

    def held_out(self) -> list[Path]:
        """Return the files that are held out from `photos`."""
        known = set(ids_to_hex(self.photos.held_out_ids))
        return [file for file in self.files() if id_of(file) in known]


def id_of(file: Path, size: int = 32, channels: int = 3) -> str:
    return ids_to_hex(image_id(decode_image(file, size=(size, size), channels=channels))[None])[0]


def photo(seed: int) -> Image.Image:
    """Return a smooth random picture of 32x32."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)


def save_again(file: Path, out: Path, quality: int = 85) -> Path:
    """Save a picture as JPEG, which changes its pixels."""
    with Image.open(file) as image:
        image.convert("RGB").save(out, "JPEG", quality=quality)
    return out


def make_source(folder: Path, images: int, twins: int) -> None:
    """Write pictures of each class, altered copies of some of the first, and one that is in two."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            photo(100 * label + number).save(folder / name / f"photo{number:02d}.png")
    for number in range(twins):
        copy = save_again(folder / "cats" / f"photo{number:02d}.png", folder / "copy.jpg")
        with Image.open(copy) as image:
            image.save(folder / "owls" / f"twin{number:02d}.png")
        copy.unlink()
    for name in ("cats", "dogs"):
        photo(1000).save(folder / name / "both.png")


def train_on(source: Path, out: Path, **core: str) -> RunFolder:
    """Train the folder recipe, made tiny."""
    settings = {**FOLDER, "data.source": source} | {f"core.{key}": value for key, value in core.items()}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    works("train", *tiny("folder_spm.yaml"), *words, "--out", out)
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("requests")
    make_source(root / "source", images=40, twins=3)
    photos = train_on(root / "source", root / "photos")
    works("train", *tiny(), "--out", root / "digits")
    works("train", *tiny(), "--set", "core.mode=public", "--out", root / "public")
    return Shop(root / "source", photos, *(RunFolder.open(root / name) for name in ("digits", "public")))


def plan(run: RunFolder, out: Path, *words: object) -> tuple[list[Row], list[str]]:
    """Do a dry run; return the rows of its table and its notes, and hold that the run stays as it is."""
    before = snapshot(run.path)
    facts = works("forget", run.path, *words, "--dry-run", "--out", out)
    assert snapshot(run.path) == before
    assert {path.name for path in out.iterdir()} == {"table.csv", "contact_sheet.png"}
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {name: [row["class"] for row in rows].count(name) for name in run.manifest.class_names}
    assert facts["would_remove"] == {name: count for name, count in counts.items() if count}
    return rows, facts["notes"]


def planned_ids(run: RunFolder, out: Path, *words: object) -> list[str]:
    """Return the ids of a dry run that has nothing to remark."""
    rows, notes = plan(run, out, *words)
    assert notes == []
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    return [row["id"] for row in rows]


def unknown_picture(path: Path, size: int = 32) -> Path:
    """Write noise."""
    noise = np.random.default_rng(5).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_an_image_file(shop: Shop, tmp_path: Path) -> None:
    file = shop.held()[0]
    rows, notes = plan(shop.photos, tmp_path / "out", "--image", file)
    assert notes == []
    assert rows == [
        {
            "id": id_of(file),
            "class": file.parent.name,
            "found as": f"image {file}",
            "similarity": "1.000",
            "sheet": "1",
            "row": "1",
            "column": "1",
        }
    ]


def test_image_files_and_folders_of_them(shop: Shop, tmp_path: Path) -> None:
    first, *others = shop.held()[:4]
    for number, file in enumerate(others):
        folder = tmp_path / "folder" / f"deep{number}"
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "renamed.png")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    found = planned_ids(shop.photos, tmp_path / "out", "--image", first, "--image", tmp_path / "folder")
    assert found == sorted(map(id_of, [first, *others]))


def test_an_image_of_two_classes_is_deleted_from_both(shop: Shop, tmp_path: Path) -> None:
    file = shop.source / "cats" / "both.png"
    rows, _ = plan(shop.photos, tmp_path / "out", "--image", file)
    assert [(row["id"], row["class"]) for row in rows] == [(id_of(file), "cats"), (id_of(file), "dogs")]


def test_an_image_of_the_digits(shop: Shop, tmp_path: Path) -> None:
    rows = shop.digits.exemplar_folder().all_rows()
    Image.fromarray(rows.pixels[5][..., 0]).save(tmp_path / "digit.png")
    (row,), _ = plan(shop.digits, tmp_path / "out", "--image", tmp_path / "digit.png")
    assert row["id"] == ids_to_hex(rows.ids[5:6])[0]
    assert row["class"] == str(rows.labels[5])


def test_ids(shop: Shop, tmp_path: Path) -> None:
    ids = ids_to_hex(shop.digits.exemplar_folder().ids[10:14])
    words = ["--id", ids[2], "--id", ids[0].upper(), "--id", ids[2]]
    assert planned_ids(shop.digits, tmp_path / "out", *words) == [ids[0], ids[2]]
    (tmp_path / "ids.txt").write_text("# ids\n" + "\n".join(ids))
    assert planned_ids(shop.digits, tmp_path / "out", "--list", tmp_path / "ids.txt") == ids


def test_file_names_relative_to_the_list_or_to_the_source(shop: Shop, tmp_path: Path) -> None:
    near, far = shop.held()[0], shop.held()[30]
    shutil.copy(near, tmp_path / "near.png")
    (tmp_path / "list.txt").write_text(f"near.png\n{far.relative_to(shop.source)}\n")
    found = planned_ids(shop.photos, tmp_path / "out", "--list", tmp_path / "list.txt")
    assert found == sorted([id_of(near), id_of(far)])
    (tmp_path / "list.csv").write_text(f"file,why\nnear.png,consent\n{far.relative_to(shop.source)},\n")
    assert planned_ids(shop.photos, tmp_path / "out", "--list", tmp_path / "list.csv") == found


def test_a_file_beside_the_list_comes_before_one_of_the_source(shop: Shop, tmp_path: Path) -> None:
    near, far = shop.held()[0], shop.held()[30]
    name = far.relative_to(shop.source)
    (tmp_path / name).parent.mkdir()
    shutil.copy(near, tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{name}\n")
    assert planned_ids(shop.photos, tmp_path / "out", "--list", tmp_path / "list.txt") == [id_of(near)]


@pytest.mark.parametrize("words", [["--class", "cats"], ["--fraction", "0.2", "--seed", "3"]], ids=" ".join)
def test_the_table_of_a_dry_run_is_a_list(shop: Shop, tmp_path: Path, words: list[str]) -> None:
    found = planned_ids(shop.photos, tmp_path / "out", *words)
    again = planned_ids(shop.photos, tmp_path / "again", "--list", tmp_path / "out" / "table.csv")
    assert again == found


def test_what_a_dry_run_shows_is_what_is_deleted(shop: Shop, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shop.photos.path, tmp_path / "run")))
    found = planned_ids(run, tmp_path / "out", "--class", "dogs")
    receipt = works("forget", run.path, "--class", "dogs")
    assert receipt["ids"] == sorted(set(found))
    assert receipt["removed"] == len(found)
    assert receipt["reason"] == "class dogs"
    assert (
        not run.exemplar_folder().holds(np.array([list(bytes.fromhex(one)) for one in found], np.uint8)).any()
    )


@pytest.mark.parametrize("name", ["dogs", "1"])
def test_a_class(shop: Shop, tmp_path: Path, name: str) -> None:
    rows, _ = plan(shop.photos, tmp_path / "out", "--class", name)
    folder = shop.photos.exemplar_folder()
    both = id_of(shop.source / "cats" / "both.png")
    assert [row["id"] for row in rows if row["class"] == "dogs"] == ids_to_hex(folder.ids[folder.labels == 1])
    assert [row["id"] for row in rows if row["class"] != "dogs"] == [both], "one image, one request"
    assert {row["found as"] for row in rows} == {f"class {name}"}


def test_classes_by_name_where_names_are_numbers(shop: Shop, tmp_path: Path) -> None:
    folder = shop.digits.exemplar_folder()
    found = planned_ids(shop.digits, tmp_path / "out", "--class", "7", "--class", "2")
    assert found == ids_to_hex(folder.ids[np.isin(folder.labels, [2, 7])])


def test_a_random_share(shop: Shop, tmp_path: Path) -> None:
    def drawn(fraction: float, seed: int) -> set[str]:
        words = ["--fraction", fraction, "--seed", seed]
        return set(planned_ids(shop.digits, tmp_path / "out", *words))

    count = len(shop.digits.exemplar_folder())
    tenth = drawn(0.1, 0)
    assert len(tenth) == round(0.1 * count)
    assert drawn(0.1, 0) == tenth
    assert drawn(0.2, 0) > tenth
    assert drawn(0.1, 1) != tenth
    assert len(drawn(1, 0)) == count


def test_what_is_asked_for_in_several_ways_is_deleted_together(shop: Shop, tmp_path: Path) -> None:
    file = next(file for file in shop.held() if file.parent.name == "cats")
    other = next(file for file in shop.held() if file.parent.name == "owls")
    words = ["--class", "dogs", "--image", file, "--id", id_of(other)]
    rows, _ = plan(shop.photos, tmp_path / "out", *words)
    how = {row["id"]: row["found as"] for row in rows}
    assert how[id_of(file)] == f"image {file}"
    assert how[id_of(other)] == "id"
    assert set(how.values()) == {"class dogs", f"image {file}", "id"}
    run = Path(shutil.copytree(shop.photos.path, tmp_path / "run"))
    assert works("forget", run, *words)["reason"] == "class dogs and 1 image file and 1 id"


def twins(shop: Shop) -> list[tuple[Path, Path]]:
    """Return pairs of exemplars one of which is an altered copy of the other."""
    known = set(ids_to_hex(shop.photos.exemplar_folder().ids))
    pairs = [
        (shop.source / "cats" / f"photo{n:02d}.png", shop.source / "owls" / f"twin{n:02d}.png")
        for n in range(3)
    ]
    return [pair for pair in pairs if {id_of(pair[0]), id_of(pair[1])} <= known]


def test_near_duplicates_of_what_is_asked_for(shop: Shop, tmp_path: Path) -> None:
    image, twin = twins(shop)[0]
    assert id_of(image) != id_of(twin)
    rows, notes = plan(shop.photos, tmp_path / "out", "--image", image, "--near-duplicates", "0.95")
    assert notes == []
    found = {row["id"]: row for row in rows}
    assert set(found) == {id_of(image), id_of(twin)}
    assert found[id_of(twin)]["found as"] == f"near-duplicate of {id_of(image)[:8]}..."
    assert 0.95 <= float(found[id_of(twin)]["similarity"]) < 1
    assert planned_ids(shop.photos, tmp_path / "out", "--image", image) == [id_of(image)]
    words = ["--id", id_of(twin), "--near-duplicates", "0.95"]
    assert set(planned_ids(shop.photos, tmp_path / "out", *words)) == set(found)


def test_everything_like_an_image(shop: Shop, tmp_path: Path) -> None:
    image, twin = twins(shop)[0]
    copy = save_again(image, tmp_path / "copy.jpg")
    rows, _ = plan(shop.photos, tmp_path / "out", "--like", copy)
    assert {row["id"] for row in rows} == {id_of(image), id_of(twin)}
    assert {row["found as"] for row in rows} == {f"like {copy}"}
    words = ["--like", copy, "--near-duplicates", "0.01"]
    assert set(planned_ids(shop.photos, tmp_path / "out", *words)) > {id_of(image), id_of(twin)}


def test_nothing_like_an_image(shop: Shop, tmp_path: Path) -> None:
    noise = unknown_picture(tmp_path / "noise.png")
    assert "noise.png" in refused("forget", shop.photos.path, "--like", noise)


@pytest.mark.parametrize("alter", ["jpeg", "mirrored", "larger"])
def test_a_copy_stands_for_the_image(shop: Shop, tmp_path: Path, alter: str) -> None:
    """The source has no altered copies of the last images of its classes."""
    file = next(file for file in reversed(shop.held()) if file.parent.name == "dogs")
    copy = tmp_path / "copy.jpg"
    if alter == "jpeg":
        save_again(file, copy)
    else:
        with Image.open(file) as image:
            changed = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            (changed if alter == "mirrored" else image.resize((96, 96))).save(copy, quality=85)
    assert id_of(copy) != id_of(file)
    (row,), notes = plan(shop.photos, tmp_path / "out", "--image", copy)
    assert notes == []
    assert row["id"] == id_of(file)
    assert row["found as"] == f"copy of {copy}"
    assert 0.5 < float(row["similarity"]) <= 1
    run = Path(shutil.copytree(shop.photos.path, tmp_path / "run"))
    assert works("forget", run, "--image", copy)["ids"] == [id_of(file)]


def test_a_copy_stands_for_the_image_where_many_images_have_near_duplicates(tmp_path: Path) -> None:
    make_source(tmp_path / "source", images=20, twins=20)
    run = train_on(tmp_path / "source", tmp_path / "run")
    known = set(ids_to_hex(run.exemplar_folder().ids))
    file = next(file for file in (tmp_path / "source" / "cats").iterdir() if id_of(file) in known)
    copy = save_again(file, tmp_path / "copy.jpg", quality=70)
    rows, _ = plan(run, tmp_path / "out", "--image", copy)
    assert id_of(file) in {row["id"] for row in rows}


def test_held_out_images_are_noted(shop: Shop, tmp_path: Path) -> None:
    out, kept = shop.held_out()[0], shop.held()[0]
    rows, notes = plan(shop.photos, tmp_path / "out", "--image", out, "--image", kept)
    assert [row["id"] for row in rows] == [id_of(kept)]
    assert notes == [f"1 of 2 are held out for testing and in no model: {out}"]
    rows, notes = plan(shop.photos, tmp_path / "out", "--id", id_of(out), "--class", "owls")
    assert notes == [f"1 of 1 are held out for testing and in no model: {id_of(out)}"]
    assert {row["class"] for row in rows} == {"owls"}
    before = snapshot(shop.photos.path)
    said = refused("forget", shop.photos.path, "--image", out)
    assert "held out for testing and in no model" in said
    assert said.endswith("nothing was deleted")
    assert snapshot(shop.photos.path) == before


def test_images_that_were_deleted_before_are_noted(shop: Shop, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shop.photos.path, tmp_path / "run")))
    gone, kept = shop.held()[0], shop.held()[1]
    works("forget", run.path, "--image", gone)
    rows, notes = plan(run, tmp_path / "out", "--image", gone, "--image", kept)
    assert [row["id"] for row in rows] == [id_of(kept)]
    assert notes == [f"1 of 2 are deleted before: {gone}"]
    before = snapshot(run.path)
    assert "deleted before" in refused("forget", run.path, "--id", id_of(gone))
    assert snapshot(run.path) == before
    facts = works("forget", run.path, "--id", id_of(gone), "--image", kept)
    assert facts["removed"] == 1
    assert facts["notes"] == [f"1 of 2 are deleted before: {id_of(gone)}"]


def with_wrong_digits(name: str, count: int) -> str:
    """Mistype the last digits of an id."""
    wrong = "".join("0" if digit == "f" else "f" for digit in name[-count:])
    return name[:-count] + wrong


@pytest.mark.parametrize("count", [1, 3])
def test_an_unknown_id_is_compared(shop: Shop, count: int) -> None:
    name = ids_to_hex(shop.digits.exemplar_folder().ids[20:21])[0]
    wrong = with_wrong_digits(name, count)
    said = refused("forget", shop.digits.path, "--id", wrong)
    assert f"1 of 1 are not among the exemplars: {wrong}" in said
    assert re.search(rf"nearest to {wrong}: {name} \(differs in {count} digits?\)", said)
    assert "nothing was deleted" in said


def test_an_id_of_something_else_is_not_compared(shop: Shop) -> None:
    said = refused("forget", shop.digits.path, "--id", "0123456789abcdef" * 2)
    assert re.search(r"no id, all differ in \d+ digits or more", said)


def test_an_unknown_image_is_compared(shop: Shop, tmp_path: Path) -> None:
    noise = unknown_picture(tmp_path / "noise.png")
    said = refused("forget", shop.photos.path, "--image", noise)
    assert f"1 of 1 are not among the exemplars: {noise}" in said
    nearest = re.findall(r"([0-9a-f]{32}) \(class (\w+), similarity (\d\.\d\d)\)", said)
    assert len(nearest) == 3
    folder = shop.photos.exemplar_folder()
    labels = dict(zip(ids_to_hex(folder.ids), folder.labels.tolist(), strict=True))
    both = id_of(shop.source / "cats" / "both.png")
    assert all(CLASSES[labels[name]] == label for name, label, _ in nearest if name != both)
    similarities = [float(value) for *_, value in nearest]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] < 1


def test_unknown_images_are_left_out_if_one_says_so(shop: Shop, tmp_path: Path) -> None:
    noise = unknown_picture(tmp_path / "noise.png")
    file = shop.held()[0]
    words = ["--image", noise, "--id", "0" * 32, "--image", file]
    before = snapshot(shop.photos.path)
    assert "2 of 3 are not among the exemplars" in refused("forget", shop.photos.path, *words)
    rows, notes = plan(shop.photos, tmp_path / "out", *words, "--skip-unknown")
    assert [row["id"] for row in rows] == [id_of(file)]
    assert len(notes) == 1
    assert notes[0].startswith("2 of 3 are not among the exemplars: ")
    assert str(noise) in notes[0]
    assert "nothing was deleted" in refused("forget", shop.photos.path, "--image", noise, "--skip-unknown")
    assert snapshot(shop.photos.path) == before


def test_images_of_the_public_core_are_refused(shop: Shop, tmp_path: Path) -> None:
    run = shop.public
    data = run.load_split().train
    core = data.select(data.rows_of(run.core_ids[:1]))
    Image.fromarray(core.all_images()[0][..., 0]).save(tmp_path / "core.png")
    name = ids_to_hex(core.ids)[0]
    kept = ids_to_hex(run.exemplar_folder().ids[:1])[0]
    before = snapshot(run.path)
    for words in (["--id", name], ["--image", tmp_path / "core.png"], ["--id", kept, "--id", name]):
        for more in ([], ["--skip-unknown"]):
            said = refused("forget", run.path, *words, *more)
            assert "public core" in said
            assert "non-deletable" in said
    assert snapshot(run.path) == before
    assert planned_ids(run, tmp_path / "out", "--id", kept) == [kept]


def test_images_of_a_class_that_stay_in_the_public_core_are_noted(shop: Shop, tmp_path: Path) -> None:
    run = shop.public
    train = run.load_split().train
    assert (train.labels[train.rows_of(run.core_ids)] == 3).any()
    _, notes = plan(run, tmp_path / "out", "--class", "3")
    assert any("core" in note for note in notes)


def test_a_class_that_the_public_core_never_saw_is_deleted_without_a_note(shop: Shop, tmp_path: Path) -> None:
    run = train_on(shop.source, tmp_path / "run", mode="public", fraction="0.8", unseen_classes="[cats]")
    for name in ("cats", "0"):
        assert plan(run, tmp_path / "out", "--class", name)[1] == []
    for name in ("dogs", "1"):
        (note,) = plan(run, tmp_path / "out", "--class", name)[1]
        assert note.startswith("other images of class dogs stay in the public core")


def test_the_reason_is_kept(shop: Shop, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shop.digits.path, tmp_path / "run")))
    assert (
        works("forget", run.path, "--class", "1", "--reason", "GDPR request 17")["reason"]
        == "GDPR request 17"
    )
    assert [receipt.reason for receipt in run.receipts()] == ["GDPR request 17"]


def test_a_contact_sheet_shows_the_images_in_the_order_of_the_table(shop: Shop, tmp_path: Path) -> None:
    ids = ids_to_hex(shop.digits.exemplar_folder().ids[[3, 40]])
    rows, _ = plan(shop.digits, tmp_path / "out", "--id", ids[1], "--id", ids[0])
    assert [(row["id"], row["sheet"], row["row"], row["column"]) for row in rows] == [
        (ids[0], "1", "1", "1"),
        (ids[1], "1", "1", "2"),
    ]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as image:
        sheet = np.array(image.convert("L"))
    first, second = shop.digits.exemplar_folder().all_rows().pixels[[3, 40]][..., 0]
    places = {name: find(sheet, pixels) for name, pixels in (("first", first), ("second", second))}
    assert places["first"][1] < places["second"][1], "the first is to the left"


def find(sheet: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    """Return where a picture is in a sheet, at any whole scale; fail if it is not."""
    for scale in range(1, 1 + min(sheet.shape) // min(pixels.shape)):
        large = np.kron(pixels, np.ones((scale, scale), np.uint8))
        height, width = large.shape
        for row in range(sheet.shape[0] - height + 1):
            for column in range(sheet.shape[1] - width + 1):
                if np.array_equal(sheet[row : row + height, column : column + width], large):
                    return row, column
    raise AssertionError("it is not in the sheet")
