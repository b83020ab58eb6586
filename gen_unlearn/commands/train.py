"""Train a generator or a classifier, or an oracle of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gen_unlearn.adapters.determinism import environment
from gen_unlearn.commands.fit import fresh_training
from gen_unlearn.commands.fit_lora_ensemble import LoraEnsembleTraining
from gen_unlearn.config import Recipe, RunConfig
from gen_unlearn.core import CoreSplit, split_core
from gen_unlearn.data import Split, load_split
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.metrics.weights import file_sha256
from gen_unlearn.processes import from_main, process_state
from gen_unlearn.repro import digest_bytes, digest_json, digest_state, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.training.checkpoint import CheckpointFolder


def train(
    config: Recipe,
    out: Path,
    without: ForgetSet | Tombstones | None = None,
    origin: RunFolder | None = None,
    description: str = "train",
) -> RunFolder:
    """Train the model that `config` describes into the folder `out`.

    A run that was interrupted continues from its newest resume point; a complete one is returned as it is.
    Several processes train one model together; the first one writes.

    Args:
        config: the recipe.
        out: folder of the run.
        without: images to leave out of the training data: the result is the oracle of their deletion.
        origin: run to take over what is held out and what is core from.
        description: shown before the progress bar.
    """
    split, parts = _load_data(config, [run for run in (RunFolder(out), origin) if run is not None])
    if isinstance(without, ForgetSet):
        without = Tombstones.of(without, from_main(RunKey.fresh()))  # One for all processes.
    if without is not None:
        parts = _leave_out(parts, without)
    # First: a recipe that cannot work leaves no folder.
    training = None if is_trained(out) else fresh_training(config, parts, out)
    if (
        isinstance(training, LoraEnsembleTraining)
        and origin is None
        and not RunFolder(out).manifest_path.exists()
    ):
        training.require_samples()
    manifest = RunManifest(
        recipe_digest=config.digest,
        data_digest=parts.digest,
        class_names=parts.core.class_names,
        image_shape=parts.core.image_shape,
        without=None if without is None else without.digest,
        started_from=starting_weights(config),
        versions=_versions(config),
    )
    process = process_state()
    with process.main_process_first():  # The others find the run that it starts.
        run = RunFolder.create(out, config, manifest, without)
        run.keep_split(split.test, parts)
    if training is None:
        return RunFolder.open(out)
    made_from = f"{manifest.recipe_digest}-{run.manifest.data_digest}"
    checkpoints = CheckpointFolder(out / "checkpoints", made_from, config.training.checkpoints_total_limit)
    model, progress = training.fit(checkpoints, description)
    record = TrainingRecord(
        seconds=progress.seconds,
        images=progress.step * config.training.batch_size,
        loss=progress.loss,
        parameters=sum(parameter.numel() for parameter in training.network.parameters()),
        weights_digest=digest_state(training.network.state_dict()),
        processes=process.num_processes,
    )
    if process.is_main_process:
        run.complete_training(model, record)
        checkpoints.remove()
    process.wait_for_everyone()
    return run


def _versions(config: Recipe) -> dict[str, str]:
    """Return the software; of an adapter ensemble also what else decides the last bits of its adapters."""
    if config.model.kind != "adapter-ensemble":
        return software_versions()
    return environment(process_state().device if isinstance(config, RunConfig) else None)


def is_trained(out: Path) -> bool:
    """Tell whether a folder holds a run whose training is complete."""
    run = RunFolder(out)
    return run.manifest_path.exists() and run.manifest.training is not None


def require_same_weights(run: RunFolder, config: Recipe) -> None:
    """Refuse to train again from a recipe that names other weights than the run started from.

    Raises:
        ValueError: they are not there, or not those any more.
    """
    if starting_weights(config) != run.manifest.started_from:
        raise ValueError(
            f"the weights that {run.recipe_path} names to start from are not those that {run.path} started "
            f"from: expected SHA-256 {run.manifest.started_from}; put them back"
        )


def starting_weights(config: Recipe) -> str | None:
    """Return the SHA-256 of the weights that a recipe names to start from, as they are now.

    Of a file it is what `sha256sum` prints; of a folder that of the sums of its configuration and safetensors
    files, in the order of their names; of a run, that of the weights its training ended with. Where a recipe
    names several, it is that of their digests.

    Raises:
        ValueError: there are no such weights.
    """
    digests = [_digest_of_weights(key, value) for key, value in sorted(config.starts_from.items())]
    return digest_json(digests) if len(digests) > 1 else next(iter(digests), None)


def _digest_of_weights(key: str, value: str) -> str:
    if key == "training.encoder_run":
        record = RunFolder.open(Path(value).expanduser()).manifest.training
        assert record is not None, "an opened run is trained"
        return record.weights_digest
    path = Path(value).expanduser()
    try:
        if path.is_file():
            return file_sha256(path)
        if (path / "model_index.json").is_file():  # A diffusers pipeline.
            files = sorted(file for file in path.rglob("*") if file.suffix in (".json", ".safetensors"))
        else:
            files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
        return digest_bytes(*(file_sha256(file).encode() for file in files))
    except OSError as error:
        raise ValueError(f"expected weights at {value}, which {key} names, got none: {error}") from error


def _load_data(config: Recipe, known: Sequence[RunFolder]) -> tuple[Split, CoreSplit]:
    """Load and divide the data, as the first run did that has done so, if any of `known` has."""
    remembers = next((run for run in known if run.held_out_path.exists()), None)
    if remembers is None:
        split = load_split(config.data)
        return split, split_core(split.train, config.core)
    split = remembers.split(config.data)
    return split, remembers.split_core(split.train)


def _leave_out(parts: CoreSplit, without: Tombstones) -> CoreSplit:
    """Take images out of both parts.

    Raises:
        ValueError: an image is part of a public core, so that the run without it is another run altogether.
    """
    deletable = parts.deletable.select(np.flatnonzero(~without.mask(parts.deletable.ids)))
    if parts.core is parts.deletable:
        return CoreSplit(deletable, deletable)
    if without.mask(parts.core.ids).any():
        raise ValueError("expected to train without deletable images, got some of the public core")
    return CoreSplit(parts.core, deletable)


def deleted_from(paths: Sequence[Path]) -> tuple[Tombstones, RunFolder]:
    """Return what was deleted from one run, by all of its receipts or by some, and the run.

    Args:
        paths: the run, or receipts in it.

    Raises:
        ValueError: nothing was deleted, or the receipts are not of one run.
    """
    runs = {path.resolve() if path.is_dir() else path.resolve().parent.parent for path in paths}
    if len(runs) != 1:
        raise ValueError(f"expected one run, or receipts of one, got {len(runs)} runs")
    run = RunFolder.open(runs.pop())
    names = {path.name for path in paths if not path.is_dir()}
    entries = [entry for entry in run.ledger.entries if entry.kind in ("deleted", "rebuilt")]
    chosen = [entry for entry in entries if entry.receipt in names or not names]
    missing = names - {entry.receipt for entry in chosen}
    if missing:
        raise ValueError(f"{run.path} has no receipt {', '.join(sorted(missing))}")
    if not chosen:
        raise ValueError(f"nothing was deleted from {run.path}: it has no receipts")
    return Tombstones(run.key, frozenset(mark for entry in chosen for mark in entry.tombstones)), run


def describe(run: RunFolder) -> dict[str, Any]:
    """Return the facts of a trained run, for people and for ``--json``.

    The loss of an ensemble whose encoder or backbone was given, and not trained, is `None`.
    """
    manifest = run.manifest
    if manifest.training is None:
        raise ValueError(f"training of {run.path} is not complete")
    facts = {"run": str(run.path), "recipe": manifest.recipe_digest, "without": manifest.without} | {
        f"{'seconds_train' if name == 'seconds' else name}": value
        for name, value in asdict(manifest.training).items()
    }
    return facts | ({"loss": None} | given_network(run) if given_network(run) else {})


def given_network(run: RunFolder) -> dict[str, str]:
    """Return where the frozen network of an ensemble came from, by what it is, if its weights were given."""
    names = {"model.encoder.weights": "encoder", "model.weights": "backbone"} if run.is_ensemble else {}
    given = run.recipe.starts_from
    return {name: given[key] for key, name in names.items() if key in given}


def summary(facts: dict[str, Any], before: bool) -> str:
    """Say in a line what came of a training.

    Args:
        facts: as `describe` gives them.
        before: whether the run was trained already, and nothing was done.
    """
    took = f"{facts['seconds_train']:.0f} s"
    if facts["loss"] is None:
        name = "backbone" if "backbone" in facts else "encoder"
        unused = "training.*" if name == "encoder" else "training.* and what describes the network"
        ended = f"{name} taken from {facts[name]}, not trained: {unused} says nothing here"
    else:
        ended = f"loss {facts['loss']:.4f}"
    if before:
        return f"{facts['run']} is trained already: it took {took}, {ended}"
    return f"trained {facts['run']} in {took}, {ended}"
