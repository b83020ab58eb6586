"""Oracles are known by digest: what is taken for one, what is trained, and what is left alone."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import CONFIGS, TINY_OVERRIDES, refused, run_command, tree, works
from run_factory import snapshot

from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.oracles import find_oracles, require_oracle
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.batches import DiffusionBatch, DiffusionBatches
from gen_unlearn.training.checkpoint import TrainingInterruptedError

FAST = (
    *TINY_OVERRIDES,
    "evaluation.membership.images=6",
    "evaluation.membership.exemplars_per_class=8",
)


def recipe(*overrides: str) -> RunConfig:
    return load_config(CONFIGS / "digits_spm.yaml", [*FAST, *overrides])


def delete(run: RunFolder, request: ForgetRequest) -> RunFolder:
    forget(run, request.resolve(run).forget_set, keep_comparison=True)
    return RunFolder.open(run.path)


def some_ids(run: RunFolder, first: int, count: int) -> ForgetRequest:
    return ForgetRequest(ids=ids_to_hex(run.load_exemplars().ids[first : first + count]))


def copied(run: RunFolder, path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(run.path, path)))


@contextmanager
def trained_runs() -> Iterator[list[int]]:
    """Collect the number of the first micro-batch of every training, if there is one."""
    original, asked = DiffusionBatches.__getitem__, []

    def getitem(self: DiffusionBatches, index: int) -> DiffusionBatch:
        asked.append(index)
        return original(self, index)

    firsts: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBatches, "__getitem__", getitem)
        yield firsts
    firsts += [index for before, index in zip([10**9, *asked], asked, strict=False) if index <= before]


@contextmanager
def interrupted(index: int) -> Iterator[None]:
    """Press Ctrl-C while micro-batch `index` is being made."""
    original = DiffusionBatches.__getitem__

    def getitem(self: DiffusionBatches, asked: int) -> DiffusionBatch:
        if asked == index:
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBatches, "__getitem__", getitem)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing was deleted from; tests change copies."""
    return train(recipe(), tmp_path_factory.mktemp("oracles") / "run")


@pytest.fixture(scope="module")
def run(trained: RunFolder) -> RunFolder:
    """A run without 40 of its images, which tests do not change."""
    return delete(copied(trained, trained.path.with_name("deleted")), some_ids(trained, 0, 40))


@pytest.fixture(scope="module")
def found(run: RunFolder) -> list[RunFolder]:
    """Its oracles of seeds 0 and 1, which tests do not change."""
    return find_oracles(run, run.path.with_name("oracles"), range(2))


@pytest.fixture
def folder(found: list[RunFolder], tmp_path: Path) -> Path:
    """A copy of the folder of oracles."""
    return Path(shutil.copytree(found[0].path.parent, tmp_path / "oracles"))


def test_missing_oracles_are_trained_and_the_next_call_trains_nothing(
    run: RunFolder, found: list[RunFolder]
) -> None:
    assert [oracle.config.seed for oracle in found] == [0, 1]
    for oracle in found:
        require_oracle(run, oracle)
        assert len(oracle.load_exemplars()) == len(run.load_exemplars())
        assert oracle.load_exemplars().digest == run.load_exemplars().digest
    first, second = (oracle.manifest.training for oracle in found)
    assert first is not None is not second
    assert first.weights_digest != second.weights_digest
    folder = found[0].path.parent
    assert len(list(folder.iterdir())) == 2
    before = tree(folder)
    with trained_runs() as firsts:
        assert [o.path for o in find_oracles(run, folder, range(2))] == [o.path for o in found]
        assert [o.path for o in find_oracles(run, folder, [1])] == [found[1].path]
    assert tree(folder) == before
    assert firsts == []


def test_found_whatever_it_is_called_in_the_order_of_the_seeds(run: RunFolder, folder: Path) -> None:
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / ("ünder a name", "zz")[number])
    with trained_runs() as firsts:
        assert [oracle.config.seed for oracle in find_oracles(run, folder, [1, 0])] == [1, 0]
    assert firsts == []


def test_one_that_the_train_command_made_is_taken(run: RunFolder, tmp_path: Path) -> None:
    settings = [word for override in FAST for word in ("--set", override)]
    made = tmp_path / "oracles" / "mine"
    works("train", "--config", CONFIGS / "digits_spm.yaml", *settings, "--without", run.path, "--out", made)
    assert [oracle.path for oracle in find_oracles(run, made.parent, [0])] == [made]


