"""The run folder: what it refuses, and what is left of it after a crash at any point."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from gen_unlearn import changes
from gen_unlearn.changes import FINISHED, UNDONE, ChangeFolder
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.pipelines.loading import served_classes, weights_digest
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import id_keys
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import RunKey, Tombstones

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


def class_of(run: RunFolder, name: str) -> ForgetSet:
    return ForgetSet.from_classes(run.exemplar_folder(), [name], f"class {name}")


def forget_class(run: RunFolder, name: str) -> ForgetSet:
    """Delete a class as the command does, and return what was deleted."""
    request = class_of(run, name)
    forget(run, request)
    return request


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
    assert len(opened.forgotten()) == 0
    assert opened.notice is None
    assert not (run.path / "model.unfinished").exists()
    assert not failures(verify(opened))


def test_the_same_recipe_finds_its_run_again(
    run: RunFolder, config: RunConfig, manifest: RunManifest
) -> None:
    before = tree(run.path)
    found = RunFolder.create(run.path, config, manifest)
    assert found.manifest.training is not None
    assert tree(run.path) == before


@pytest.mark.parametrize("changed", ["recipe_digest", "data_digest", "without", "started_from"])
def test_another_recipe_is_refused(
    run: RunFolder, config: RunConfig, manifest: RunManifest, changed: str
) -> None:
    before = tree(run.path)
    with pytest.raises(ValueError, match="holds another run"):
        RunFolder.create(run.path, config, replace(manifest, **{changed: "other"}))
    assert tree(run.path) == before


def test_a_manifest_of_before_starting_weights_were_recorded_loads(
    tmp_path: Path, manifest: RunManifest
) -> None:
    fields = json.loads(manifest.to_json())
    del fields["started_from"]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert RunManifest.from_file(tmp_path / "manifest.json") == manifest


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
    new = RunFolder.create(tmp_path / "empty" / "new", config, manifest)
    assert new.manifest == manifest.sealed(new.key)
    assert new.manifest.data_digest != manifest.data_digest, "whoever has an image could recognise it"


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
    added = {name for name in set(tree(run.path)) - files if not name.startswith("model/exemplars/")}
    assert added == {"receipts/0001.json", "receipts/0002.json"}
    assert len(set(states)) == 3
    assert len({state.split("-")[0] for state in states}) == 1, "the weights are the same"
    receipts = run.receipts()
    assert [receipt.reason for receipt in receipts] == ["class b", "class a"]
    assert [entry.kind for entry in run.ledger.entries] == ["trained", "deleted", "deleted"]
    assert run.forgotten() == Tombstones.of(first.union(second), run.key)
    assert not failures(verify(run))
    assert served_classes(RunFolder.open(run.path).load_pipeline()) == [2]


def test_a_tenth_receipt_follows_the_ninth(run: RunFolder) -> None:
    for number in range(11):
        _, path = forget(run, ForgetSet(run.exemplar_folder().ids[:1], f"request {number}"))
        assert path.name == f"{number + 1:04d}.json"
    assert [receipt.reason for receipt in run.receipts()] == [f"request {number}" for number in range(11)]


def test_everything_may_be_deleted(run: RunFolder) -> None:
    forget(run, ForgetSet(run.exemplar_folder().ids, "all"))
    assert len(RunFolder.open(run.path).load_exemplars()) == 0
    assert served_classes(run.load_pipeline()) == []


def test_a_stale_request_cannot_bring_deleted_images_back(run: RunFolder) -> None:
    """Two requests at once, made before the first deletion; the later one also asks for some of it."""
    first, other = class_of(run, "a"), class_of(run, "b")
    both = ForgetSet(first.ids[:3], "again").union(other)
    forget(run, first)
    before = tree(run.path)
    with pytest.raises(ValueError, match=r"3 of 13 ids are not in the store: .*; nothing was deleted"):
        forget(run, both)
    assert tree(run.path) == before
    forget(run, other)
    held = id_keys(run.load_exemplars().ids)
    assert not np.isin(held, id_keys(np.concatenate([first.ids, other.ids]))).any()


class Crash(BaseException):
    """Stand in for the end of a process."""


@dataclass
class Disk:
    """Let a process do only so many changes to files; from then on it is dead, and does nothing any more.

    A change is the creation, renaming, removal or flushing of a file or folder. Of a file that it dies
    flushing, the end is lost; what it did flush is there, without waiting for the real disk.
    """

    patch: pytest.MonkeyPatch
    lost = 7

    @contextmanager
    def stops_after(self, steps: int) -> Iterator[list[str]]:
        """Die before change number `steps`, from 0; give the changes that were done, which is all if few."""
        done: list[str] = []

        def limit(name: str) -> Callable[..., object]:
            original = getattr(os, name)

            def step(*arguments: object, **options: object) -> object:
                if len(done) >= steps:
                    if name == "fsync" and len(done) == steps and (size := os.fstat(arguments[0]).st_size):
                        with suppress(OSError):  # Folders cannot be cut.
                            os.ftruncate(arguments[0], max(0, size - self.lost))
                    done.append("died")
                    raise Crash
                done.append(f"{name} {arguments[0]}")
                return None if name == "fsync" else original(*arguments, **options)

            return step

        with self.patch.context() as patch:
            for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync"):
                patch.setattr(os, name, limit(name))
            yield done


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def used(run: RunFolder) -> RunFolder:
    """A run with an earlier deletion, and with things that a deletion removes."""
    forget(run, ForgetSet(run.exemplar_folder().ids[:2], "earlier"))
    for name in ("samples", "metrics/judge"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "file.txt").write_text("derived")
    (run.path / "report.html").write_text("derived")
    (run.path / "notes.txt").write_text("of the user")
    return run


def copy_of(run: RunFolder, path: Path) -> RunFolder:
    shutil.rmtree(path, ignore_errors=True)
    return RunFolder(Path(shutil.copytree(run.path, path)))


def dies(disk: Disk, steps: int, work: Callable[[], object]) -> bool:
    """Do some work on a disk that stops after so many steps; tell whether it did."""
    with disk.stops_after(steps) as done:
        try:
            work()
        except Crash:
            return True
    assert "died" not in done
    return False


def test_a_deletion_that_dies_at_any_step_is_undone_or_finished(
    used: RunFolder, disk: Disk, tmp_path: Path
) -> None:
    before, request = tree(used.path), class_of(used, "a")
    done = copy_of(used, tmp_path / "done")
    forget(done, request)
    after = tree(done.path)
    own = {"ledger.jsonl", "receipts/0002.json"}  # These hold the time and a random salt.
    notices = []
    run = copy_of(used, tmp_path / "copy")
    steps = 0
    while dies(disk, steps, lambda run=run: forget(run, request)):
        pending = run.change.pending()
        decided = (run.path / ".change" / "commit.json").exists()
        opened = RunFolder.open(run.path)
        found = tree(run.path)
        in_force = "receipts/0002.json" in found
        notices.append(opened.notice)
        if in_force:
            assert not decided or opened.notice == FINISHED.format(run.path), steps
            assert {name: found[name] for name in found.keys() - own} == {
                name: after[name] for name in after.keys() - own
            }, steps
            assert found.keys() == after.keys()
        else:
            assert not decided, steps
            assert opened.notice == (UNDONE.format(run.path) if pending else None), steps
            assert found == before, steps
        assert not failures(verify(opened)), steps
        assert opened.forgotten().mask(request.ids).tolist() == [in_force] * len(request), steps
        assert RunFolder.open(run.path).notice is None
        run = copy_of(used, tmp_path / "copy")
        steps += 1
    assert steps > 25, "staging, deciding and finishing take many steps"
    finished = [notice is not None and notice.startswith("finished") for notice in notices]
    first = finished.index(True)
    assert first > 10, "some were undone"
    assert sum(finished) > 10, "some were finished"
    assert all(finished[first : first + sum(finished)]), "once decided, always finished"


def recover(run: RunFolder) -> str | None:
    return RunFolder.open(run.path).notice


@pytest.fixture
def decided(used: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose process died when the deletion of a class was decided, and nothing more."""

    def died(*_: object) -> None:
        raise Crash

    run = copy_of(used, tmp_path / "decided")
    with monkeypatch.context() as patch:
        patch.setattr(ChangeFolder, "_finish", died)
        with pytest.raises(Crash):
            forget_class(run, "a")
    assert (run.path / ".change" / "commit.json").exists()
    return run


