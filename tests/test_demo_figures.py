"""The figures that README states, checked on the demo as a new user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_reaches_its_figures(tmp_path: Path) -> None:
    """`GEN_UNLEARN_DEMO` may name the folder of a demo that was run already."""
    out = Path(os.environ.get("GEN_UNLEARN_DEMO", tmp_path / "demo"))
    if not out.exists():
        command = [sys.executable, "-m", "gen_unlearn", "demo", "--out", str(out)]
        subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads((out / "summary.json").read_text())
    assert (out / "report.html").stat().st_size > 50_000
    assert (out / "samples.png").exists()

    measured = {measure["name"]: measure for measure in summary["measures"]}
    before, after = measured["fd_retain_before"], measured["fd_retain_after"]
    assert before["value"] <= 2 * before["floor"] + 2 * before["standard_error"]
    assert abs(after["value"] - before["value"]) <= 0.05 * before["value"]
    assert abs(summary["retained_accuracy_after"] - summary["retained_accuracy_before"]) <= 0.05
    assert summary["retained_accuracy_before"] >= 0.93
    assert summary["forgotten_class_rate_before"] >= 0.85
    assert summary["forgotten_class_rate_after"] <= 0.1
    assert summary["forgotten_class_rate_null"] > summary["forgotten_class_rate_null_oracle"]
    assert summary["nearest_deleted_after"] > summary["nearest_deleted_before"]
    assert summary["level"] == "exemplar-only"
