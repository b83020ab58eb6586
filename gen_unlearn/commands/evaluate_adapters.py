"""What is measured of an adapter ensemble that generates, besides what is measured of every generator."""

from __future__ import annotations

import shlex

import numpy as np

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.data import IndexedImages
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.judging.evidence import Evidence
from gen_unlearn.judging.extraction import measure_extraction
from gen_unlearn.judging.memorisation import measure_memorisation
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.repro import among
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted


def measure_adapters(run: RunFolder, ensemble: RefittableEnsemble, evidence: Evidence) -> list[Measure]:
    """Measure whether adapters copy their images, and what the model from before gives away of deleted ones.

    The latter is left out with the membership test (``evaluation.membership.images`` 0).

    Args:
        run: the run.
        ensemble: the same.
        evidence: its samples, and what was deleted.
    """
    core = run.split_core(run.load_split().train).core
    unseen = _unseen(evidence, core)
    state = "after" if "after" in evidence.states else "before"
    samples = evidence.states[state].conditional
    measures = measure_memorisation(ensemble, state, samples, core, unseen, run.config.sampling)
    router, deleted = ensemble.pipeline.router, ensemble.deleted
    if router is None or not len(deleted) or not run.config.evaluation.membership.images:
        return measures
    of_classes = unseen.select(np.flatnonzero(np.isin(unseen.labels, deleted.labels)))
    size, neighbours = ensemble.rows.pixels.shape[1:3], ensemble.recipe.neighbours
    rows = encode_records(router, of_classes, neighbours, size, "encode held-out images")
    return [*measures, *measure_extraction(ensemble, rows, run.config.sampling.num_inference_steps)]


def _unseen(evidence: Evidence, core: IndexedImages) -> IndexedImages:
    """Return the held-out images that are no training images: a test source of its own may share some."""
    deletion = evidence.deletion
    seen = unique_ids(np.concatenate([deletion.images.ids, deletion.retained.ids, core.ids]))
    return evidence.test.select(np.flatnonzero(~among(evidence.test.ids, seen)))


def waiting_notes(run: RunFolder) -> list[str]:
    """Say which adapters wait to be rebuilt, and that images are drawn without them; nothing of others."""
    if not run.is_ensemble:
        return []
    waiting = len(run.adapter_folder().waiting)
    if not waiting:
        return []
    verb = "waits" if waiting == 1 else "wait"
    return [
        f"{counted(waiting, 'adapter')} {verb} to be rebuilt: images were drawn without "
        f"{'it' if waiting == 1 else 'them'}; to rebuild: gen-unlearn forget {shlex.quote(str(run.path))} "
        "--rebuild"
    ]
