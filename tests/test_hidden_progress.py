from __future__ import annotations

import pytest

from gen_unlearn.progress import hidden_progress, progress_bar


def hidden() -> bool:
    with progress_bar(1, "work") as bar:
        return bool(bar.disable)


@hidden_progress()
def fails_inside() -> None:
    assert hidden()
    raise ValueError("stop")


def test_bars_are_hidden_inside_and_shown_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"):
        fails_inside()
    assert not hidden()
