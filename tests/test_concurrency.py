"""Several processes use one run at once: changes wait for each other, and readers see one generation."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from run_factory import ended, fork, make_run, random_images, snapshot

from gen_unlearn import shards
from gen_unlearn.changes import ChangeFolder
from gen_unlearn.commands.add import add
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.sample import SampleRequest, sample
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

DELETIONS = 10


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put no more than five exemplars in a shard."""
    monkeypatch.setattr(shards, "_TARGET_BYTES", 5 * (8 * 8 + 8 + 16))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 120 images."""
    return make_run(tmp_path / "run", random_images(120, seed=0))


def every_check_passes(run: RunFolder) -> bool:
    return not failures(verify(run))


def reporting(work: Callable[[], object], report: Path) -> None:
    """Do `work`, and write down what it raises."""
    try:
        work()
        report.write_text("done")
    except ValueError as error:
        report.write_text(str(error))


def at_once(works: list[Callable[[], object]], folder: Path) -> list[str]:
    """Do several things in processes that start together; return "done" or the error of each."""
    wait, go = os.pipe()
    reports = [folder / f"report-{number}" for number in range(len(works))]

    def started(number: int) -> None:
        os.close(go)
        os.read(wait, 1)  # Returns when every other end is closed.
        reporting(works[number], reports[number])

    children = [fork(partial(started, number)) for number in range(len(works))]
    os.close(go)
    assert [ended(child) for child in children] == [0] * len(works)
    os.close(wait)
    return [report.read_text() for report in reports]


def test_deletions_of_different_images_at_once_are_all_in_force(run: RunFolder, tmp_path: Path) -> None:
    ids = run.exemplar_folder().ids
    parts = [ids[part::4] for part in range(3)]
    said = at_once(
        [partial(forget, RunFolder(run.path), ForgetSet(part, "test")) for part in parts], tmp_path
    )
    assert said == ["done"] * 3
    assert np.array_equal(run.exemplar_folder().ids, ids[3::4])
    assert [entry.kind for entry in run.ledger.entries] == ["trained", "deleted", "deleted", "deleted"]
    assert [receipt.removed for receipt in run.receipts()] == [30, 30, 30]
    assert sorted(path.name for path in run.receipts_path.iterdir()) == [
        "0001.json",
        "0002.json",
        "0003.json",
    ]
    assert every_check_passes(run)


def test_one_image_is_deleted_once(run: RunFolder, tmp_path: Path) -> None:
    ids = run.exemplar_folder().ids
    request = ForgetSet(ids[7:8], "test")
    said = at_once([partial(forget, RunFolder(run.path), request) for _ in range(2)], tmp_path)
    assert sorted(said)[1] == "done"
    name = ids_to_hex(ids[7:8])[0]
    assert sorted(said)[0] == f"1 of 1 ids are not in the store: {name}; nothing was deleted"
    assert np.array_equal(run.exemplar_folder().ids, np.delete(ids, 7, axis=0))
    assert len(run.receipts()) == 1
    assert every_check_passes(run)


def test_a_deletion_and_an_addition_at_once_are_both_in_force(run: RunFolder, tmp_path: Path) -> None:
    ids = run.exemplar_folder().ids
    new = random_images(30, seed=1)
    works = [
        partial(forget, RunFolder(run.path), ForgetSet(ids[:30], "test")),
        partial(add, RunFolder(run.path), new),
    ]
    assert at_once(works, tmp_path) == ["done", "done"]
    folder = run.exemplar_folder()
    assert len(folder) == 120
    assert folder.holds(new.ids).all()
    assert not folder.holds(ids[:30]).any()
    assert every_check_passes(run)


@contextmanager
def in_another_process(holding: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Hold something in a child."""
    (locked, tell), (wait, leave) = os.pipe(), os.pipe()

    def hold() -> None:
        os.close(leave)
        with holding():
            os.write(tell, b"x")
            os.read(wait, 1)

    child = fork(hold)
    os.read(locked, 1)
    try:
        yield
    finally:
        for end in (locked, tell, wait, leave):
            os.close(end)
        assert ended(child) == 0


