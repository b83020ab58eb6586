"""The run folder: what it refuses, and what is left of it after a crash at any point."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.pipelines.loading import served_classes, weights_digest
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import id_keys
from gen_unlearn.runs import RunFolder

DIGITS = Path(__file__).parents[1] / "configs" / "digits_spm.yaml"


@pytest.fixture
def config() -> RunConfig:
    return load_config(DIGITS)


@pytest.fixture
def manifest(config: RunConfig, few_images: IndexedImages) -> RunManifest:
    return RunManifest(config.digest, few_images.digest, few_images.class_names, few_images.image_shape)


@pytest.fixture
def run(
    tmp_path: Path, config: RunConfig, manifest: RunManifest, tiny_pipeline: SemiParametricDDPMPipeline
) -> RunFolder:
    """A run that holds the tiny pipeline as if it had been trained."""
    folder = RunFolder.create(tmp_path / "run", config, manifest)
    folder.complete_training(tiny_pipeline, TrainingRecord(1.5, 30, 0.5, 100, weights_digest(tiny_pipeline)))
    return folder


def forget_class(run: RunFolder, name: str) -> ForgetSet:
    """Delete a class as the command does, and return what was deleted."""
    store = run.load_exemplars()
    forget = ForgetSet.from_classes(store, [name], f"class {name}")
    run.commit_deletion(store, store.delete(forget))
    return forget


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_trained_run_opens_and_serves(run: RunFolder, config: RunConfig, few_images: IndexedImages) -> None:
    opened = RunFolder.open(run.path)
    assert opened.config == config
    assert opened.manifest.training is not None
    assert opened.manifest.training.seconds == 1.5
    assert opened.manifest.class_names == ("a", "b", "c")
    pipeline = opened.load_pipeline()
    assert served_classes(pipeline) == [0, 1, 2]
    assert weights_digest(pipeline) == opened.manifest.training.weights_digest
    assert opened.load_exemplars().digest == ExemplarStore.from_images(few_images).digest
    assert opened.receipts() == []
    assert opened.forgotten() is None
    assert not (run.path / "model.unfinished").exists()


def test_the_same_recipe_finds_its_run_again(
    run: RunFolder, config: RunConfig, manifest: RunManifest
) -> None:
    before = tree(run.path)
    found = RunFolder.create(run.path, config, manifest)
    assert found.manifest.training is not None
    assert tree(run.path) == before


@pytest.mark.parametrize("changed", ["recipe_digest", "data_digest", "without"])
def test_another_recipe_is_refused(
    run: RunFolder, config: RunConfig, manifest: RunManifest, changed: str
) -> None:
    before = tree(run.path)
    with pytest.raises(ValueError, match="holds another run"):
        RunFolder.create(run.path, config, replace(manifest, **{changed: "other"}))
    assert tree(run.path) == before


def test_a_folder_with_other_things_is_refused(
    tmp_path: Path, config: RunConfig, manifest: RunManifest
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine is not empty and holds no run"):
        RunFolder.create(tmp_path / "mine", config, manifest)
    with pytest.raises(ValueError, match=r"thesis.txt is not empty"):
        RunFolder.create(tmp_path / "mine" / "thesis.txt", config, manifest)
    assert tree(tmp_path) == {"mine/thesis.txt": b"years of work"}
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty" / "new", config, manifest).manifest == manifest


def test_only_a_trained_run_opens(tmp_path: Path, config: RunConfig, manifest: RunManifest) -> None:
    with pytest.raises(ValueError, match=r"holds no run: manifest.json is missing"):
        RunFolder.open(tmp_path)
    RunFolder.create(tmp_path / "run", config, manifest)
    with pytest.raises(ValueError, match=r"is not complete; continue it with: gen-unlearn train"):
        RunFolder.open(tmp_path / "run")


def test_deletions_leave_receipts_in_order_and_nothing_else(run: RunFolder) -> None:
    files = set(tree(run.path))
    states = [run.state_digest()]
    first = forget_class(run, "b")
    states.append(run.state_digest())
    second = forget_class(run, "a")
    states.append(run.state_digest())
    assert set(tree(run.path)) - files == {"receipts/0001.json", "receipts/0002.json"}
    assert len(set(states)) == 3
    assert len({state.split("-")[0] for state in states}) == 1, "the weights are the same"
    receipts = run.receipts()
    assert [receipt.reason for receipt in receipts] == ["class b", "class a"]
    assert receipts[0].digest_after == receipts[1].digest_before
    assert run.forgotten() == first.union(second)
    receipts[1].verify(run.load_exemplars())
    assert served_classes(RunFolder.open(run.path).load_pipeline()) == [2]


def test_a_tenth_receipt_follows_the_ninth(run: RunFolder) -> None:
    for number in range(11):
        store = run.load_exemplars()
        receipt = store.delete(ForgetSet(store.ids[:1], f"request {number}"))
        assert run.commit_deletion(store, receipt).name == f"{number + 1:04d}.json"
    assert [receipt.reason for receipt in run.receipts()] == [f"request {number}" for number in range(11)]


def test_everything_may_be_deleted(run: RunFolder) -> None:
    store = run.load_exemplars()
    run.commit_deletion(store, store.delete(ForgetSet(store.ids, "all")))
    assert len(RunFolder.open(run.path).load_exemplars()) == 0
    assert served_classes(run.load_pipeline()) == []


def test_a_stale_store_cannot_bring_deleted_images_back(run: RunFolder) -> None:
    """Two requests at once: the later one holds a store from before the first deletion."""
    stale = run.load_exemplars()
    first = forget_class(run, "a")
    receipt = stale.delete(ForgetSet.from_classes(stale, ["b"], "class b"))
    with pytest.raises(ValueError, match=r"changed|another deletion|again"):
        run.commit_deletion(stale, receipt)
    assert not np.isin(id_keys(run.load_exemplars().ids), id_keys(first.ids)).any()


def crashed_before_the_receipt(run: RunFolder, after: Path) -> None:
    shutil.copytree(after / "model" / "exemplars", run.model_path / "exemplars.next-0001")


def crashed_while_writing_the_store(run: RunFolder, after: Path) -> None:
    crashed_before_the_receipt(run, after)
    (run.model_path / "exemplars.next-0001" / "config.json").write_text("{")


def crashed_while_writing_the_receipt(run: RunFolder, after: Path) -> None:
    crashed_before_the_receipt(run, after)
    run.receipts_path.mkdir()
    (run.receipts_path / ".0001.json.unfinished").write_text('{"ids": [')


def crashed_after_the_receipt(run: RunFolder, after: Path) -> None:
    crashed_before_the_receipt(run, after)
    shutil.copytree(after / "receipts", run.receipts_path)


def crashed_between_the_renames(run: RunFolder, after: Path) -> None:
    crashed_after_the_receipt(run, after)
    (run.model_path / "exemplars").rename(run.model_path / "exemplars.previous")


def crashed_before_the_cleaning(run: RunFolder, after: Path) -> None:
    crashed_between_the_renames(run, after)
    (run.model_path / "exemplars.next-0001").rename(run.model_path / "exemplars")


@pytest.mark.parametrize(
    ("crash", "holds"),
    [
        (crashed_while_writing_the_store, False),
        (crashed_before_the_receipt, False),
        (crashed_while_writing_the_receipt, False),
        (crashed_after_the_receipt, True),
        (crashed_between_the_renames, True),
        (crashed_before_the_cleaning, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_crash_leaves_the_old_state_or_the_new_one(
    run: RunFolder, tmp_path: Path, crash: Callable[[RunFolder, Path], None], holds: bool
) -> None:
    done = RunFolder(Path(shutil.copytree(run.path, tmp_path / "done")))
    forgotten = forget_class(done, "a")
    expected = tree((done if holds else run).path)
    crash(run, done.path)
    opened = RunFolder.open(run.path)
    found = tree(run.path)
    found.pop("receipts/.0001.json.unfinished", None)
    assert found == expected
    assert opened.forgotten() == (forgotten if holds else None)
    if not holds:
        assert len(forget_class(opened, "a")) == 10, "the request can be made again"
        assert len(opened.receipts()) == 1
    assert len(opened.load_exemplars()) == 20
    assert set(tree(run.path)) == set(tree(done.path))


def test_only_how_a_run_is_used_can_be_overridden(run: RunFolder, config: RunConfig) -> None:
    used = run.with_overrides(["sampling.seed=3"]).with_overrides(["evaluation.images_per_class=7"])
    assert used.config.sampling.seed == 3
    assert used.config.evaluation.images_per_class == 7
    assert used.config.digest == config.digest
    assert run.config == config
    assert load_config(run.recipe_path) == config
    for fixed in (
        "training.images=1",
        "model.dropout=0.5",
        "noise.beta_end=1",
        "seed=1",
        "data.test_fraction=0.3",
    ):
        with pytest.raises(ValueError, match=rf"{fixed.partition('=')[0]} is fixed once a run is trained"):
            run.with_overrides([fixed])


def test_the_sampler_of_the_recipe_in_use_is_the_one_that_samples(run: RunFolder) -> None:
    assert type(run.load_pipeline().scheduler).__name__ == "DDIMScheduler"
    changed = run.with_overrides(["sampling.sampler=dpm-solver++"])
    assert type(changed.load_pipeline().scheduler).__name__ == "DPMSolverMultistepScheduler"