def test_a_deletion_in_force_is_never_said_to_be_undone(
    decided: RunFolder, disk: Disk, tmp_path: Path
) -> None:
    run = copy_of(decided, tmp_path / "copy")
    steps = 0
    notices = []
    while dies(disk, steps, lambda run=run: recover(run)):
        notices.append(recover(run))
        assert (run.receipts_path / "0002.json").exists()
        run = copy_of(decided, tmp_path / "copy")
        steps += 1
    assert UNDONE.format(run.path) not in notices


def test_finishing_that_dies_at_any_step_and_once_more_ends_with_the_same_bytes(
    used: RunFolder, decided: RunFolder, disk: Disk, tmp_path: Path
) -> None:
    straight = copy_of(decided, tmp_path / "straight")
    assert recover(straight) == FINISHED.format(straight.path)
    expected = tree(straight.path)
    run = copy_of(decided, tmp_path / "copy")
    steps = 0
    while dies(disk, steps, lambda run=run: recover(run)):
        again = steps % 5
        dies(disk, again, lambda run=run: recover(run))
        recover(run)
        assert tree(run.path) == expected, steps
        run = copy_of(decided, tmp_path / "copy")
        steps += 1
    assert steps > 10
    assert {name.partition("/")[0] for name in tree(used.path).keys() - expected.keys()} >= {
        "samples",
        "metrics",
        "report.html",
    }
    assert expected["notes.txt"] == b"of the user"


