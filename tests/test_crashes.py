"""Kill and interrupt deletions and additions at any moment: the run is in the old state or in the new one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from run_factory import INTERRUPTED, ended, fork, make_run, random_images
from stopping import before_step, interrupt, kill_this_process

from gen_unlearn import shards
from gen_unlearn.changes import FINISHED, UNDONE, ChangeFolder
from gen_unlearn.commands.add import add
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys
from gen_unlearn.runs import RunFolder

_BYTES_PER_IMAGE = 8 * 8 + 8 + 16

KILLS = int(os.environ.get("GEN_UNLEARN_KILLS", "100"))
"""Kills of the slow campaign, and interrupts; a quarter as many of recoveries."""


@dataclass(frozen=True)
class State:
    """What a run should hold.

    Attributes:
        data: the images.
        changes: how many deletions and additions led here.
        deletions: how many of them were deletions.
    """

    data: IndexedImages
    changes: int = 0
    deletions: int = 0

    def without(self, leaving: IndexedImages) -> State:
        data = self.data.without(ForgetSet(leaving.ids, "test"))
        return State(data, self.changes + 1, self.deletions + 1)

    def with_added(self, images: IndexedImages) -> State:
        joined = IndexedImages(
            np.concatenate([self.data.all_images(), images.all_images()]),
            np.concatenate([self.data.labels, images.labels]),
            np.concatenate([self.data.ids, images.ids]),
            self.data.class_names,
            self.data.names + images.names,
        )
        return replace(self, data=joined, changes=self.changes + 1)

    def is_of(self, run: RunFolder) -> bool:
        """Tell whether a run holds exactly these images, and its ledger and receipts say so."""
        if run.exemplar_folder().digest != ExemplarStore.from_images(self.data).digest:
            return False
        assert set(id_keys(run.exemplar_folder().ids)) == set(id_keys(self.data.ids))
        assert len(run.ledger.entries) == 1 + self.changes
        assert len(run.receipts()) == self.deletions
        assert run.ledger.entries[-1].remaining == len(self.data)
        return True


@dataclass
class Outcome:
    """What was found after a process had been stopped.

    Attributes:
        left: what it left: "nothing", a change that is "undecided", or one that is "decided".
        new: whether the run is in the new state.
        notice: what opening the run said.
    """

    left: str
    new: bool
    notice: str | None

    @property
    def phase(self) -> str:
        """When it was stopped."""
        if self.left == "nothing":
            return "after" if self.new else "before"
        return {"decided": "finishing", "undecided": "preparing"}[self.left]


def look(path: Path, old: State, new: State) -> Outcome:
    """Open a run as the next command would, and hold that it is in one of two states and that all is well."""
    change = path / ".change"
    decided = (change / "commit.json").exists()
    left = "decided" if decided else "undecided" if change.exists() else "nothing"
    run = RunFolder.open(path)
    assert not change.exists()
    assert [str(check) for check in failures(verify(run))] == []
    is_old, is_new = old.is_of(run), new.is_of(run)
    assert is_old != is_new, "it is neither the old state nor the new one"
    if left == "nothing":
        assert run.notice is None
    elif decided:
        assert is_new
        assert run.notice == FINISHED.format(path)
    else:
        assert is_old
        assert run.notice == UNDONE.format(path)
    assert RunFolder.open(path).notice is None
    return Outcome(left, is_new, run.notice)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put no more than three exemplars in a shard, so that there are many, and groups of them."""
    monkeypatch.setattr(shards, "_TARGET_BYTES", 3 * _BYTES_PER_IMAGE)


