"""Verify a run: its ledger and its state, whether it can be rebuilt, and whether anything deleted is left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from gen_unlearn.changes import refuse_links
from gen_unlearn.commands import verify_ensemble
from gen_unlearn.commands.fit import fit, fit_classifier
from gen_unlearn.commands.train import require_same_weights
from gen_unlearn.commands.trained_classifier import TrainedClassifier, encode_again, threads_of_training
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import RunConfig
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.indexed_images import first_few
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import from_main, process_state
from gen_unlearn.repro import ID_BYTES, id_keys, ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows, row_keys, sha256

Keyed = TypeVar("Keyed", bound=TrainedClassifier | TrainedEnsemble)

_MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        name: what was checked.
        problem: what is wrong; empty if nothing is.
        detail: what was found.
        skipped: whether it was not done; the detail says why.
    """

    name: str
    problem: str = ""
    detail: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem

    @property
    def said(self) -> str:
        """What is wrong or, if nothing is, what was found."""
        return self.problem or self.detail

    def __str__(self) -> str:
        verdict = "skipped" if self.skipped else "ok     " if self.passed else "FAILED "
        return f"{verdict} {self.name}: {self.said}"


def verify(run: RunFolder) -> list[Check]:
    """Check the ledger, the receipts and every byte of the state against each other.

    Derived files (samples, metrics, reports) belong to no state and are not checked.
    """
    with run.change.settled():
        checks = [
            _check("ledger", lambda: _ledger(run)),
            _check("receipts", lambda: _receipts(run)),
            _check("files that no deletion changes", lambda: _unchanging_files(run)),
        ]
        if run.has_exemplars:
            checks.append(_check("exemplars", lambda: _exemplars(run)))
        if run.is_ensemble:
            checks.append(_check("adapters", lambda: verify_ensemble.check_adapters(run)))
        return checks


def replay(run: RunFolder, sample: int | None = None) -> list[Check]:
    """Rebuild the pipeline from recipe, core and surviving exemplars, and compare every file's SHA-256.

    The weights of a joint core are not rebuilt: they were fit on the deleted images too. Then only the
    exemplars are.

    Args:
        run: a run with exemplars.
        sample: of an adapter ensemble: rebuild only so many adapters, chosen at random.

    Raises:
        ValueError: there are no exemplars, or no adapters to choose from.
    """
    if sample is not None:
        verify_ensemble.require_sample(run, sample)
    elif not run.has_exemplars:
        raise ValueError(f"{run.path} has no exemplars: no exact deletion from it could be replayed")
    for _ in range(_MOST_ATTEMPTS):
        before = _settled_head(run)
        checks = _replay(run, sample)
        if _settled_head(run) == before:
            return checks
    problem = f"the run changed {_MOST_ATTEMPTS} times while it was replayed; try again later"
    return [Check("replay", problem=problem)]


def _settled_head(run: RunFolder) -> str:
    """Return the head of the ledger while no change is in progress, the same in all processes."""
    head = [""]
    if process_state().is_main_process:
        with run.change.settled():
            head = [run.ledger.head]
    return from_main(head[0])


def _replay(run: RunFolder, sample: int | None) -> list[Check]:
    """Replay a run once; a change that comes in between can make it fail."""
    if sample is not None:
        return [_check(f"replay of a sample of {sample}", lambda: verify_ensemble.replay_sample(run, sample))]
    checks = [_check("replay of the exemplars", lambda: _replay_exemplars(run))]
    if run.is_ensemble:
        checks.append(_check("replay of the adapters", lambda: verify_ensemble.replay_adapters(run)))
    if run.recipe.core.mode != "public":
        skipped = "not done: the core is joint, so the weights were fit on the deleted images (exemplar-only)"
        return [*checks, Check("replay of the weights", detail=skipped, skipped=True)]
    name, record, now = "replay of the whole pipeline", run.manifest.training, process_state().num_processes
    if record is not None and record.processes != now:
        skipped = f"not done: it takes as many processes as trained it, {record.processes}, got {now}"
        return [*checks, Check(name, detail=skipped, skipped=True)]
    return [*checks, _check(name, lambda: _replay_pipeline(run))]


def _check(name: str, work: Callable[[], str]) -> Check:
    """Do a check that returns what it found, and raises a ValueError or OSError for what is wrong."""
    try:
        return Check(name, detail=work())
    except (ValueError, OSError, RecursionError) as error:
        if isinstance(error, OSError) and process_state().num_processes > 1:
            raise  # Perhaps in this process alone: the others would wait for it.
        return Check(name, problem=" ".join(str(error).split()))


def _ledger(run: RunFolder) -> str:
    ledger = run.ledger
    if run.ledger_path.stat().st_size != ledger.size:
        raise ValueError(f"{run.ledger_path} ends in something that is no entry")
    return f"{len(ledger.lines)} entries, head {ledger.head}"


def _receipts(run: RunFolder) -> str:
    names = set()
    for entry in run.ledger.entries:
        if entry.receipt is None:
            continue
        names.add(entry.receipt)
        path = run.receipts_path / entry.receipt
        if sha256(path.read_bytes()) != entry.receipt_sum:
            raise ValueError(f"{path} was changed after it was filed")
    present = {path.name for path in run.receipts_path.iterdir()} if run.receipts_path.exists() else set()
    if present - names:
        raise ValueError(f"not in the ledger: {first_few(sorted(present - names))}")
    return f"{len(names)}, as the ledger says"


def _unchanging_files(run: RunFolder) -> str:
    expected = run.ledger.entries[0].files or {}
    found = run.unchanging_files()
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        raise ValueError(f"changed, missing or new since the training: {first_few(differing)}")
    return f"{len(found)} as they were after {run.last_fit}"


