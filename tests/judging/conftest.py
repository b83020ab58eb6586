"""What the tests of judging share."""

from __future__ import annotations

import pytest
from judged_runs import Judged


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A run without its class 3, and three of its oracles."""
    return Judged.make(tmp_path_factory.mktemp("judged"))