def test_a_change_gives_up_when_another_one_takes_too_long(run: RunFolder) -> None:
    request = ForgetSet(run.exemplar_folder().ids[:1], "test")
    before = snapshot(run.path)
    started = time.perf_counter()
    with in_another_process(run.change.locked):
        with pytest.raises(ValueError, match=r"another process is changing .* after 0\.2 seconds") as error:
            forget(run, request, wait=0.2)
        assert str(run.path) in str(error.value)
        with pytest.raises(ValueError, match=r"another process is changing .* after 0 seconds"):
            add(run, random_images(1, seed=1), wait=0)
    assert time.perf_counter() - started < 10
    assert snapshot(run.path) == before
    forget(run, request, wait=0)
    assert len(run.receipts()) == 1


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what does not say how long it waits wait for a second instead of thirty."""
    monkeypatch.setattr(ChangeFolder.locked.__wrapped__, "__defaults__", (1.0,))


@pytest.mark.usefixtures("short_wait")
def test_the_command_waits_as_long_as_it_is_told(run: RunFolder) -> None:
    with in_another_process(run.change.prepared):
        said = refused("forget", run.path, "--class", "a", "--wait", "0.2")
    assert "after 0.2 seconds" in said


@pytest.mark.usefixtures("short_wait")
def test_a_run_is_read_while_a_change_is_being_prepared(run: RunFolder) -> None:
    with in_another_process(run.change.prepared):
        assert len(RunFolder.open(run.path).load_exemplars()) == 120


def test_the_lock_of_a_process_that_died_is_free(run: RunFolder) -> None:
    def die() -> None:
        with run.change.locked():
            os._exit(3)

    assert ended(fork(die)) == 3
    forget(run, ForgetSet(run.exemplar_folder().ids[:1], "test"), wait=0)


def test_readers_see_one_generation_or_another(run: RunFolder, tmp_path: Path) -> None:
    ids = run.exemplar_folder().ids
    parts = np.split(ids, DELETIONS + 2)[:DELETIONS]
    stop = tmp_path / "stop"

    def read() -> None:
        """Load the store again and again, and write down what was loaded."""
        seen = []
        while not stop.exists() or not seen:
            store = ExemplarStore.from_pretrained(run.exemplars_path)
            store.verify()
            seen.append(store.digest)
        (tmp_path / "seen.json").write_text(json.dumps(seen))

    generations = [run.exemplar_folder().digest]
    child = fork(read)
    for part in parts:
        forget(run, ForgetSet(part, "test"))
        generations.append(run.exemplar_folder().digest)
        time.sleep(0.02)  # The reader gets its turn on a machine with one core.
    stop.touch()
    assert ended(child) == 0, "a reader failed; its traceback is in the captured output"
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(set(generations)) == DELETIONS + 1
    assert set(seen) <= set(generations)
    assert len(set(seen)) > 1, "the reader read while deletions landed"
    order = [generations.index(digest) for digest in seen]
    assert order == sorted(order), "nothing comes back"


def test_a_loaded_pipeline_serves_its_generation(run: RunFolder) -> None:
    def images() -> np.ndarray:
        return sample_images(pipeline, [0, 1, 2], [0, 0, 0], run.config.sampling)

    pipeline = run.load_pipeline()
    before = images()
    assert ended(fork(lambda: forget(run, ForgetSet.from_classes(run.exemplar_folder(), ["b"], "b")))) == 0
    assert np.array_equal(images(), before)
    pipeline = run.load_pipeline()
    with pytest.raises(ValueError, match="no exemplar"):
        images()


def landing(monkeypatch: pytest.MonkeyPatch, run: RunFolder, *requests: ForgetSet) -> list[ForgetSet]:
    """Let deletions land right after the store was opened, one each time; return those that are to come.

    A deletion gives up at once if whoever opens the store holds the lock.
    """
    left, opened = list(requests), ExemplarFolder.open.__func__

    def delete(request: ForgetSet) -> None:
        left.clear()
        with suppress(ValueError):
            forget(RunFolder(run.path), request, wait=0)

    def open_and_be_overtaken(cls: type[ExemplarFolder], path: Path) -> ExemplarFolder:
        folder = opened(cls, path)
        if left:
            request = left.pop()
            assert ended(fork(partial(delete, request))) == 0
        return folder

    monkeypatch.setattr(ExemplarFolder, "open", classmethod(open_and_be_overtaken))
    return left


def test_loading_is_overtaken_by_a_deletion(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = run.exemplar_folder().ids
    left = landing(monkeypatch, run, ForgetSet(ids[::3], "one"), ForgetSet(ids[1::3], "two"))
    store = ExemplarStore.from_pretrained(run.exemplars_path)
    assert not left
    assert np.array_equal(store.ids, ids[2::3])


def test_a_request_is_overtaken_by_a_deletion(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = run.exemplar_folder().ids
    left = landing(monkeypatch, run, ForgetSet(ids[::3], "other request"))
    selection = ForgetRequest(classes=["a"], ids=ids_to_hex(ids[1:2])).resolve(RunFolder.open(run.path))
    assert not left
    assert selection.forget_set.mask(ids[1:2]).all()
    assert not selection.forget_set.mask(ids[::3]).any()
    forget(run, selection.forget_set)
    assert every_check_passes(run)


def test_a_verification_is_overtaken_by_a_deletion(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    left = landing(monkeypatch, run, ForgetSet(run.exemplar_folder().ids[::3], "test"))
    assert [str(check) for check in failures(verify(RunFolder.open(run.path)))] == []
    assert not left


def test_sampling_all_classes_is_overtaken_by_the_deletion_of_one(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = RunFolder.load_pipeline
    left = [ForgetSet.from_classes(run.exemplar_folder(), ["b"], "b")]

    def load_and_be_overtaken(self: RunFolder) -> object:
        pipeline = loaded(self)
        if left:
            request = left.pop()
            assert ended(fork(lambda: forget(run, request))) == 0
        return pipeline

    monkeypatch.setattr(RunFolder, "load_pipeline", load_and_be_overtaken)
    assert sample(RunFolder.open(run.path), SampleRequest((), 1), tmp_path / "images") in (2, 3)
    assert not left


def test_sampling_while_deletions_land(run: RunFolder, tmp_path: Path) -> None:
    ids = run.exemplar_folder().ids
    child = fork(lambda: [forget(run, ForgetSet(part, "test")) for part in np.split(ids[:60], 6)])
    for number in range(4):
        written = sample(RunFolder.open(run.path), SampleRequest(("a", "c"), 1), tmp_path / f"{number}")
        assert written == 2
    assert ended(child) == 0
    assert every_check_passes(run)
