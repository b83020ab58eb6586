"""Two processes judge a run as one does: scorecard, samples and judge, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import run_command
from judged_runs import Judged
from run_factory import snapshot
from two_processes import as_two

from gen_unlearn.metrics import feature_sets
from gen_unlearn.runs import RunFolder

SMALL = (
    "sampling.batch_size=20",
    "sampling.num_inference_steps=3",
    "evaluation.membership.images=8",
    "evaluation.membership.attack.batch_size=9",
    "evaluation.membership.attack.loss_timesteps=[100]",
    "evaluation.membership.attack.loss_draws=1",
    "evaluation.membership.attack.secmi_stride=50",
    "evaluation.comparison.permutations=2",
)


def test_two_processes_judge_as_one(judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is trained again, and what was not sampled before is sampled."""
    monkeypatch.setattr(feature_sets, "BLOCK", 50)
    one, two = (copied(judged.run, tmp_path / name) for name in ("one", "two"))
    asked = ["--oracle", judged.oracles[0].path]
    asked += [word for override in SMALL for word in ("--set", override)]

    def evaluate(rank: int) -> None:
        found = run_command("evaluate", two.path, *asked)
        assert found.exit_code == 0, found.output
        assert ("scorecard" in found.stdout) == (rank == 0), "one table"
        assert two.scorecard_path.exists()

    before = snapshot(one.path)
    found = run_command("evaluate", one.path, *asked)
    assert found.exit_code == 0, found.output
    as_two(evaluate)
    after = snapshot(one.path)
    written = [name for name in after if after[name] != before.get(name)]
    for begin, files in (("samples/", 3), ("metrics/judge-", 3), ("metrics/scorecard", 1)):
        assert sum(name.startswith(begin) for name in written) == files, written
    assert snapshot(two.path) == after


def copied(run: RunFolder, path: Path) -> RunFolder:
    """Return a copy of a run, without its judge."""
    shutil.copytree(run.path, path)
    for judge in RunFolder(path).metrics_path.glob("judge-*"):
        shutil.rmtree(judge)
    return RunFolder.open(path)
