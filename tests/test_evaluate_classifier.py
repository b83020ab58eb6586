"""Evaluation of classifiers: what is compared, what is left out, and which oracles are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, refused, run_command, works
from run_factory import snapshot
from safetensors.torch import save_file
from two_processes import as_two

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.add import add
from gen_unlearn.commands.evaluate_classifier import evaluate_classifier
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.oracles import find_oracles, missing_seeds, oracle_seeds, require_oracle
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, starting_weights, train
from gen_unlearn.commands.verify import replay
from gen_unlearn.config import load_recipe
from gen_unlearn.data import IndexedImages
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.repro import image_ids
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import sha256

RECIPE = CONFIGS / "digits_spm_classifier.yaml"
TINY = (
    "training.images=1280",
    "training.batch_size=64",
    "training.warmup_images=128",
    "training.learning_rate=0.02",
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "model.key_dim=16",
)
SETS = ("forget", "retain", "test", "forget_class_test", "held_out")


def recipe(*overrides: str) -> ClassifierRunConfig:
    config = load_recipe(RECIPE, [*TINY, *overrides])
    assert isinstance(config, ClassifierRunConfig)
    return config


def parametric(*overrides: str) -> ClassifierRunConfig:
    return recipe("model.kind=parametric", *overrides)


def delete(run: RunFolder, request: ForgetRequest) -> RunFolder:
    forget(run, request.resolve(run).forget_set)
    return RunFolder.open(run.path)


def copied(run: RunFolder, path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(run.path, path)))


def named(card: Scorecard) -> set[str]:
    return {measure.name for measure in card.measures}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(recipe(), tmp_path_factory.mktemp("classifier") / "trained")


@pytest.fixture(scope="module")
def run(trained: RunFolder) -> RunFolder:
    """The run without class 3."""
    return delete(copied(trained, trained.path.with_name("run")), ForgetRequest(classes=("3",)))


@pytest.fixture(scope="module")
def oracles(run: RunFolder) -> list[RunFolder]:
    return find_oracles(run, run.path.with_name("oracles"), oracle_seeds(run, 2))


@pytest.fixture(scope="module")
def plain(run: RunFolder) -> RunFolder:
    """A parametric oracle."""
    without, origin = deleted_from([run.path])
    return train(parametric("seed=4"), run.path.with_name("plain"), without, origin)


def test_two_processes_judge_as_one(run: RunFolder, oracles: list[RunFolder], tmp_path: Path) -> None:
    one, two = copied(run, tmp_path / "one"), copied(run, tmp_path / "two")
    asked = ["--oracle", oracles[0].path, "--oracle", oracles[1].path, "--set", "prediction.batch_size=150"]

    def evaluate(rank: int) -> None:
        found = run_command("evaluate", two.path, *asked)
        assert found.exit_code == 0, found.output
        assert ("scorecard" in found.stdout) == (rank == 0), "one table"
        assert two.scorecard_path.exists()

    assert run_command("evaluate", one.path, *asked).exit_code == 0
    as_two(evaluate)
    assert one.scorecard_path.read_bytes() == two.scorecard_path.read_bytes()
    assert snapshot(one.path) == snapshot(two.path)


def test_a_deleted_class_beside_retrained_models(
    trained: RunFolder, run: RunFolder, oracles: list[RunFolder], plain: RunFolder
) -> None:
    card = evaluate_classifier(run, [*oracles, plain])
    assert list(card.accuracy_per_class) == ["before", "after", "oracle", "parametric"]
    for name in SETS:
        for state in ("before", "after", "oracle", "parametric"):
            assert (f"accuracy_{name}_{state}" in named(card)) == (name != "held_out")
        for quantity in ("prediction_gap", "soft_gap", "js_gap"):
            for ending in ("", "_before", "_parametric", "_parametric_before"):
                assert f"{quantity}_{name}{ending}" in named(card)
        assert f"prediction_gap_excess_{name}" in named(card)
    for name in ("forget", "forget_class_test"):
        assert card.value(f"accuracy_{name}_after") == card.value(f"accuracy_{name}_oracle") == 0
        assert card.value(f"accuracy_{name}_before") > 0.3
        assert card.value(f"prediction_gap_{name}_before") > card.value(f"prediction_gap_{name}")
    assert card.value("seconds_delete") > 0
    assert card.accuracy_per_class["after"]["3"] == 0
    split = run.load_split()
    counts = np.bincount(split.test.labels, minlength=10)
    for state, models in (("after", 1), ("oracle", 2)):
        rows = [sum(row.values()) for row in card.confusion[state].values()]
        assert rows == (models * counts).tolist()
    sizes = card.protocol["images"]
    assert sizes["forget"] == 146
    assert sizes["retain"] == len(run.exemplar_folder())
    assert sizes["test"] + sizes["forget_class_test"] == sizes["held_out"] == len(split.test)
    assert card.protocol["oracle_seeds"] == [1, 2], "not the run's own, whose initial weights are the same"
    assert card.protocol["forgotten_classes"] == ["3"]
    assert any("One retrained model (parametric) gives no floor" in note for note in card.notes)
    assert Scorecard.from_file(run.scorecard_path).to_json() == card.to_json()

    undeleted = evaluate_classifier(copied(trained, run.path.with_name("undeleted")))
    assert undeleted.confusion["before"] == card.confusion["before"], "put back as it was"


def test_before_a_deletion_there_are_accuracies_alone(trained: RunFolder, plain: RunFolder) -> None:
    card = evaluate_classifier(trained)
    assert named(card) == {"accuracy_retain_before", "accuracy_test_before", "seconds_train"}
    assert card.notes == ()
    few = evaluate_classifier(trained.with_overrides(["evaluation.retained_images=50"]))
    assert few.protocol["images"]["retain"] == 50
    card = evaluate_classifier(plain)
    accuracies = {"accuracy_retain_before", "accuracy_test_before", "accuracy_forget_class_test_before"}
    assert named(card) == {*accuracies, "seconds_train"}
    assert card.protocol["images"]["retain"] == 1438 - 146


def test_another_vote_is_that_of_all_models(run: RunFolder, oracles: list[RunFolder]) -> None:
    nearest = run.with_overrides(["prediction.vote=nearest-neighbours", "prediction.neighbours=1"])
    one, other = evaluate_classifier(run, oracles), evaluate_classifier(nearest, oracles)
    assert other.protocol["prediction"]["vote"] == "nearest-neighbours"
    assert one.value("accuracy_retain_oracle") < other.value("accuracy_retain_oracle") == 1


def test_a_lone_oracle_and_no_oracle_are_said(run: RunFolder, oracles: list[RunFolder]) -> None:
    card = evaluate_classifier(run, oracles[:1])
    assert any("--oracle-seeds 2" in note for note in card.notes)
    assert not any("excess" in name for name in named(card))
    assert any("No oracle was given" in note for note in evaluate_classifier(run).notes)


def test_what_the_source_never_had_cannot_be_put_back(trained: RunFolder, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    names = run.manifest.class_names
    add(run, IndexedImages(pixels, np.zeros(2, np.int64), image_ids(pixels), names, ("a", "b")))
    run = delete(run, ForgetRequest(ids=[bytes(row).hex() for row in image_ids(pixels)[:1]]))
    card = evaluate_classifier(run)
    assert list(card.confusion) == ["after"]
    assert any("holds 0 of the 1 deleted images" in note for note in card.notes)
    assert not any("_forget_" in name for name in named(card))


def test_a_run_without_any_exemplar_predicts_nothing(trained: RunFolder, tmp_path: Path) -> None:
    run = delete(copied(trained, tmp_path / "run"), ForgetRequest(classes=trained.manifest.class_names))
    card = evaluate_classifier(run)
    assert list(card.confusion) == ["before"]
    assert any("No exemplar is left" in note for note in card.notes)
    assert {"accuracy_forget_before", "accuracy_forget_class_test_before"} <= named(card)


def test_retained_images_of_a_public_core_are_its_exemplars(tmp_path: Path) -> None:
    short = ("training.images=64",)
    public = train(recipe("core.mode=public", *short), tmp_path / "public")
    run = delete(public, ForgetRequest(fraction=0.1))
    (twin,) = find_oracles(run, tmp_path / "oracles", [0])
    card = evaluate_classifier(run, [twin])
    assert card.protocol["images"]["retain"] == len(run.exemplar_folder()) < 700
    assert card.value("soft_gap_held_out") == 0, "bit-exact: the same seed trains the same run"
    assert any("share the training seed" in note for note in card.notes)


def test_refuses_oracles_of_something_else(
    trained: RunFolder, run: RunFolder, oracles: list[RunFolder], plain: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="was not trained without exactly what was deleted"):
        evaluate_classifier(run, [trained])
    with pytest.raises(ValueError, match="some of one seed"):
        evaluate_classifier(run, [plain, plain])
    for nothing in (oracles[0], plain):
        with pytest.raises(ValueError, match="nothing was deleted from"):
            evaluate_classifier(trained, [nothing])
    short = ("training.images=32",)
    everything = train(parametric(*short), tmp_path / "everything")
    with pytest.raises(ValueError, match="was not trained without exactly what was deleted"):
        evaluate_classifier(run, [everything])
    with pytest.raises(ValueError, match="nothing was deleted from"):
        evaluate_classifier(everything, [plain])
    without, origin = deleted_from([run.path])
    other = train(parametric(*short, "data.image_size=8"), tmp_path / "other", without, origin)
    with pytest.raises(ValueError, match="expected the data section of"):
        evaluate_classifier(run, [other])
    moved = copied(plain, tmp_path / "moved")
    lines = moved.held_out_path.read_text(encoding="utf-8").splitlines(keepends=True)
    moved.held_out_path.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="the classes and the held-out images of"):
        evaluate_classifier(run, [moved])


def test_a_frozen_encoder_needs_one_that_never_saw_the_images(tmp_path: Path) -> None:
    short = ("training.images=64",)
    encoder = train(parametric(*short), tmp_path / "encoder")
    config = recipe(*short, f"training.encoder_run={encoder.path}")
    run = delete(train(config, tmp_path / "run"), ForgetRequest(fraction=0.1))
    with pytest.raises(ValueError, match=r"saw the deleted images.*--set training.encoder_run=ENCODER"):
        find_oracles(run, tmp_path / "oracles", [1])
    line = refused("evaluate", run.path, "--oracles", tmp_path / "oracles", "--dry-run")
    assert "saw the deleted images" in line
    without, origin = deleted_from([run.path])
    seen = train(
        recipe(*short, f"training.encoder_run={encoder.path}", "seed=1"), tmp_path / "seen", without, origin
    )
    with pytest.raises(ValueError, match=r"encoder was not trained without exactly what was deleted"):
        require_oracle(run, seen)
    clean = train(parametric(*short, "seed=1"), tmp_path / "clean", without, origin)
    oracle = recipe(*short, f"training.encoder_run={clean.path}", "seed=1")
    trained = train(oracle, tmp_path / "oracle", without, origin)
    card = evaluate_classifier(run, [trained])
    assert card.protocol["oracles"] == 1
    assert not any("encoder weights" in note for note in card.notes), "its encoder began with fresh weights"
    assert clean.manifest.training is not None
    assert trained.manifest.started_from == clean.manifest.training.weights_digest
    (line,) = (left for left in run.receipts()[0].left if left.startswith("training.encoder_run"))
    assert f"{encoder.path} (SHA-256 of the weights {run.manifest.started_from})" in line
    shutil.rmtree(clean.path)
    train(parametric("training.images=128", "seed=1"), clean.path, without, origin)
    with pytest.raises(ValueError, match="which was trained again"):
        require_oracle(run, trained)


def test_weights_from_elsewhere_are_recorded_and_said(plain: RunFolder, tmp_path: Path) -> None:
    network, file = plain.load_classifier().network, tmp_path / "weights.safetensors"
    save_file(network.encoder.state_dict(), file)
    content, digest = file.read_bytes(), sha256(file.read_bytes())
    config = recipe("core.mode=public", "training.images=64", f"model.encoder.weights={file}")
    trained = train(config, tmp_path / "run")
    assert trained.manifest.started_from == digest
    run = delete(trained, ForgetRequest(fraction=0.1))
    (receipt,) = run.receipts()
    assert receipt.level == "bit-exact"
    assert any(f"model.encoder.weights {file} (SHA-256 of the weights {digest})" in e for e in receipt.left)
    assert all(check.passed for check in replay(run))
    folder = tmp_path / "oracles"
    (oracle,) = find_oracles(run, folder, [1])
    notes = evaluate_classifier(run, [oracle]).notes
    assert any("start from the same encoder weights as this run" in note for note in notes)

    save_file({name: 2 * tensor for name, tensor in network.encoder.state_dict().items()}, file)
    assert find_oracles(run, folder, [1])[0].path == oracle.path, "what is there needs no weights"
    with pytest.raises(ValueError, match=r"are not those that .* started from.*put them back"):
        find_oracles(run, folder, [1, 2])
    with pytest.raises(ValueError, match="or the weights that it started from differ"):
        train(config, run.path)
    without, origin = deleted_from([run.path])
    other = train(replace(config, seed=2), folder / "other", without, origin)
    with pytest.raises(ValueError, match="started from other weights"):
        require_oracle(run, other)
    file.write_bytes(content)
    assert missing_seeds(run, folder, [1, 2]) == [2]


def test_weights_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    kind = ("model.encoder.kind=transformers", "model.encoder.width=32", "model.encoder.depth=1")
    config = recipe(*kind, f"model.encoder.weights={tmp_path}")
    with pytest.raises(ValueError, match=r"expected weights at .*which model.encoder.weights names"):
        starting_weights(config)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = starting_weights(config)
    (tmp_path / "README.md").write_text("other")
    assert starting_weights(config) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert starting_weights(config) != first


def test_parametric_oracles_are_of_one_recipe(run: RunFolder, plain: RunFolder, tmp_path: Path) -> None:
    without, origin = deleted_from([run.path])
    other = train(parametric("seed=5", "training.images=64"), tmp_path / "other", without, origin)
    with pytest.raises(ValueError, match="parametric oracles whose recipes differ in the seed only"):
        evaluate_classifier(run, [plain, other])
    again = train(parametric("seed=5"), tmp_path / "again", without, origin)
    assert evaluate_classifier(run, [plain, again]).protocol["parametric_seeds"] == [4, 5]


@pytest.mark.parametrize("core", ["joint", "public"])
def test_where_nothing_is_retained_no_oracle_is_trained(core: str, tmp_path: Path) -> None:
    trained = train(recipe("training.images=64", f"core.mode={core}"), tmp_path / "run")
    run = delete(trained, ForgetRequest(fraction=1.0))
    for options in ((), ("--dry-run",)):
        line = refused("evaluate", run.path, "--oracles", tmp_path / "oracles", *options)
        assert f"nothing is retained in {run.path}, so there is no oracle" in line
    assert not (tmp_path / "oracles").exists()


def test_the_command(run: RunFolder, oracles: list[RunFolder], plain: RunFolder, tmp_path: Path) -> None:
    folder, judged = oracles[0].path.parent, copied(run, tmp_path / "run").path
    plan = works("evaluate", judged, "--oracles", folder, "--oracle-seeds", "3", "--dry-run")
    assert plan == {
        "deleted_images": 146,
        "retained_images": 10_000,
        "held_out_images": 359,
        "oracles_to_train": 1,
    }
    command = ("evaluate", judged, "--oracle", plain.path)
    facts = works(*command, "--oracles", folder, "--oracle-seeds", "2")
    assert (facts["protocol"]["oracles"], facts["protocol"]["parametric_oracles"]) == (2, 1)
    for option in (
        ("--images", tmp_path),
        ("--features", "judge"),
        ("--weights", tmp_path),
        ("--detect", "1"),
    ):
        line = refused("evaluate", judged, *option)
        assert f"expected {option[0]} with a generator only" in line
    assert "at least one oracle seed" in refused(
        "evaluate", judged, "--oracles", folder, "--oracle-seeds", "0"
    )
