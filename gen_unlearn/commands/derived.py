"""What programs leave in a run besides its state, and what of it may carry traces of deleted images."""

from __future__ import annotations

from collections.abc import Iterator

from gen_unlearn.runs import RunFolder

_DERIVED = {
    "checkpoints": "resume points of the training",
    "features": "features of images, some of them of training images",
    "gen_unlearn": "logs of the training",
    "metrics": "the judge, which was trained on the training images, and the scorecard",
    "report.html": "a report, which may show deleted images",
    "samples": "images that were generated before the deletion",
}
_KEPT_FOR_COMPARISON = ("metrics", "samples")


def removable(run: RunFolder, keep_comparison: bool) -> tuple[str, ...]:
    """Return the names of what a deletion removes from the run besides the exemplars: it can be made again.

    Args:
        run: the run.
        keep_comparison: spare samples and judge, which compare the model before and after.
    """
    kept = _KEPT_FOR_COMPARISON if keep_comparison else ()
    return tuple(
        name
        for name in _besides_the_state(run)
        if name.endswith(".unfinished") or (name in _DERIVED and name not in kept)
    )


def remaining(run: RunFolder, removed: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Say of everything that may carry traces of deleted images what it is, apart from what is removed."""
    left = [
        f"{name}: {_DERIVED.get(name, 'not a file of this program')}"
        for name in _besides_the_state(run)
        if name not in removed
    ]
    if run.recipe.core.mode == "joint":
        network = "unet" if run.recipe.task == "generation" else "classifier"
        left.insert(0, f"model/{network}: weights that were trained on the images")
    return (*left, *_weights_from_elsewhere(run))


def _weights_from_elsewhere(run: RunFolder) -> Iterator[str]:
    """Yield what is not known of weights that the training did not draw itself."""
    digest = run.manifest.started_from or "not recorded"
    for key, value in run.recipe.starts_from.items():
        encoder = key == "training.encoder_run"
        start = "the training started from these weights"
        if encoder or run.is_ensemble:
            start = "its encoder was taken over" if encoder else "they were taken over, frozen"
        yield (
            f"{key} {value} (SHA-256 of the weights {digest}): {start}; what they were trained on is not "
            "known to this program"
        )


def _besides_the_state(run: RunFolder) -> list[str]:
    state = run.state_names
    return sorted(entry.name for entry in run.path.iterdir() if entry.name not in state)
