"""Classifiers on the command line, from training to a verified deletion."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CONFIGS, heavy_imports, refused, run_command, works
from PIL import Image
from run_factory import INTERRUPTED, shard_of, snapshot, unchanged
from safetensors.torch import load_file, save_file

from gen_unlearn.commands.trained_classifier import encode_again
from gen_unlearn.commands.verify import replay
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplar_keys import save_exemplars
from gen_unlearn.models.classifier import SemiParametricClassifier
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.repro import id_keys, ids_to_hex, image_ids, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.classification_batches import ClassificationBatch, ClassificationBatches

RECIPE = CONFIGS / "digits_spm_classifier.yaml"
TINY = (
    "data.test_fraction=0.9",
    "model.encoder.width=4",
    "model.encoder.depth=0",
    "model.key_dim=8",
    "training.images=128",
    "training.batch_size=16",
    "training.warmup_images=16",
    "training.support_per_class=[1, 3]",
)


def classifier(*overrides: str) -> list[object]:
    return ["--config", RECIPE, *(word for override in (*TINY, *overrides) for word in ("--set", override))]


@dataclass(frozen=True)
class Stall:
    """Trained runs that tests share and must not change.

    The pictures of `small` are of 4x4 pixels, and it was trained with sampled exemplars.
    """

    joint: Path
    public: Path
    small: Path
    parametric: Path


@pytest.fixture(scope="module")
def stall(tmp_path_factory: pytest.TempPathFactory) -> Stall:
    root = tmp_path_factory.mktemp("classifiers")
    made = Stall(*(root / name for name in ("joint", "public", "small", "parametric")))
    works("train", *classifier(), "--out", made.joint)
    voting = ("prediction.vote=exemplars", "prediction.neighbours=5")
    works("train", *classifier("core.mode=public", "model.experts=2", *voting), "--out", made.public)
    small = ("core.mode=public", "model.exemplar_size=4", "training.exemplars=sampled")
    works("train", *classifier(*small), "--out", made.small)
    works("train", *classifier("model.kind=parametric"), "--out", made.parametric)
    return made


@pytest.fixture(params=["joint", "public", "small"])
def run(request: pytest.FixtureRequest, stall: Stall, tmp_path: Path) -> Path:
    """A run of the test's own, of every kind that images can be deleted from."""
    return Path(shutil.copytree(getattr(stall, request.param), tmp_path / "run"))


@pytest.fixture
def public(stall: Stall, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stall.public, tmp_path / "run"))


@pytest.fixture
def small(stall: Stall, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stall.small, tmp_path / "run"))


@pytest.mark.parametrize("kind", ["public", "parametric"])
def test_describing_imports_nothing_heavy(stall: Stall, kind: str) -> None:
    assert heavy_imports("info", getattr(stall, kind)) == []


def store_of(run: Path) -> ExemplarFolder:
    return ExemplarFolder.open(run / "model" / "exemplars")


def source_image(run: Path, digits: Split, path: Path) -> str:
    """Write an exemplar of a run as it is in the source to a PNG, and return its id."""
    name = others(run)[0]
    for part in (digits.train, digits.test):
        for row in np.flatnonzero([one == name for one in ids_to_hex(part.ids)]):
            Image.fromarray(part.images[[row]][0, :, :, 0]).save(path)
            return name
    raise AssertionError("an exemplar that is not in the source")


def others(run: Path) -> list[str]:
    """Return the ids of the exemplars that are not of class 3."""
    store = store_of(run)
    return ids_to_hex(store.ids[store.labels != 3])


def holding(run: Path) -> set[str]:
    return set(ids_to_hex(store_of(run).ids))


# --- deletion


