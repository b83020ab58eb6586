"""Adapter ensembles on the command line: trained, asked, judged, changed and checked."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, heavy_imports, refused, run_command, works
from PIL import Image
from run_factory import INTERRUPTED, snapshot, unchanged
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from two_processes import as_two

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.evaluate import find_deletion
from gen_unlearn.commands.model_words import adapter_words
from gen_unlearn.commands.undeleted import undeleted_ensemble
from gen_unlearn.config import load_recipe
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.judging import ensembles
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.classification_batches import ClassificationBatch, ClassificationBatches

RECIPE = CONFIGS / "digits_adapters.yaml"
TINY = (
    "data.test_fraction=0.5",
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "model.adapters.count=20",
    "model.adapters.neighbours=3",
    "training.images=640",
    "training.batch_size=32",
    "training.warmup_images=32",
)
SGD = ("model.adapters.family=sgd", "model.adapters.sgd.epochs=2", "model.exemplar_size=4")


def ensemble(*overrides: str) -> list[object]:
    return ["--config", RECIPE, *(word for override in (*TINY, *overrides) for word in ("--set", override))]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of ridge heads, which tests change copies of only."""
    out = tmp_path_factory.mktemp("ensembles") / "ridge"
    works("train", *ensemble(), "--out", out)
    return out


@pytest.fixture
def run(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "run"))


