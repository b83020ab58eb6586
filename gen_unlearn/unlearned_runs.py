"""The run that an approximately unlearned one was made from."""

from __future__ import annotations

from pathlib import Path

from gen_unlearn.runs import RunFolder


def origin_of(run: RunFolder) -> RunFolder | None:
    """Return the run that an unlearned one was made from, if it is where it was, with the same weights.

    `None` stands for all other runs too.
    """
    unlearned = run.manifest.unlearned
    if unlearned is None:
        return None
    origin = RunFolder(Path(run.path / unlearned.origin_path).resolve())
    if not origin.manifest_path.is_file():
        return None
    training = origin.manifest.training
    same = training is not None and training.weights_digest == unlearned.origin_weights
    return origin if same else None