@pytest.mark.parametrize("step", ["_move", "append_line", "_remove"])
def test_an_error_while_finishing_leaves_the_finishing_to_the_next_command(
    used: RunFolder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A disk that is full, or a file that another program holds, is reported; nothing is lost by it."""

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(changes, step, fails)
        with pytest.raises(ValueError, match=r"decided but could not be finished: .*No space left") as error:
            forget_class(used, "a")
        assert str(error.value).endswith("the next command will finish it")
    opened = RunFolder.open(used.path)
    assert opened.notice == FINISHED.format(used.path)
    assert len(opened.receipts()) == 2
    assert not failures(verify(opened))


def test_an_error_while_preparing_undoes_everything_at_once(
    used: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(used.path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("write_flushed", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(changes, step, fails)
            with pytest.raises(OSError, match="No space left"):
                forget_class(used, "a")
        assert tree(used.path) == before
        assert not used.change.pending()
    assert RunFolder.open(used.path).notice is None
    assert len(forget_class(used, "a")) > 0, "the request can be made again"


def test_the_line_of_a_ledger_that_was_cut_short_is_written_again(decided: RunFolder, tmp_path: Path) -> None:
    line = json.loads((decided.path / ".change" / "commit.json").read_text())["line"].encode()
    for torn in (b"", line[:1], line[:-1], line):
        run = copy_of(decided, tmp_path / "copy")
        with run.ledger_path.open("ab") as file:
            file.write(torn)
        opened = RunFolder.open(run.path)
        assert opened.ledger.lines[-1] == line
        assert len(opened.ledger.lines) == 3


@pytest.mark.parametrize(
    "altered",
    [
        {"stores": {"exemplars": {"new": ["../../recipe.yaml"], "obsolete": []}}},
        {"stores": {"exemplars": {"new": [], "obsolete": ["../unet/config.json"]}}},
        {"stores": {"..": {"new": [], "obsolete": ["recipe.yaml"]}}},
        {"purge": ["../other"]},
        {"purge": [".."]},
        {"purge": [""]},
        {"receipt": "../recipe.yaml"},
    ],
    ids=str,
)
def test_a_change_that_reaches_elsewhere_is_refused(
    decided: RunFolder, tmp_path: Path, altered: dict[str, object]
) -> None:
    path = decided.path / ".change" / "commit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **altered}))
    before = tree(tmp_path)
    with pytest.raises(
        ValueError, match=r"commit.json was not written by this program; remove .*\.change by"
    ):
        RunFolder.open(decided.path)
    assert tree(tmp_path) == before


def test_a_run_takes_over_the_key_of_what_it_is_trained_without(
    tmp_path: Path, config: RunConfig, manifest: RunManifest, few_images: IndexedImages
) -> None:
    gone = Tombstones.of(ForgetSet(few_images.ids[:3], "test"), RunKey.fresh())
    oracle = RunFolder.create(tmp_path / "oracle", config, replace(manifest, without=gone.digest), gone)
    assert oracle.key == gone.key
    assert oracle.without() == gone
    assert RunFolder.create(tmp_path / "run", config, manifest).without() is None


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
