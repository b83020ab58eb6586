"""The demo with strongly reduced settings: what it leaves, and that it continues where it stopped."""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import TINY_OVERRIDES, works

from gen_unlearn.commands.demo import SINGLE_IMAGES, demo_config, run_demo
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.stages import Stages
from gen_unlearn.config import RunConfig
from gen_unlearn.receipts import PROMISES
from gen_unlearn.runs import RunFolder

FEW = {
    "training.images": 48,
    "evaluation.images_per_class": 6,
    "evaluation.membership.images": 6,
    "sampling.exemplars_per_class": 8,
}
SMALL = (*TINY_OVERRIDES, *(f"{key}={value}" for key, value in FEW.items()))
PROMISED = {
    "seconds_train",
    "seconds_delete",
    "fd_retain_before",
    "fd_retain_after",
    "fd_retain_oracle",
    "fd_to_oracle",
    "forgotten_class_rate_before",
    "forgotten_class_rate_after",
    "forgotten_class_rate_oracle",
    "forgotten_class_rate_null",
    "retained_accuracy_before",
    "retained_accuracy_after",
    "sampling_overhead_vs_ddpm",
}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return demo_config(SMALL)


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole demo; ``judged`` beside it is its folder before anything was deleted."""
    out = tmp_path_factory.mktemp("demo") / "out"

    class Copying(Stages):
        @contextmanager
        def timed(self, name: str) -> Iterator[None]:
            if name == "delete":
                shutil.copytree(out, out.with_name("judged"))
            with super().timed(name):
                yield

    run_demo(config, out, Copying())
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_summary_has_every_promised_number_with_its_definition(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= PROMISED | {"level"}
    assert all(math.isfinite(summary[name]) for name in PROMISED)
    assert summary["level"] == "exemplar-only"
    page = html.unescape((finished / "report.html").read_text(encoding="utf-8"))
    definitions = {measure["name"]: measure["definition"] for measure in summary["measures"]}
    for name in PROMISED:
        assert definitions[name] in page, name
        assert len(definitions[name]) > 30, name
    assert PROMISES["exemplar-only"] in page


def test_the_numbers_are_what_they_claim(finished: Path, config: RunConfig) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    receipts = RunFolder.open(finished / "run").receipts()
    assert [len(receipt.removed_per_class) == 1 for receipt in receipts] == [True, False]
    assert receipts[0].removed_per_class.keys() == {"3"}
    assert receipts[1].removed == SINGLE_IMAGES
    assert "3" not in receipts[1].removed_per_class
    assert summary["removed"] == receipts[0].removed + SINGLE_IMAGES
    assert summary["seconds_delete"] == pytest.approx(sum(receipt.seconds for receipt in receipts))
    assert summary["seconds_delete"] < 1
    assert summary["recipe_digest"] == config.digest
    stages = ["train", "sample", "judge", "delete", "train oracle", "time sampling", "report", "verify"]
    assert list(summary["stages"]) == stages
    assert all(seconds >= 0 for seconds in summary["stages"].values())
    assert 0.2 < summary["sampling_overhead_vs_ddpm"] < 5
    oracle = RunFolder.open(finished / "oracle")
    forgotten = RunFolder.open(finished / "run").forgotten()
    assert oracle.manifest.without == forgotten.digest
    assert oracle.load_exemplars().digest == RunFolder.open(finished / "run").load_exemplars().digest
    card = json.loads((finished / "run" / "metrics" / "scorecard.json").read_text(encoding="utf-8"))
    assert card["measures"] == summary["measures"]


def test_running_it_again_repeats_nothing(finished: Path, config: RunConfig, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = contents(out)
    changes = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    summary = run_demo(config, out, Stages())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == changes
    after = contents(out)
    assert after.keys() == before.keys()
    rewritten = {name for name in after if after[name] != before[name]}
    assert rewritten <= {"summary.json", "report.html", "run/metrics/scorecard.json"}, "timing may differ"
    first = json.loads(before["summary.json"])
    assert first["residue"]["clean"] is summary["residue"]["clean"] is True
    # How much was searched depends on timings.
    timed = {"sampling_overhead_vs_ddpm", "measures", "stages", "residue"}
    assert {name: first[name] for name in first.keys() - timed} == {
        name: json.loads(json.dumps(summary))[name] for name in summary.keys() - timed
    }


def test_the_command_prints_the_summary_that_it_writes(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    summary = works("demo", "--out", out, *(word for value in SMALL for word in ("--set", value)))
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == summary
    assert summary["recipe_digest"] == json.loads((finished / "summary.json").read_text())["recipe_digest"]


def test_a_demo_stopped_between_its_two_deletions_makes_the_second(
    finished: Path, config: RunConfig, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished.with_name("judged"), tmp_path / "out"))
    run = RunFolder.open(out / "run")
    assert run.receipts() == []
    forget(run, ForgetRequest(classes=("3",)).resolve(run).forget_set, keep_comparison=True)
    summary = run_demo(config, out, Stages())
    expected = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["removed"] == expected["removed"]
    assert summary["fd_retain_after"] == expected["fd_retain_after"]