def test_forgets_what_is_named_and_can_show_it(run: Path, digits_split: Split, tmp_path: Path) -> None:
    weights, held = snapshot(run / "model" / "classifier"), len(store_of(run))
    by_image = source_image(run, digits_split, tmp_path / "one.png")
    by_id = next(name for name in others(run) if name != by_image)
    threes = int((store_of(run).labels == 3).sum())
    assert works("forget", run, "--class", "3")["removed"] == threes > 0
    assert works("forget", run, "--image", tmp_path / "one.png")["ids"] == [by_image]
    assert works("forget", run, "--id", by_id)["ids"] == [by_id]
    share = works("forget", run, "--fraction", "0.1")
    left = store_of(run)
    assert held - len(left) == threes + 2 + share["removed"]
    assert share["remaining"] == len(left)
    assert not {by_image, by_id} & holding(run)
    assert 3 not in left.labels
    assert snapshot(run / "model" / "classifier") == weights, "no weight was touched"
    checks = works("verify", run, "--replay")
    assert checks["passed"] is True
    mode = RunFolder.open(run).recipe.core.mode
    said = {check["name"]: check["said"] for check in checks["checks"]}
    assert said["replay of the exemplars"].endswith("files, SHA-256 equal")
    whole = said["replay of the whole pipeline" if mode == "public" else "replay of the weights"]
    assert ("SHA-256 equal" if mode == "public" else "the core is joint") in whole
    level = {"joint": "exemplar-only", "public": "bit-exact"}[mode]
    assert (share["level"], works("info", run)["level"]) == (level, level)
    assert works("info", run)["exemplars_per_class"]["3"] == 0


def test_a_run_predicts_without_what_was_deleted(public: Path, digits_split: Split) -> None:
    images = digits_split.test.all_images()[:30]
    before = RunFolder.open(public).load_classifier()
    assert isinstance(before, SemiParametricPipeline)
    assert (before.probabilities(images)[:, 3] > 0).any()
    works("forget", public, "--class", "3")
    after = RunFolder.open(public).load_classifier()
    assert (after.probabilities(images)[:, 3] == 0).all()
    retrieving = RunFolder.open(public).with_overrides(["prediction.neighbours=1"]).load_classifier()
    assert retrieving.prediction.neighbours == 1


def test_what_would_be_deleted_can_be_seen_first(run: Path, tmp_path: Path) -> None:
    with unchanged(run):
        shown = works("forget", run, "--class", "3", "--dry-run", "--out", tmp_path / "preview")
    assert set(shown["would_remove"]) == {"3"}
    assert (tmp_path / "preview" / "contact_sheet.png").exists()


def test_what_is_not_there_is_refused(run: Path) -> None:
    with unchanged(run):
        assert "not among the exemplars" in refused("forget", run, "--id", "0" * 32)


def test_the_core_cannot_be_deleted(public: Path) -> None:
    core = (public / "core.txt").read_text().split()[0]
    with unchanged(public):
        assert "public core" in refused("forget", public, "--id", core)


def test_small_pictures_find_their_images_by_the_whole_ones(
    small: Path, digits_split: Split, tmp_path: Path
) -> None:
    wanted = source_image(small, digits_split, tmp_path / "one.png")
    store = store_of(small)
    assert (store.image_shape, store.decoded_size) == ((4, 4, 1), (8, 8))
    rows = store.all_rows()
    assert not np.isin(id_keys(image_ids(rows.pixels)), id_keys(rows.ids)).any()
    receipt = works("forget", small, "--image", tmp_path / "one.png", "--near-duplicates", "1")
    assert wanted in receipt["ids"]
    works("verify", small, "--replay")