def test_how_a_run_is_judged_and_sampled_makes_no_other_oracle(
    run: RunFolder, found: list[RunFolder]
) -> None:
    other = run.with_overrides(["sampling.seed=5", "evaluation.images_per_class=7"])
    with trained_runs() as firsts:
        assert [oracle.path for oracle in find_oracles(other, found[0].path.parent, [0])] == [found[0].path]
    assert firsts == []


STRANGERS: dict[str, Callable[[RunFolder, RunFolder, Path], object]] = {
    "other images, as many": lambda trained, _, folder: train(
        recipe(),
        folder / "stranger",
        *deleted_from([delete(copied(trained, folder.parent / "c"), some_ids(trained, 40, 40)).path]),
    ),
    "fewer images": lambda trained, _, folder: train(
        recipe(),
        folder / "stranger",
        *deleted_from([delete(copied(trained, folder.parent / "c"), some_ids(trained, 0, 39)).path]),
    ),
    "another recipe": lambda _, run, folder: train(
        recipe("training.learning_rate=0.01"), folder / "stranger", *deleted_from([run.path])
    ),
    "the same images, another run's key": lambda trained, _, folder: train(
        recipe(),
        folder / "stranger",
        *deleted_from([delete(train(recipe(), folder.parent / "c"), some_ids(trained, 0, 40)).path]),
    ),
    "the run itself": lambda _, run, folder: copied(run, folder / "stranger"),
    "no oracle": lambda trained, _, folder: copied(trained, folder / "stranger"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_is_left_alone(trained: RunFolder, run: RunFolder, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "oracles"
    STRANGERS[kind](trained, run, folder)
    stranger = RunFolder.open(folder / "stranger")
    with pytest.raises(ValueError, match=re.escape(str(stranger.path))):
        require_oracle(run, stranger)
    before = snapshot(stranger.path)
    (oracle,) = find_oracles(run, folder, [0])
    assert oracle.path != stranger.path
    require_oracle(run, oracle)
    assert snapshot(stranger.path) == before


def test_one_that_was_changed_later_is_not_taken(
    run: RunFolder, found: list[RunFolder], folder: Path
) -> None:
    changed = RunFolder.open(folder / found[0].path.name)
    delete(changed, some_ids(changed, 0, 1))
    with pytest.raises(ValueError, match="changed after its training; move it out of the folder"):
        find_oracles(run, folder, [0])
    changed.path.rename(folder / "set aside")
    (oracle,) = find_oracles(run, folder, [0])
    assert oracle.path == changed.path
    with pytest.raises(ValueError, match="was not trained without exactly what was deleted"):
        require_oracle(run, RunFolder.open(folder / "set aside"))


def test_a_later_deletion_from_the_run_needs_other_oracles(
    run: RunFolder, found: list[RunFolder], folder: Path, tmp_path: Path
) -> None:
    more = delete(copied(run, tmp_path / "more"), some_ids(run, 0, 5))
    (oracle,) = find_oracles(more, folder, [0])
    assert oracle.path not in [one.path for one in found]
    assert len(oracle.load_exemplars()) == len(run.load_exemplars()) - 5
    assert len(list(folder.iterdir())) == 3


def test_junk_is_ignored(run: RunFolder, found: list[RunFolder], folder: Path) -> None:
    (folder / "notes.txt").write_text("of no use")
    (folder / "manifest.json").write_text("not one level deeper")
    (folder / "empty").mkdir()
    (folder / "images" / "deep").mkdir(parents=True)
    (folder / "images" / "deep" / "manifest.json").write_text("too deep")
    (folder / "images" / "recipe.yaml").write_text("a: 1")
    (folder / "gone").symlink_to(folder / "nowhere")
    with trained_runs() as firsts:
        oracles = find_oracles(run, folder, range(2))
    assert [oracle.path.name for oracle in oracles] == [oracle.path.name for oracle in found]
    assert firsts == []


@pytest.mark.parametrize("text", ["", "[]", "null", '{"name": "of a web page"}', "\ud800"])
def test_a_damaged_manifest_is_named(run: RunFolder, folder: Path, text: str) -> None:
    """It might be that of an oracle, which took hours: people decide, not the program."""
    (folder / "aaa").mkdir()
    (folder / "aaa" / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    line = refused("evaluate", run.path, "--oracles", folder, "--oracle-seeds", "2")
    assert f"{folder / 'aaa' / 'manifest.json'} is not the manifest of a run" in line


def test_a_damaged_ledger_of_an_oracle_is_named(run: RunFolder, found: list[RunFolder], folder: Path) -> None:
    path = folder / found[0].path.name / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\n")
    assert f"{path} is damaged" in refused("evaluate", run.path, "--oracles", folder)


def test_training_goes_on_where_it_was_interrupted(
    run: RunFolder, found: list[RunFolder], tmp_path: Path
) -> None:
    folder = tmp_path / "oracles"
    with interrupted(2), pytest.raises(TrainingInterruptedError):
        find_oracles(run, folder, range(2))
    (unfinished,) = folder.iterdir()
    assert RunFolder(unfinished).manifest.training is None
    with pytest.raises(ValueError, match="is not complete"):
        RunFolder.open(unfinished)
    with trained_runs() as firsts:
        oracles = find_oracles(run, folder, range(2))
    assert firsts == [3, 0], "the first goes on, the second is new"
    assert oracles[0].path == unfinished
    for oracle, whole in zip(oracles, found, strict=True):
        one, other = oracle.manifest.training, whole.manifest.training
        assert one is not None is not other
        assert one.weights_digest == other.weights_digest


def test_an_unfinished_one_of_another_name_is_not_taken(
    run: RunFolder, found: list[RunFolder], folder: Path
) -> None:
    path = folder / found[0].path.name
    fields = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(json.dumps(fields | {"training": None}), encoding="utf-8")
    path.rename(folder / "unfinished")
    before = snapshot(folder / "unfinished")
    (oracle,) = find_oracles(run, folder, [0])
    assert oracle.path == path
    assert snapshot(folder / "unfinished") == before


def test_ctrl_c_on_the_command_line(run: RunFolder, tmp_path: Path) -> None:
    judged = copied(run, tmp_path / "run").path
    command = ("evaluate", judged, "--oracles", tmp_path / "oracles", "--oracle-seeds", "1")
    assert works(*command, "--dry-run")["oracles_to_train"] == 1
    assert not (tmp_path / "oracles").exists()
    with interrupted(1):
        result = run_command(*command)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("images; continue with: the same command")
    with trained_runs() as firsts:
        assert works(*command)["protocol"]["oracles"] == 1
    assert firsts == [2]
    assert works(*command, "--dry-run")["oracles_to_train"] == 0


def test_oracles_by_folder_and_by_name_give_the_same_scorecard(
    run: RunFolder, found: list[RunFolder], tmp_path: Path
) -> None:
    judged = copied(run, tmp_path / "run").path
    folder = found[0].path.parent
    before = tree(folder)
    quick = ("evaluate", judged, "--set", "evaluation.membership.images=0")
    by_folder = works(*quick, "--oracles", folder, "--oracle-seeds", "2")
    by_name = works(*quick, "--oracle", found[0].path, "--oracle", found[1].path)
    assert by_folder == by_name
    assert by_folder["protocol"]["oracles"] == 2
    assert tree(folder) == before, "samples of oracles go into the run"
    assert len(list((judged / "samples").iterdir())) == 1 + 2 * 2


def test_mistakes_on_the_command_line(
    trained: RunFolder, run: RunFolder, found: list[RunFolder], tmp_path: Path
) -> None:
    one, folder, new = found[0].path, found[0].path.parent, tmp_path / "new"
    mistakes = {
        ("--oracle", one, "--oracles", folder): "--oracle or --oracles, got both",
        ("--oracle", one, "--oracle", one): "oracles of different training seeds, got 2, some of one seed",
        ("--oracles", new, "--oracle-seeds", "0"): "at least one oracle seed, got 0",
        ("--oracles", new, "--oracle-seeds", "-1"): "at least one oracle seed, got -1",
        ("--oracle", tmp_path / "missing"): "missing holds no run",
        ("--oracle", trained.path): "was not trained without exactly what was deleted",
    }
    for options, message in mistakes.items():
        assert message in refused("evaluate", run.path, *options)
    same = Path(shutil.copytree(one, tmp_path / "same"))
    assert "some of one seed" in refused("evaluate", run.path, "--oracle", one, "--oracle", same)
    assert not run.scorecard_path.exists()
    assert not new.exists()
    assert not run.samples_path.exists() or not any(run.samples_path.iterdir())


def test_before_any_deletion_there_is_no_oracle(
    trained: RunFolder, found: list[RunFolder], tmp_path: Path
) -> None:
    line = refused("evaluate", trained.path, "--oracles", tmp_path / "new")
    assert f"nothing was deleted from {trained.path}" in line
    line = refused("evaluate", trained.path, "--oracle", found[0].path)
    assert f"nothing was deleted from {trained.path}" in line
    assert not (tmp_path / "new").exists()
    assert not trained.scorecard_path.exists()