def _exemplars(run: RunFolder) -> str:
    refuse_links([run.path, run.model_path, run.exemplars_path])
    folder, ledger = run.exemplar_folder(), run.ledger
    folder.verify()
    last = ledger.entries[-1]
    if not last.describes(run.state_of(folder), run.key) or last.remaining != len(folder):
        what = "they and the adapters" if run.is_ensemble else "they"
        raise ValueError(f"{what} are not in the state that the ledger's last entry describes")
    if deleted := int(ledger.tombstones.mask(folder.ids).sum()):
        raise ValueError(f"{deleted} of them were deleted and are back")
    return f"{len(folder)}, every byte as listed, none of them deleted"


def _replay_exemplars(run: RunFolder) -> str:
    data, missing = _surviving(run)
    with threads_of_training(run), tempfile.TemporaryDirectory() as scratch:
        if run.recipe.model.kind == "semi-parametric" and run.recipe.task == "generation":
            ExemplarStore.from_images(data).save_pretrained(scratch)
        else:
            _completed(encode_again(run, data), missing).save_exemplars(Path(scratch))
        return _compare_replayed(run, Path(scratch), run.exemplars_path, missing)


def _replay_pipeline(run: RunFolder) -> str:
    require_same_weights(run, run.recipe)
    core = run.split_core(run.load_split().train).core
    if not np.array_equal(np.sort(core.ids, axis=0), np.sort(run.core_ids, axis=0)):
        raise ValueError(
            f"the source no longer has the whole core: {len(core)} of {len(run.core_ids)} images"
        )
    data, missing = _surviving(run)
    with threads_of_training(run), tempfile.TemporaryDirectory() as scratch:
        trained: GeneratorPipeline | TrainedClassifier | TrainedEnsemble
        if isinstance(run.recipe, RunConfig):
            trained, _ = fit(run.recipe, core, data, description="replay")
        else:
            trained, _ = fit_classifier(run.recipe, core, data, description="replay")
        if isinstance(trained, SemiParametricDDPMPipeline):
            trained.save_pretrained(scratch, include_exemplars=True)
        elif isinstance(trained, TrainedEnsemble):
            verify_ensemble.save_replayed(run, _completed(trained, missing), Path(scratch))
        elif isinstance(trained, TrainedClassifier):
            _completed(trained, missing).save_pretrained(Path(scratch))
        return _compare_replayed(run, Path(scratch), run.model_path, missing)


def _surviving(run: RunFolder) -> tuple[IndexedImages, Rows]:
    """Return the exemplars as data, in an order of their own, and those that only the run has.

    What is kept may be pictures of them; then their own pixels are those of the source, if it has them: it
    has no images that were added.

    Raises:
        ValueError: the source lacks more exemplars than were ever added.
    """
    folder = run.exemplar_folder()
    none = folder.select(np.empty((0, ID_BYTES), np.uint8))
    if folder.decoded_size == folder.image_shape[:2]:
        rows, missing = folder.all_rows(), none
        data = IndexedImages(rows.pixels, rows.labels, rows.ids, folder.class_names, ("",) * len(rows.ids))
    else:
        rows, train = folder.all_rows(pixels=False), run.load_split().train
        held = train.holds(rows.ids)
        missing = none if held.all() else folder.select(rows.ids[~held])
        _require_added(run, missing)
        rows = rows.select(held)
        keys, first = np.unique(id_keys(train.ids), return_index=True)
        data = train.select(first[np.searchsorted(keys, id_keys(rows.ids))])
        data = replace(data, labels=rows.labels, class_names=folder.class_names)
    return data.select(from_main(np.random.default_rng().permutation(len(data)))), missing


def _require_added(run: RunFolder, missing: Rows) -> None:
    added = sum(entry.images for entry in run.ledger.entries if entry.kind == "added")
    if len(missing.ids) > added:
        raise ValueError(
            f"the source no longer has {len(missing.ids)} of the exemplars, and only {added} were ever "
            f"added: {first_few(ids_to_hex(missing.ids))}; bring the images back to the source"
        )


def _completed(trained: Keyed, missing: Rows) -> Keyed:
    """Add exemplars, as the run has them, to those that were rebuilt."""
    if not len(missing.ids):
        return trained
    assert trained.exemplars is not None, "a run with exemplars is semi-parametric"
    rows = Rows.joined([trained.exemplars, missing])
    return replace(trained, exemplars=rows.select(np.argsort(row_keys(rows))))


def _compare_replayed(run: RunFolder, rebuilt: Path, kept: Path, missing: Rows) -> str:
    """Compare two folders; say also which exemplars are not rebuilt but taken from the run."""
    try:
        found = _compare(rebuilt, kept)
    except ValueError as error:
        raise ValueError(f"{error}{run.environment_note}") from error
    count = len(missing.ids)
    noun, are = ("exemplar", "was") if count == 1 else ("exemplars", "were")
    return found + (f"; {count} {noun} {are} not rebuilt: the source does not have them" if count else "")


def _compare(rebuilt: Path, kept: Path) -> str:
    """Compare two folders file by file."""
    sums = [
        {
            path.relative_to(folder).as_posix(): sha256(path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (rebuilt, kept)
    ]
    differing = sorted(
        name for name in sums[0].keys() | sums[1].keys() if sums[0].get(name) != sums[1].get(name)
    )
    if differing:
        raise ValueError(f"{len(differing)} of {len(sums[1])} files differ: {first_few(differing)}")
    return f"{len(sums[1])} files, SHA-256 equal"


def failures(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that did not pass."""
    return [check for check in checks if not check.passed]