@dataclass
class Campaign:
    """A run to stop changes of, again and again, and what became of it.

    Attributes:
        pristine: the run as it was made.
        start: what it holds.
        path: the run as it is.
        random: chooses images and moments.
    """

    pristine: Path
    start: State
    path: Path
    random: np.random.Generator
    state: State = field(init=False)
    fresh: int = 100

    def __post_init__(self) -> None:
        self.begin_again()

    @classmethod
    def of(cls, folder: Path, images: int, seed: int) -> Campaign:
        start = State(random_images(images, seed=0))
        make_run(folder / "pristine", start.data)
        return cls(folder / "pristine", start, folder / "run", np.random.default_rng(seed))

    def begin_again(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.pristine, self.path)
        self.state = self.start

    def run(self) -> RunFolder:
        """Return the run with its recipe read, so that all that is to be done is the change."""
        run = RunFolder(self.path)
        assert run.has_exemplars
        return run

    def some(self, count: int) -> IndexedImages:
        """Choose images that are held."""
        if len(self.state.data) < 2 * count:
            self.begin_again()
        return self.state.data.select(self.random.choice(len(self.state.data), count, replace=False))

    def deletion(self, count: int) -> tuple[Callable[[], object], State]:
        """Return a deletion of some images, and the state that it leads to."""
        leaving = self.some(count)
        request, run = ForgetSet(leaving.ids, "test"), self.run()
        return lambda: forget(run, request), self.state.without(leaving)

    def addition(self, count: int) -> tuple[Callable[[], object], State]:
        """Return an addition of images that were never held, and the state that it leads to."""
        self.fresh += 1
        images, run = random_images(count, seed=self.fresh), self.run()
        return lambda: add(run, images), self.state.with_added(images)

    def stop(self, work: Callable[[], object], number: signal.Signals, within: float) -> tuple[int, float]:
        """Do `work` in a child, send it a signal within some seconds; return how and when it ended."""
        ready, begin = os.pipe()
        child = fork(lambda: (os.write(begin, b"x"), work()))
        os.read(ready, 1)
        started = time.perf_counter()
        time.sleep(self.random.uniform(0, within))
        os.kill(child, number)
        code = ended(child)
        os.close(ready)
        os.close(begin)
        return code, time.perf_counter() - started

    def look(self, new: State) -> Outcome:
        """Look at what became of a change, and go on from there."""
        outcome = look(self.path, self.state, new)
        if outcome.new:
            self.state = new
        return outcome

    def seconds(self, change: Callable[[int], tuple[Callable[[], object], State]], count: int) -> float:
        """Measure how long an undisturbed change takes, to the end of its process."""
        taken = []
        for _ in range(3):
            work, new = change(count)
            started = time.perf_counter()
            assert ended(fork(work)) == 0
            taken.append(time.perf_counter() - started)
            assert self.look(new).new
        return sorted(taken)[1]


