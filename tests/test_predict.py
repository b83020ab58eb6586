"""Predictions of a classifier, and who voted: on the command line and as files."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, refused, run_command, works
from PIL import Image
from run_factory import snapshot

from gen_unlearn.commands.classified import Prediction
from gen_unlearn.commands.predict import images_below, predict, write_predictions
from gen_unlearn.decoding import decode_image
from gen_unlearn.repro import ids_from_hex
from gen_unlearn.runs import RunFolder

TINY = (
    "training.images=1280",
    "training.batch_size=32",
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "model.key_dim=16",
    "data.test_fraction=0.5",
)
VOTES = ("prototypes", "exemplars", "nearest-neighbours")


def trained(out: Path, *overrides: str) -> Path:
    settings = [word for override in (*TINY, *overrides) for word in ("--set", override)]
    works("train", "--config", CONFIGS / "digits_spm_classifier.yaml", *settings, "--out", out)
    return out


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A semi-parametric classifier, which tests change copies of only."""
    return trained(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def parametric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("predict") / "plain", "model.kind=parametric")


@pytest.fixture
def run(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "run"))


@pytest.fixture(scope="module")
def pictures(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 held-out digits at all depths of a folder, and a large photograph in colour with transparency."""
    folder, test = tmp_path_factory.mktemp("pictures"), RunFolder.open(fresh).load_split().test
    for row in range(22):
        path = folder / ("deep/er" if row % 2 else "flat") / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.all_images()[10 * row, ..., 0]).save(path)
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a holiday in grey Übersee.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def decoded(pictures: Path) -> np.ndarray:
    """Return the pictures as the run classifies them."""
    return np.stack([decode_image(file, size=(8, 8), channels=1) for file in images_below(pictures)])


@pytest.mark.parametrize("vote", VOTES)
def test_predictions_are_those_of_the_pipeline(fresh: Path, pictures: Path, vote: str) -> None:
    settings = (f"prediction.vote={vote}", "prediction.batch_size=7", "prediction.neighbours=9")
    run, files = RunFolder.open(fresh).with_overrides(settings), images_below(pictures)
    pipeline = run.load_classifier()
    expected = pipeline.probabilities(decoded(pictures))
    found = predict(run, files, voters=5)
    assert [one.name for one in found] == [str(file) for file in files]
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.all_probabilities, row, rtol=1e-4, atol=1e-7)
        assert one.class_name == str(one.all_probabilities.argmax())
        assert one.probability == one.all_probabilities.max()
        assert one.probabilities[0] == (one.class_name, one.probability)
        shares = [share for _, share in one.probabilities]
        assert shares == sorted(shares, reverse=True)
        assert min(shares) > 0
        assert 1 <= len(shares) <= 5


@pytest.mark.parametrize("vote", VOTES)
def test_voters_are_exemplars_of_the_run_and_their_shares_are_as_the_vote_counts_them(
    fresh: Path, pictures: Path, vote: str
) -> None:
    run = RunFolder.open(fresh).with_overrides([f"prediction.vote={vote}", "prediction.neighbours=9"])
    names = run.exemplar_folder().class_names
    for one in predict(run, images_below(pictures), voters=2000):
        weights = [voter.weight for voter in one.voters]
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-4)
        held = run.exemplar_folder().select(ids_from_hex(voter.id for voter in one.voters[:3]))
        assert {names[label] for label in held.labels} == {voter.class_name for voter in one.voters[:3]}
        if vote == "prototypes":
            assert {voter.class_name for voter in one.voters} == {one.class_name}
            continue
        assert len(one.voters) == 9
        mine = sum(voter.weight for voter in one.voters if voter.class_name == one.class_name)
        assert mine == pytest.approx(one.probability, abs=1e-4)
        if vote == "nearest-neighbours":
            assert weights == pytest.approx([1 / 9] * 9)


@pytest.mark.parametrize("vote", VOTES)
def test_a_class_without_exemplars_is_never_predicted(run: Path, pictures: Path, vote: str) -> None:
    setting = ["--set", f"prediction.vote={vote}", "--voters", 3]
    before = works("predict", run, pictures, *setting)["predictions"]
    gone = before[0]["class"]
    works("forget", run, "--class", gone)
    label = RunFolder.open(run).manifest.class_names.index(gone)
    after = works("predict", run, pictures, *setting)["predictions"]
    for one in after:
        assert one["class"] != gone
        assert gone not in [listed["class"] for listed in one["probabilities"]]
        assert gone not in [voter["class"] for voter in one["voters"]]
    changed = RunFolder.open(run).with_overrides([f"prediction.vote={vote}"])
    assert all(one.all_probabilities[label] == 0 for one in predict(changed, images_below(pictures)))


def test_a_deleted_exemplar_votes_no_more(run: Path, pictures: Path) -> None:
    image = sorted(pictures.rglob("*.png"))[-1]
    (before,) = works("predict", run, image, "--voters", 4)["predictions"]
    works("forget", run, *(word for voter in before["voters"] for word in ("--id", voter["id"])))
    (after,) = works("predict", run, image, "--voters", 2000)["predictions"]
    assert not {voter["id"] for voter in before["voters"]} & {voter["id"] for voter in after["voters"]}


def test_text_has_a_line_for_each_image(fresh: Path, pictures: Path) -> None:
    result = run_command("predict", fresh, pictures)
    assert result.exit_code == 0
    facts = works("predict", fresh, pictures)["predictions"]
    lines = result.stdout.splitlines()
    assert len(lines) == len(facts) == 23
    for line, one in zip(lines, facts, strict=True):
        assert line.startswith(one["file"])
        assert line[len(one["file"]) :].split()[0] == one["class"]
        assert " %" in line


def test_files_of_an_output_folder(fresh: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    before = snapshot(fresh)
    facts = works("predict", fresh, pictures, "--out", out)
    assert facts["files"] == [str(out / name) for name in ("predictions.csv", "votes.png", "votes_2.png")]
    assert facts["notes"] == []
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "votes.png", "votes_2.png"]
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "class", "probability", *map(str, range(10))]
    assert [row[:2] for row in rows[1:]] == [[one["file"], one["class"]] for one in facts["predictions"]]
    for row in rows[1:]:
        shares = np.array(row[3:], dtype=float)
        assert shares.sum() == pytest.approx(1, abs=1e-4)
        assert shares.argmax() == int(row[1])
        assert float(row[2]) == shares.max()
    with Image.open(out / "votes.png") as first, Image.open(out / "votes_2.png") as second:
        assert first.height > 4 * second.height
    works("predict", fresh, pictures / "flat", "--out", out, "--voters", 1)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "votes.png"]
    assert snapshot(fresh) == before


def test_the_sheet_shows_the_exemplars_that_voted(fresh: Path, pictures: Path, tmp_path: Path) -> None:
    image = pictures / "flat" / "00.png"
    facts = works("predict", fresh, image, "--out", tmp_path / "out", "--voters", 3)
    ids = ids_from_hex(voter["id"] for voter in facts["predictions"][0]["voters"])
    with Image.open(tmp_path / "out" / "votes.png") as sheet:
        canvas = np.asarray(sheet)[..., 0]
    for picture in RunFolder.open(fresh).exemplar_folder().select(ids).pixels:
        large = picture[..., 0].repeat(14, axis=0).repeat(14, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(canvas, large.shape)[:, :, ::7, ::7]
        assert (windows == large[::7, ::7]).all(axis=(2, 3)).any()


def test_an_exemplar_deleted_after_the_prediction_has_no_picture(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, files = RunFolder.open(run), images_below(pictures / "flat")[:1]
    found = predict(folder, files, voters=2)
    write_predictions(folder, files, found, tmp_path / "before")
    works("forget", run, "--id", found[0].voters[0].id)
    write_predictions(folder, files, found, tmp_path / "after")
    grey = []
    for name in ("before", "after"):
        with Image.open(tmp_path / name / "votes.png") as sheet:
            grey.append(int((np.asarray(sheet) == 0xEC).all(axis=2).sum()))
    assert grey[1] - grey[0] > 9000, "a grey tile of 112 x 112 with a word on it"


def test_a_parametric_classifier_predicts_without_voters(
    parametric: Path, pictures: Path, tmp_path: Path
) -> None:
    facts = works("predict", parametric, pictures, "--out", tmp_path / "out")
    assert all(one["voters"] == [] for one in facts["predictions"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]
    assert len(facts["notes"]) == 1
    assert "votes.png is left out" in facts["notes"][0]
    assert works("predict", parametric, pictures)["notes"] == []


def test_an_image_of_an_odd_name_and_class(fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    path = folder / 'odd \udcff\n,".png'
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)
    facts = works("predict", fresh, folder, "--out", tmp_path / "out")
    assert facts["predictions"][0]["file"].endswith('odd \\xff\n,".png')
    assert run_command("predict", fresh, folder).exit_code == 0
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [facts["predictions"][0]["file"]]


def test_predictions_are_equal_by_what_they_say() -> None:
    one, other = (Prediction("a.png", "cat", 1.0, (("cat", 1.0),), (), np.ones(1)) for _ in range(2))
    assert one == other


def test_a_dry_run_writes_nothing(fresh: Path, pictures: Path, tmp_path: Path) -> None:
    facts = works("predict", fresh, pictures, "--out", tmp_path / "out", "--dry-run")
    assert facts == {"images": 23, "out": str(tmp_path / "out")}
    assert not any(tmp_path.iterdir())


def test_mistakes_are_one_line_and_write_nothing(
    fresh: Path, pictures: Path, run_without_threes: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"\x89PNG")
    before = snapshot(tmp_path), snapshot(fresh), snapshot(pictures)
    wrong = {
        (fresh, tmp_path / "empty"): "expected images below",
        (fresh, tmp_path / "none.png"): "none.png, which is not there",
        (fresh, tmp_path / "bad"): "broken.png",
        (fresh, pictures / "notes.txt"): "cannot decode",
        (run_without_threes, pictures): "expected a classifier, got the generator",
        (run_without_threes, pictures, "--set", "prediction.vote=exemplars"): "got the generator",
        (fresh, pictures, "--voters", 0): "'--voters'",
        (fresh, pictures, "--set", "prediction.vote=everyone"): "prediction.vote",
        (fresh, pictures, "--set", "training.images=1"): "fixed once a run is trained",
        (fresh, pictures, "--out", fresh / "pictures"): "expected a folder outside of the run",
        (fresh, pictures, "--out", pictures / "out"): "would be classified next time",
        (fresh, pictures, "--out", fresh / "recipe.yaml"): "outside of the run",
        (fresh, pictures / "flat", "--out", pictures / "notes.txt"): "got the file",
        (tmp_path, pictures): "holds no run",
    }
    for arguments, expected in wrong.items():
        assert expected in refused("predict", *arguments)
    assert (snapshot(tmp_path), snapshot(fresh), snapshot(pictures)) == before
    with pytest.raises(ValueError, match="at least 1 voter"):
        predict(RunFolder.open(fresh), images_below(pictures), voters=0)


def test_without_an_exemplar_nothing_is_predicted(run: Path, pictures: Path, tmp_path: Path) -> None:
    works("forget", run, *(word for name in range(10) for word in ("--class", name)))
    assert "no exemplar is left" in refused("predict", run, pictures, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