# --- verification


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("shard", "its SHA-256 is not the one listed"),
        ("weights", "changed, missing or new since the training"),
    ],
)
def test_one_changed_byte_is_noticed(run: Path, part: str, message: str) -> None:
    weights = next((run / "model" / "classifier").glob("*.safetensors"))
    file = shard_of(run) if part == "shard" else weights
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run_command("verify", run, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["passed"] is False
    assert any(message in check["said"] for check in facts["checks"])


@pytest.mark.parametrize("part", ["codes", "pixels"])
def test_a_store_written_again_with_other_votes_is_noticed(run: Path, part: str) -> None:
    """Its sums and names are right; what is in it is not what the ledger knows."""
    store = store_of(run)
    rows, names, size = store.all_rows(), store.class_names, store.decoded_size
    rolled = rows._replace(**{part: np.roll(getattr(rows, part), 1, axis=0)})
    save_exemplars(rolled, names, size, run / "model" / "exemplars")
    result = run_command("verify", run, "--json")
    assert result.exit_code == 1
    (failed,) = (check for check in json.loads(result.stdout)["checks"] if not check["passed"])
    assert failed["name"] == "exemplars"
    with unchanged(run):
        assert "are not in the state" in refused("forget", run, "--class", "3")


# --- addition


def new_images(folder: Path) -> IndexedImages:
    """Write five random images of class 2 as PNG files, in a folder of the class."""
    images = np.random.default_rng(5).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    (folder / "2").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(folder / "2" / f"{number}.png")
    names = tuple(f"new/{number}" for number in range(5))
    classes = tuple(map(str, range(10)))
    return IndexedImages(images, np.full(5, 2, dtype=np.int64), image_ids(images), classes, names)


@pytest.mark.parametrize("kind", ["public", "small"])
def test_added_images_get_the_keys_that_the_network_gives(stall: Stall, kind: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(getattr(stall, kind), tmp_path / "run"))
    data, before = new_images(tmp_path / "new"), snapshot(run / "model" / "exemplars")
    assert works("add", run, tmp_path / "new") == {"added": 5, "already_there": 0}
    fresh = encode_again(RunFolder.open(run), data).exemplars
    assert fresh is not None
    assert all(map(np.array_equal, store_of(run).select(data.ids), fresh))
    assert works("add", run, tmp_path / "new") == {"added": 0, "already_there": 5}
    assert works("verify", run)["passed"] is True
    replayed = works("verify", run, "--replay")
    for check in replayed["checks"][-2:]:
        left_out = "; 5 exemplars were not rebuilt: the source does not have them"
        assert check["said"].endswith(left_out) == (kind == "small")
    assert works("forget", run, "--image", tmp_path / "new")["removed"] == 5
    assert snapshot(run / "model" / "exemplars") == before
    works("verify", run, "--replay")
    assert "stay deleted" in refused("add", run, tmp_path / "new")


@pytest.mark.parametrize("kind", ["public", "small"])
def test_a_source_that_lost_exemplars_is_no_source_of_a_replay(
    stall: Stall, kind: str, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(getattr(stall, kind), tmp_path / "run")))
    train = run.load_split().train
    for row in range(0, len(train), 2):
        path = tmp_path / "source" / train.class_names[train.labels[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images[[row]][0, :, :, 0]).save(path)
    moved = RunFolder(
        run.path, (f"data.source={tmp_path / 'source'}", "data.image_size=8", "data.channels=1")
    )
    said = replay(moved)[0].said
    if kind == "public":
        assert said.endswith("SHA-256 equal"), "the run itself has the pixels"
    else:
        assert re.match(r"the source no longer has \d+ of the exemplars, and only 0 were ever added", said)


def noted(run: Path, **changes: object) -> RunFolder:
    """Change what the manifest notes about the training."""
    manifest = RunFolder(run).manifest
    assert manifest.training is not None
    training = {name: changes.pop(name) for name in ("threads",) if name in changes}
    manifest = replace(manifest, training=replace(manifest.training, **training), **changes)
    (run / "manifest.json").write_text(manifest.to_json())
    return RunFolder(run)


def test_exemplars_are_encoded_with_the_threads_of_the_training(
    public: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, before = [], torch.get_num_threads()
    original = SemiParametricClassifier.keys

    def keys(self: SemiParametricClassifier, features: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return original(self, features)

    monkeypatch.setattr(SemiParametricClassifier, "keys", keys)
    encode_again(noted(public, threads=before + 1), new_images(tmp_path / "new"))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_other_software_is_named_where_exemplars_differ(public: Path) -> None:
    weights = next((public / "model" / "classifier").glob("*.safetensors"))
    save_file({name: values.abs() for name, values in load_file(weights).items()}, weights)
    now = software_versions()
    run = noted(public, versions=now | {"torch": "0.1"})
    exemplars = replay(run)[0]
    assert not exemplars.passed
    assert f"the software differs from the training's: torch 0.1 -> {now['torch']}" in exemplars.said


# --- training


def test_an_interrupted_training_continues_to_the_same_bytes(
    stall: Stall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, run = ClassificationBatches.__getitem__, tmp_path / "run"

    def getitem(self: ClassificationBatches, step: int) -> ClassificationBatch:
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationBatches, "__getitem__", getitem)
        result = run_command("train", *classifier(), "--out", run)
    assert result.exit_code == INTERRUPTED
    assert f"continue with: gen-unlearn train {run}" in result.stderr
    assert "training of" in refused("forget", run, "--class", "3")
    works("train", run)
    assert snapshot(run / "model") == snapshot(stall.joint / "model")
    assert not (run / "checkpoints").exists()


def test_an_oracle_holds_none_of_what_was_deleted(public: Path, stall: Stall, tmp_path: Path) -> None:
    """With a public core the oracle is what the deletion leaves, bit for bit."""
    works("forget", public, "--class", "3")
    overrides = ("core.mode=public", "model.experts=2")
    works("train", *classifier(*overrides), "--out", tmp_path / "oracle", "--without", public)
    assert snapshot(tmp_path / "oracle" / "model") == snapshot(public / "model")
    assert snapshot(stall.public / "model") != snapshot(public / "model")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.encoder.widht=8", "unknown key model.encoder.widht; did you mean width?"),
        ("training.exemplars_per_class=[1, 2]", "unknown key training.exemplars_per_class"),
        ("noise.num_train_timesteps=5", "unknown key noise"),
        ("prediction.vote=all", "prediction.vote"),
        ("model.kind=transformer", "model.kind"),
        ("model.experts=0", "key_dim and experts of at least 1"),
        ("training.exemplars=all", "training.exemplars"),
        ("task=regression", "task: expected one of generation, classification, got 'regression'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_its_key(override: str, named: str, tmp_path: Path) -> None:
    assert named in refused("train", *classifier(override), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists(), "a recipe that cannot work leaves no folder"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ("training.exemplars=sampled", "training.batch_size=1000"),
            "batch_size (1000) must be at most half of the",
        ),
        (
            ("core.mode=public", "training.encoder_run=else"),
            "core.mode public promises weights that never saw",
        ),
        (("model.kind=parametric", "training.encoder_run=else"), "which needs a semi-parametric model"),
        (("model.kind=parametric", "core.mode=public"), "core.mode public needs a semi-parametric model"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    overrides: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    assert named in refused("train", *classifier(*overrides), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- what a classifier cannot do


def test_nothing_can_be_deleted_from_a_parametric_classifier(stall: Stall) -> None:
    run = stall.parametric
    with unchanged(run):
        for words in (("forget", run, "--class", "3"), ("add", run, run)):
            said = refused(*words)
            assert "images are in its weights, where none can be added or deleted" in said
            assert f"gen-unlearn unlearn {run} --method" in said
        assert "has no exemplars" in refused("verify", run, "--replay")
        assert works("verify", run)["passed"] is True
        assert works("info", run)["model"] == "parametric"


@pytest.mark.parametrize("kind", ["joint", "parametric"])
def test_a_classifier_generates_nothing(stall: Stall, kind: str, tmp_path: Path) -> None:
    run = getattr(stall, kind)
    with unchanged(run):
        assert "expected a generator, got the classifier" in refused("sample", run, "--out", tmp_path / "out")
        assert "was not evaluated yet" in refused("report", run)
    assert not (tmp_path / "out").exists()