@pytest.mark.usefixtures("small_shards")
def test_a_kill_at_a_random_moment_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    campaign = Campaign.of(tmp_path, images=60, seed=1)
    seconds = campaign.seconds(campaign.deletion, 10)
    found: Counter[bool] = Counter()
    kills = 0
    while kills < 8 or (len(found) < 2 and kills < 60):
        work, new = campaign.deletion(10)
        code, _ = campaign.stop(work, signal.SIGKILL, 1.2 * seconds)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        found[campaign.look(new).new] += 1
    assert found[False] > 0
    assert found[True] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_hundreds_of_kills(tmp_path: Path) -> None:
    campaign = Campaign.of(tmp_path, images=3000, seed=2)
    seconds = {
        change: campaign.seconds(change, count)
        for change, count in ((campaign.deletion, 40), (campaign.addition, 40))
    }
    phases: Counter[tuple[str, str]] = Counter()
    started, kills = time.perf_counter(), 0
    while kills < KILLS:
        change = campaign.addition if kills % 3 == 2 else campaign.deletion
        work, new = change(40)
        code, _ = campaign.stop(work, signal.SIGKILL, 1.2 * seconds[change])
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        outcome = campaign.look(new)
        phases[change.__name__, outcome.phase if code else "not killed"] += 1
    took = ", ".join(f"{change.__name__} {1000 * value:.0f} ms" for change, value in seconds.items())
    sys.stdout.write(f"{kills} kills in {time.perf_counter() - started:.0f} s ({took}): {dict(phases)}\n")
    for name in ("deletion", "addition"):
        assert phases[name, "preparing"] > 0
        assert phases[name, "finishing"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_kills_of_recoveries(tmp_path: Path) -> None:
    campaign = Campaign.of(tmp_path, images=1500, seed=3)
    seconds = campaign.seconds(campaign.deletion, 100)
    phases: Counter[str] = Counter()
    recoveries = 0
    while recoveries < KILLS // 4:
        work, new = campaign.deletion(100)
        campaign.stop(work, signal.SIGKILL, 1.2 * seconds)
        killed = 0
        while (campaign.path / ".change").exists() and killed < 5:
            code, _ = campaign.stop(lambda: RunFolder.open(campaign.path), signal.SIGKILL, 0.3 * seconds)
            killed += code != 0
        recoveries += killed
        phases[campaign.look(new).phase] += killed > 0
    sys.stdout.write(f"{recoveries} killed recoveries: {dict(phases)}\n")
    assert len(phases) > 1


def interrupts(campaign: Campaign, count: int) -> Counter[tuple[int, str]]:
    """Interrupt deletions at random moments; count exit codes and phases."""
    seconds = campaign.seconds(campaign.deletion, 20)
    found: Counter[tuple[int, str]] = Counter()
    while sum(found[key] for key in found if key[0] == INTERRUPTED) < count:
        work, new = campaign.deletion(20)
        code, _ = campaign.stop(work, signal.SIGINT, 1.2 * seconds)
        assert code in (0, INTERRUPTED)
        found[code, campaign.look(new).phase] += 1
    return found


@pytest.mark.usefixtures("small_shards")
def test_ctrl_c_at_a_random_moment_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    found = interrupts(Campaign.of(tmp_path, images=60, seed=4), count=5)
    assert found[INTERRUPTED, "preparing"] == 0, "what was prepared is cleared up on the way out"


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_hundreds_of_interrupts(tmp_path: Path) -> None:
    found = interrupts(Campaign.of(tmp_path, images=3000, seed=5), count=KILLS)
    sys.stdout.write(f"interrupts: {dict(found)}\n")
    assert found[INTERRUPTED, "before"] > 0
    assert found[INTERRUPTED, "after"] > 0


Change = Callable[[int], tuple[Callable[[], object], State]]


def outcomes_of_kills(campaign: Campaign, change: Change, stride: int = 1) -> list[Outcome]:
    """Kill a change before its first step on disk, before its second, and so on, until it gets through."""
    found, number, code = [], 1, -1
    while code:
        campaign.begin_again()
        work, new = change(1)
        code = ended(fork(partial(before_step, number, kill_this_process, work)))
        assert code in (0, -signal.SIGKILL)
        found.append(look(campaign.path, campaign.state, new))
        number += stride
    return found


@pytest.fixture(scope="module")
def killed_deletions(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What is found after a deletion was killed before its first step, before its second, and so on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_TARGET_BYTES", 3 * _BYTES_PER_IMAGE)
        campaign = Campaign.of(tmp_path_factory.mktemp("killed"), images=7, seed=6)
        return outcomes_of_kills(campaign, campaign.deletion)


def test_a_kill_before_any_step_leaves_the_old_state_or_the_new_one(killed_deletions: list[Outcome]) -> None:
    states = [outcome.new for outcome in killed_deletions]
    assert states == sorted(states), "once it is decided, it stays so"
    phases = [outcome.phase for outcome in killed_deletions]
    assert set(phases) >= {"before", "preparing", "finishing", "after"}
    assert phases.count("preparing") > 5
    assert phases.count("finishing") > 5


def test_what_is_said_to_be_undone_is_not_in_force(killed_deletions: list[Outcome]) -> None:
    said = [(outcome.new, outcome.notice or "") for outcome in killed_deletions]
    assert any(notice.startswith("undid") for _, notice in said)
    assert not [notice for new, notice in said if new and notice.startswith("undid")]


def test_what_is_said_to_be_finished_is_in_force(killed_deletions: list[Outcome]) -> None:
    said = [(outcome.new, outcome.notice or "") for outcome in killed_deletions]
    assert any(notice.startswith("finished") for _, notice in said)
    assert not [notice for new, notice in said if not new and notice.startswith("finished")]


@pytest.mark.usefixtures("small_shards")
def test_a_kill_before_steps_of_an_addition(tmp_path: Path) -> None:
    campaign = Campaign.of(tmp_path, images=7, seed=7)
    states = [outcome.new for outcome in outcomes_of_kills(campaign, campaign.addition, stride=3)]
    assert states == sorted(states)
    assert set(states) == {False, True}


@pytest.mark.usefixtures("small_shards")
def test_ctrl_c_before_any_step_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    campaign = Campaign.of(tmp_path, images=7, seed=8)
    states, number, interrupted = [], 1, True
    while interrupted:
        campaign.begin_again()
        work, new = campaign.deletion(1)
        try:
            before_step(number, interrupt, work)
        except KeyboardInterrupt:
            states.append(look(campaign.path, campaign.state, new).new)
        else:
            interrupted = False
        number += 1
    assert set(states) == {False, True}


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.usefixtures("small_shards")
def test_a_kill_before_any_step_of_the_recovery_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    campaign = Campaign.of(tmp_path, images=7, seed=9)
    work, new = campaign.deletion(1)
    with monkeypatch.context() as patch:
        if decided:
            patch.setattr(ChangeFolder, "_finish", die)
        else:
            patch.setattr("gen_unlearn.changes.CommitRecord", die)
            patch.setattr(Path, "rename", die)
        with pytest.raises(DeathError):
            work()
    assert (campaign.path / ".change").exists()
    assert (campaign.path / ".change" / "commit.json").exists() == decided
    shutil.copytree(campaign.path, tmp_path / "stuck")
    number, code = 1, -1
    while code:
        shutil.rmtree(campaign.path)
        shutil.copytree(tmp_path / "stuck", campaign.path)
        code = ended(
            fork(partial(before_step, number, kill_this_process, partial(RunFolder.open, campaign.path)))
        )
        assert code in (0, -signal.SIGKILL)
        assert look(campaign.path, campaign.state, new).new == decided
        number += 1
    assert number > 5


class DeathError(BaseException):
    """Stand in for the end of a process."""


def die(*_: object, **__: object) -> None:
    raise DeathError
