"""The oracles of a run: found by digest, trained when missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.runs import RunFolder


def require_oracle(run: RunFolder, oracle: RunFolder) -> None:
    """Refuse an oracle that was not trained on exactly what is retained, by the same recipe but for the seed.

    What was deleted is compared by the digest of its tombstones, which other images of the same number do
    not share.

    Raises:
        ValueError: it is another run's oracle, or of another deletion.
    """
    forgotten = run.forgotten()
    if not len(forgotten):
        raise ValueError(f"nothing was deleted from {run.path}, so it has no oracle; leave --oracle out")
    if oracle.manifest.recipe_digest != _recipe_digest(run, oracle.config.seed):
        raise ValueError(f"{oracle.path} was trained from another recipe than {run.path}")
    if oracle.manifest.without != forgotten.digest or len(oracle.ledger.lines) > 1:
        raise ValueError(
            f"{oracle.path} was not trained without exactly what was deleted from {run.path}; "
            f"train it with: gen-unlearn train --config {run.recipe_path} --without {run.path} --out DIR"
        )


def find_oracles(run: RunFolder, folder: Path, seeds: Sequence[int]) -> list[RunFolder]:
    """Find an oracle of a run for each training seed in a folder of runs; train those that are missing.

    Args:
        run: the run that something was deleted from.
        folder: where the oracles lie; each is known by the digests of its recipe and of what it is trained
            without, whatever it is called.
        seeds: training seeds.

    Raises:
        ValueError: nothing was deleted from the run, a folder of runs holds a damaged one, or an oracle that
            was changed since its training lies where another would be trained.
        TrainingInterruptedError: the user stopped the training of one; the next call continues it.
    """
    without, origin = deleted_from([run.path])
    known = _unchanged_runs(folder, without.digest)
    oracles = []
    for seed in seeds:
        digest = _recipe_digest(run, seed)
        if digest not in known:
            config = replace(RunFolder(run.path).config, seed=seed)
            path = folder / f"{without.digest[:12]}-{digest[:12]}"
            known[digest] = train(config, path, without, origin, f"train oracle, seed {seed}")
            if len(known[digest].ledger.lines) > 1:
                raise ValueError(
                    f"expected an oracle of seed {seed} at {path}, got one whose exemplars were changed "
                    "after its training; move it out of the folder, and another is trained"
                )
        oracles.append(known[digest])
    return oracles


def missing_seeds(run: RunFolder, folder: Path, seeds: Sequence[int]) -> list[int]:
    """Return the seeds for which `find_oracles` would train an oracle, or continue its training.

    Raises:
        ValueError: as `find_oracles`.
    """
    without, _ = deleted_from([run.path])
    known = _unchanged_runs(folder, without.digest)
    return [seed for seed in seeds if _recipe_digest(run, seed) not in known]


def _recipe_digest(run: RunFolder, seed: int) -> str:
    """Return the digest of a run's recipe, as it was trained, with another training seed."""
    return replace(RunFolder(run.path).config, seed=seed).digest


def _unchanged_runs(folder: Path, without: str) -> dict[str, RunFolder]:
    """Return, by recipe digest, the runs in a folder that were trained without exactly what a digest says.

    They are complete, and nothing was deleted from them or added to them since.
    """
    runs = {}
    for path in sorted(folder.glob("*/manifest.json")):
        found = RunFolder(path.parent)
        if found.manifest.without == without and found.manifest.training is not None:
            opened = RunFolder.open(path.parent)
            if len(opened.ledger.lines) == 1:
                runs[opened.manifest.recipe_digest] = opened
    return runs
