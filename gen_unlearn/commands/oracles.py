"""The oracles of a run: found by digest, trained when missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.train import deleted_from, require_same_weights, train
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.processes import process_state
from gen_unlearn.runs import RunFolder


def require_oracle(run: RunFolder, oracle: RunFolder) -> None:
    """Refuse an oracle that was not trained on exactly what is retained, by the same recipe but for the seed.

    What was deleted is compared by the digest of its tombstones, which other images of the same number do
    not share. An oracle of a classifier on a frozen encoder has another encoder, for which the same holds.

    Raises:
        ValueError: it is another run's oracle, or of another deletion.
    """
    _require_deletion(run)
    encoder = _encoder_run(oracle)
    if oracle.manifest.recipe_digest != _recipe_digest(run, oracle.recipe.seed, encoder):
        raise ValueError(f"{oracle.path} was trained from another recipe than {run.path}")
    _require_without(run, oracle, run.recipe_path)
    trained_on = _encoder_run(run)
    if encoder is None or trained_on is None:
        _require_start(run, oracle)
        return
    first, own = _frozen_encoder(run, trained_on), _frozen_encoder(oracle, encoder)
    if own.manifest.recipe_digest != _recipe_digest(first, own.recipe.seed):
        raise ValueError(f"the frozen encoder {own.path} was trained from another recipe than {first.path}")
    _require_start(first, own)
    _require_without(run, own, first.recipe_path)


def require_parametric_oracle(run: RunFolder, oracle: RunFolder) -> None:
    """Refuse a parametric classifier that was not trained on exactly what a classifier retains.

    Its recipe may differ in all but the data. See `require_oracle` for how deletions are compared.

    Raises:
        ValueError: it is no classifier, of other data, or of another deletion.
    """
    _require_deletion(run)
    if RunFolder(run.path).classifier_config.data != RunFolder(oracle.path).classifier_config.data:
        raise ValueError(
            f"expected the data section of {run.recipe_path} in the recipe of {oracle.path}, got another; "
            "train a parametric model on the same data"
        )
    _require_without(run, oracle, Path("RECIPE"))
    classes = run.manifest.class_names == oracle.manifest.class_names
    if not classes or not np.array_equal(unique_ids(run.held_out_ids), unique_ids(oracle.held_out_ids)):
        raise ValueError(
            f"expected {oracle.path} to have the classes and the held-out images of {run.path}, got others; "
            f"train it with: gen-unlearn train --config RECIPE --without {run.path} --out DIR"
        )


def require_one_recipe(oracles: Sequence[RunFolder]) -> None:
    """Refuse parametric oracles that differ in more than the training seed, or not in that: they are pooled.

    Raises:
        ValueError: two differ in their recipes or in the weights that they started from, or have one seed.
    """
    for other in oracles[1:]:
        alike = other.manifest.started_from == oracles[0].manifest.started_from
        if not alike or _recipe_digest(other, 0) != _recipe_digest(oracles[0], 0):
            raise ValueError(
                f"expected parametric oracles whose recipes differ in the seed only, as their mean and the "
                f"distance between them count, got others in {oracles[0].path} and {other.path}; evaluate "
                "them one after the other"
            )
    seeds = [oracle.recipe.seed for oracle in oracles]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"expected oracles of different training seeds, got {seeds}, some of one seed")


def first_weights(run: RunFolder) -> str | None:
    """Return the SHA-256 of the encoder weights that a run began with, if any were named.

    Of a run on a frozen encoder they are those that the encoder's run began with, if it is still there.
    """
    path = _encoder_run(run)
    if path is None:
        return run.manifest.started_from
    encoder = RunFolder(Path(path).expanduser())
    return encoder.manifest.started_from if encoder.manifest_path.exists() else None


def oracle_seeds(run: RunFolder, count: int) -> range:
    """Return the training seeds of the oracles that a run is compared with.

    Those of a classifier leave out its own: predictions are compared image by image, and equal initial
    weights would make the two agree more than two retrainings do.

    Raises:
        ValueError: less than one oracle.
    """
    if count < 1:
        raise ValueError(f"expected at least one oracle seed, got {count}")
    first = run.recipe.seed + (1 if run.recipe.task == "classification" else 0)
    return range(first, first + count)


def find_oracles(run: RunFolder, folder: Path, seeds: Sequence[int]) -> list[RunFolder]:
    """Find an oracle of a run for each training seed in a folder of runs; train those that are missing.

    Args:
        run: the run that something was deleted from.
        folder: where the oracles lie; each is known by the digests of its recipe and of what it is trained
            without, whatever it is called.
        seeds: training seeds.

    Raises:
        ValueError: nothing was deleted from the run, or everything; it has a frozen encoder; the weights that
            it started from have changed; a folder of runs holds a damaged one, or an oracle that was changed
            since its training lies where another would be trained.
        TrainingInterruptedError: the user stopped the training of one; the next call continues it.
    """
    without, origin = deleted_from([run.path])
    known = _known_oracles(run, folder, without.digest)
    process_state().wait_for_everyone()  # All have looked before an oracle is trained.
    oracles = []
    for seed in seeds:
        digest = _recipe_digest(run, seed)
        if digest not in known:
            config = replace(RunFolder(run.path).recipe, seed=seed)
            require_same_weights(run, config)
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
    known = _known_oracles(run, folder, without.digest)
    return [seed for seed in seeds if _recipe_digest(run, seed) not in known]


def _require_deletion(run: RunFolder) -> None:
    if not len(run.forgotten()):
        raise ValueError(f"nothing was deleted from {run.path}, so it has no oracle; leave --oracle out")


def _require_without(run: RunFolder, oracle: RunFolder, recipe: Path) -> None:
    """Refuse a run that was trained on other images than `run` retains, or was changed since.

    Args:
        run: the run that something was deleted from.
        oracle: the other run.
        recipe: what to train another one from.
    """
    if oracle.manifest.without != run.forgotten().digest or len(oracle.ledger.lines) > 1:
        raise ValueError(
            f"{oracle.path} was not trained without exactly what was deleted from {run.path}; "
            f"train it with: gen-unlearn train --config {recipe} --without {run.path} --out DIR"
        )


def _require_own_encoder(run: RunFolder) -> None:
    """Refuse to train oracles on a frozen encoder."""
    encoder = _encoder_run(run)
    if encoder is not None:
        recipe = Path(encoder).expanduser() / run.recipe_path.name
        raise ValueError(
            f"the frozen encoder of {run.path} saw the deleted images, so that training the rest again is no "
            f"oracle; train it without them (gen-unlearn train --config {recipe} --without {run.path} --out "
            f"ENCODER), then a run on it (gen-unlearn train --config {run.recipe_path} --set "
            f"training.encoder_run=ENCODER --without {run.path} --out ORACLE), and use --oracle ORACLE"
        )


def _encoder_run(run: RunFolder) -> str | None:
    """Return the run whose encoder a run was trained on, frozen."""
    recipe = RunFolder(run.path).recipe
    return recipe.training.encoder_run if isinstance(recipe, ClassifierRunConfig) else None


def _recipe_digest(run: RunFolder, seed: int, encoder_run: str | None = None) -> str:
    """Return the digest of a run's recipe, as it was trained, with another training seed.

    Args:
        run: the run.
        seed: the training seed.
        encoder_run: another frozen encoder for a classifier that has one.
    """
    recipe = replace(RunFolder(run.path).recipe, seed=seed)
    if isinstance(recipe, ClassifierRunConfig) and None not in (encoder_run, recipe.training.encoder_run):
        recipe = replace(recipe, training=replace(recipe.training, encoder_run=encoder_run))
    return recipe.digest


def _known_oracles(run: RunFolder, folder: Path, without: str) -> dict[str, RunFolder]:
    """Return `_unchanged_runs` for a run that oracles can be trained of; else raise a ValueError."""
    if run.has_exemplars and not len(run.exemplar_folder()):
        raise ValueError(
            f"nothing is retained in {run.path}, so there is no oracle: every exemplar was deleted; leave "
            "--oracles out"
        )
    _require_own_encoder(run)
    return _unchanged_runs(folder, without, run.manifest.started_from)


def _require_start(run: RunFolder, oracle: RunFolder) -> None:
    """Refuse an oracle that started from other weights than a run."""
    one, other = run.manifest.started_from, oracle.manifest.started_from
    if one != other:
        raise ValueError(
            f"{oracle.path} started from other weights (SHA-256 {other}) than {run.path} ({one}), though the "
            "recipes name them alike; train it again from the same weights"
        )


def _frozen_encoder(run: RunFolder, path: str) -> RunFolder:
    """Open the run whose frozen encoder another took over; refuse it if it was trained again since."""
    encoder = RunFolder.open(Path(path).expanduser())
    record, expected = encoder.manifest.training, run.manifest.started_from
    if expected is not None and (record is None or record.weights_digest != expected):
        raise ValueError(
            f"the encoder of {run.path} is not that of {encoder.path} any more, which was trained again: "
            f"expected weights of SHA-256 {expected}; put it back"
        )
    return encoder


def _unchanged_runs(folder: Path, without: str, started_from: str | None) -> dict[str, RunFolder]:
    """Return, by recipe digest, the runs in a folder that were trained without exactly what a digest says.

    They started from the same weights, are complete, and nothing was deleted from them or added since.
    """
    runs = {}
    for path in sorted(folder.glob("*/manifest.json")):
        found = RunFolder(path.parent)
        manifest = found.manifest
        if (manifest.without, manifest.started_from) == (without, started_from) and manifest.training:
            opened = RunFolder.open(path.parent)
            if len(opened.ledger.lines) == 1:
                runs[opened.manifest.recipe_digest] = opened
    return runs