@pytest.fixture(scope="module")
def pictures(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, test = tmp_path_factory.mktemp("pictures"), RunFolder.open(fresh).load_split().test
    for row in range(12):
        Image.fromarray(test.all_images()[20 * row, ..., 0]).save(folder / f"{row:02d}.png")
    return folder


@pytest.fixture
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trials and deletions than an evaluation makes."""
    monkeypatch.setattr(ensembles, "_TRIALS", {"single": 40, "batched": 40})
    monkeypatch.setattr(ensembles, "_STEPS", 40)


# --- describing


def test_describing_imports_what_adapters_are_computed_with_alone(fresh: Path) -> None:
    """Whether a deletion is exact to the bit depends on it."""
    assert heavy_imports("info", fresh) == ["scipy", "torch"]
    assert works("info", fresh)["level"] == "bit-exact"


# --- training


def test_the_same_recipe_gives_the_same_bytes(fresh: Path, tmp_path: Path) -> None:
    works("train", *ensemble(), "--out", tmp_path / "again")
    assert snapshot(tmp_path / "again" / "model") == snapshot(fresh / "model")
    assert {path.name for path in (fresh / "model").iterdir()} == {"classifier", "exemplars", "adapters"}
    training = RunFolder.open(fresh).manifest.training
    assert training is not None
    assert training.images == 640


def test_interrupted_training_ends_as_if_it_had_not_been(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, run = ClassificationBatches.__getitem__, tmp_path / "run"

    def getitem(batches: ClassificationBatches, step: int) -> ClassificationBatch:
        if step == 9:
            signal.raise_signal(signal.SIGINT)
        return original(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationBatches, "__getitem__", getitem)
        result = run_command("train", *ensemble(), "--out", run)
    assert result.exit_code == INTERRUPTED
    assert f"continue with: gen-unlearn train {run}" in result.stderr
    assert works("train", run)["trained_already"] is False
    assert snapshot(run / "model") == snapshot(fresh / "model")
    assert works("train", run)["trained_already"] is True


def test_named_weights_are_used_as_they_are(fresh: Path, tmp_path: Path) -> None:
    """With the encoder that the other run ended with, everything else comes out as there."""
    weights = load_file(next((fresh / "model" / "classifier").glob("*.safetensors")))
    own = {
        name.removeprefix("encoder."): part for name, part in weights.items() if name.startswith("encoder.")
    }
    save_file(own, tmp_path / "encoder.safetensors")
    named = f"model.encoder.weights={tmp_path / 'encoder.safetensors'}"
    facts = works("train", *ensemble(named), "--out", tmp_path / "run")
    assert (facts["loss"], facts["encoder"]) == (None, str(tmp_path / "encoder.safetensors"))
    said = run_command("train", tmp_path / "run").stdout
    assert "is trained already: it took " in said
    assert f"encoder taken from {tmp_path / 'encoder.safetensors'}, not trained" in said
    assert snapshot(tmp_path / "run" / "model") == snapshot(fresh / "model")
    record = RunFolder.open(tmp_path / "run").manifest.training
    assert record is not None
    assert (record.images, record.loss) == (0, 0.0)
    receipt = works("forget", tmp_path / "run", "--class", "3")
    assert any("what they were trained on is not known" in left for left in receipt["left"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("core.mode=joint", "they must never have seen a deletable image"),
        ("training.encoder_run=somewhere", "needs a semi-parametric model, got adapter-ensemble"),
        ("model.adapters.neighbours=21", "adapters.neighbours from 1 to adapters.count (20)"),
        ("model.adapters.count=700", "at least as many distinct images in the core as model.adapters.count"),
        ("model.adapters.keys=training-samples", "model.adapters.keys"),
        ("model.adapters.family=forest", "model.adapters.family"),
        ("model.adapters.ridge.penalty=0", "penalty"),
        ("model.adapters.rigde.penalty=1", "unknown key model.adapters.rigde; did you mean ridge?"),
    ],
)
def test_wrong_settings_are_named_and_leave_nothing(override: str, named: str, tmp_path: Path) -> None:
    assert named in refused("train", *ensemble(override), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_decides_the_model_decides_the_digest() -> None:
    def digest(*overrides: str, recipe: Path = RECIPE) -> str:
        return load_recipe(recipe, overrides).digest

    for override in ("minimum_batch=3", "deadline_days=3", "sgd.epochs=3"):
        assert digest(f"model.adapters.{override}") == digest(), override
    for override in ("count=70", "neighbours=2", "keys=public-kmeans", "ridge.penalty=1", "family=sgd"):
        assert digest(f"model.adapters.{override}") != digest(), override
    voting = CONFIGS / "digits_spm_classifier.yaml"
    assert digest("model.adapters.count=70", recipe=voting) == digest(recipe=voting)
    assert digest(recipe=voting) == "64f72e7880edbbef864bf0b135c1318ecf7b6d03d7527a29858276bf97aaacdd"


# --- use


def test_info_counts_adapters(fresh: Path) -> None:
    facts = works("info", fresh)
    assert (facts["adapters"], facts["neighbours"], facts["family"]) == (20, 3, "ridge")
    assert (facts["keys"], facts["level"], facts["core"]) == ("public-samples", "bit-exact", "public")
    held = RunFolder.open(fresh).load_ensemble()
    sizes = np.array([len(rows) for rows in held.members.values()])
    assert sizes.sum() == 3 * facts["exemplars"] == 3 * len(held)
    assert facts["load_imbalance"] == pytest.approx(20 * (sizes**2).sum() / sizes.sum() ** 2, abs=1e-3)
    assert facts["adapters_empty"] == int((sizes == 0).sum())
    assert (facts["members_smallest"], facts["members_largest"]) == (sizes[sizes > 0].min(), sizes.max())
    assert facts["adapters_waiting"] == 0
    assert facts["adapters_megabytes"] > 0


def test_predictions_are_written_without_votes(fresh: Path, pictures: Path, tmp_path: Path) -> None:
    with unchanged(fresh):
        facts = works("predict", fresh, pictures, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]
    assert "votes.png is left out" in facts["notes"][0]
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "class", "probability", *map(str, range(10))]
    pipeline = RunFolder.open(fresh).load_classifier()
    assert isinstance(pipeline, AdapterEnsemblePipeline)
    for row, one in zip(rows[1:], facts["predictions"], strict=True):
        assert row[1] == one["class"]
        assert sum(map(float, row[3:])) == pytest.approx(1, abs=1e-4)
        assert one["voters"] == []


def test_where_no_adapter_answers_it_is_said(run: Path, pictures: Path, tmp_path: Path) -> None:
    works("forget", run, "--fraction", "1.0")
    facts = works("predict", run, pictures, "--out", tmp_path / "out")
    assert {(one["class"], one["probability"]) for one in facts["predictions"]} == {("", None)}
    assert all(one["probabilities"] == [] for one in facts["predictions"])
    told = run_command("predict", run, pictures).stdout
    assert "no adapter answers" in told
    assert "%" not in told
    words = adapter_words(RunFolder.open(run))
    assert words == "20 ridge heads, 3 asked for each image; 20 adapters without images, which do not answer"
    info = works("info", run)
    assert (info["exemplars"], info["adapters_empty"], info["load_imbalance"]) == (0, 20, 0.0)


# --- deletion


def test_a_deletion_leaves_what_its_oracle_is(run: Path, tmp_path: Path) -> None:
    before = snapshot(run / "model")
    held = RunFolder.open(run).load_ensemble()
    receipt = works("forget", run, "--class", "3")
    assert (receipt["artefact"], receipt["level"]) == ("adapter ensemble", "bit-exact")
    assert not (RunFolder.open(run).exemplar_folder().labels == 3).any()
    works("train", *ensemble(), "--out", tmp_path / "oracle", "--without", run)
    assert snapshot(tmp_path / "oracle" / "model") == snapshot(run / "model") != before
    in_memory = held.delete(ForgetSet(held.ids[held.labels == 3], "class 3"))
    assert held.digest == RunFolder.open(run).load_ensemble().digest == in_memory.digest_after
    assert works("verify", run, "--replay")["passed"] is True


@pytest.mark.usefixtures("short_attacks")
def test_the_retrain_gap_and_the_report(run: Path, tmp_path: Path) -> None:
    works("forget", run, "--class", "3")
    state = snapshot(run / "model")
    works("evaluate", run, "--oracles", tmp_path / "oracles", "--oracle-seeds", "2")
    assert snapshot(run / "model") == state
    card = json.loads((run / "metrics" / "scorecard.json").read_text())
    measured = {measure["name"]: measure["value"] for measure in card["measures"]}
    assert measured["accuracy_forget_before"] > 0.3 > measured["accuracy_forget_after"] == 0
    assert measured["prediction_gap_test"] < 0.5
    assert {"before", "after", "oracle"} <= set(card["accuracy_per_class"])
    floors = {measure["name"]: measure["floor"] for measure in card["measures"]}
    assert measured["reconstruction_single"] > 0.5 > floors["reconstruction_single"]
    assert any(note.startswith("reconstruction_batched: not measured") for note in card["notes"])
    for name in ("adaptive_sequence", "bit_identical"):
        assert measured[name] == floors[name] > 10
    works("report", run)
    page = re.sub(r"<[^>]+>", " ", (run / "report.html").read_text(encoding="utf-8"))
    assert "20 ridge heads, 3 asked for each image" in page
    assert "holds for the adapter ensemble" in page
    assert "One image deleted: can it be found?" in page
    assert "images now" in page
    assert "prediction.batch_size" in page
    for voting in ("exemplars vote", "exemplars now", "prediction.vote", "prediction.neighbours"):
        assert voting not in page


@pytest.mark.usefixtures("short_attacks")
def test_two_processes_train_the_oracle_and_judge_as_one(run: Path, tmp_path: Path) -> None:
    works("forget", run, "--class", "3")
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    oracles = ["--oracles", tmp_path / "oracles", "--oracle-seeds", 1]

    def evaluate(rank: int) -> None:
        found = run_command("evaluate", twin, *oracles)
        assert found.exit_code == 0, found.output
        assert ("scorecard" in found.stdout) == (rank == 0), "one table"

    as_two(evaluate)
    trained = snapshot(tmp_path / "oracles")
    works("evaluate", run, *oracles)
    assert snapshot(tmp_path / "oracles") == trained, "it was found"
    assert snapshot(run) == snapshot(twin)


@pytest.mark.usefixtures("short_attacks")
def test_an_oracle_of_its_own_seed_predicts_the_same(run: Path, tmp_path: Path) -> None:
    works("forget", run, "--class", "3")
    works("train", *ensemble(), "--out", tmp_path / "oracle", "--without", run)
    works("evaluate", run, "--oracle", tmp_path / "oracle")
    card = json.loads((run / "metrics" / "scorecard.json").read_text())
    measured = {measure["name"]: measure["value"] for measure in card["measures"]}
    for name in ("prediction_gap_test", "prediction_gap_forget", "js_gap_retain"):
        assert measured[name] == 0


def test_the_state_before_is_the_one_that_was(run: Path, fresh: Path) -> None:
    works("forget", run, "--class", "3")
    opened = RunFolder.open(run)
    split, pipeline = opened.load_split(), opened.load_classifier()
    assert isinstance(pipeline, AdapterEnsemblePipeline)
    back = undeleted_ensemble(opened, pipeline, find_deletion(opened, split.train).images)
    images, original = split.test.all_images()[:100], RunFolder.open(fresh).load_classifier()
    assert np.array_equal(back.probabilities(images), original.probabilities(images))
    assert not np.array_equal(pipeline.probabilities(images), original.probabilities(images))


def test_stored_codes_of_a_deleted_image_are_residue(run: Path) -> None:
    store = ExemplarFolder.open(run / "model" / "exemplars")
    gone = store.select(store.ids[store.labels == 3][:4])
    assert gone.codes is not None
    works("forget", run, *(word for name in ids_to_hex(gone.ids) for word in ("--id", name)))
    assert works("verify", run, "--residue")["passed"] is True
    save_arrays({"kept": gone.codes[1:3]}, run / "cache.safetensors")
    result = run_command("verify", run, "--residue", "--json")
    assert result.exit_code == 1
    assert "encoded tokens" in result.stdout


@pytest.mark.parametrize("keys", ["public-kmeans", "public-gaussian"])
def test_trained_heads_and_other_keys(keys: str, tmp_path: Path) -> None:
    settings = (*SGD, f"model.adapters.keys={keys}")
    run = tmp_path / "run"
    works("train", *ensemble(*settings), "--out", run)
    opened = RunFolder.open(run)
    assert opened.exemplar_folder().image_shape == (4, 4, 1)
    held = opened.load_ensemble()
    assert held.recipe.keys.source == keys
    assert held.replay() == []
    config = opened.recipe
    assert isinstance(config, ClassifierRunConfig)
    assert load_recipe(run / "recipe.yaml") == config
    some = ids_to_hex(held.ids[:2])
    works("forget", run, *(word for name in some for word in ("--id", name)))
    assert works("info", run)["deleted_images"] == 2
    assert works("verify", run)["passed"] is True
