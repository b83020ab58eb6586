"""The scorecard in a terminal."""

from __future__ import annotations

import pytest

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.table import text_table


@pytest.mark.parametrize("before", [True, False])
def test_a_distance_to_the_oracle_is_of_the_state_that_it_is_measured_from(before: bool) -> None:
    measures = [
        Measure("fd_retain_after", 7.0, ""),
        Measure("fd_retain_oracle", 8.0, ""),
        Measure("fd_to_oracle", 2.0, "", floor=0.5),
    ]
    if before:
        measures += [Measure("fd_retain_before", 6.0, ""), Measure("fd_to_oracle_before", 1.0, "", floor=0.5)]
    lines = text_table(Scorecard(tuple(measures), {})).splitlines()
    (line,) = (line for line in lines if "fd_to" in line)
    assert line.split() == ["fd_to_oracle", *(["1"] if before else []), "2", "0.5"]
    assert line.index("2") + 1 == lines[0].index("after") + len("after"), "it ends below its heading"
