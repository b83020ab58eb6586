"""What training and deleting took."""

from __future__ import annotations

from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.manifest import UnlearningRecord
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.runs import RunFolder


def measure_costs(run: RunFolder, ensemble: RefittableEnsemble | None = None) -> list[Measure]:
    """Report what training and deleting took.

    Args:
        run: the run.
        ensemble: the same, if it is an adapter ensemble and every deleted image is still to be had.
    """
    training, receipts = run.manifest.training, run.receipts()
    measures = []
    if training is not None:
        adapters = " of its backbone, and for its adapters" if run.is_ensemble else ""
        measures.append(
            Measure(
                "seconds_train",
                training.seconds,
                f"Seconds to train on {training.images:,} images shown{adapters}.",
            )
        )
    if ensemble is not None:
        measures += _visits(ensemble, deleted=bool(receipts))
    if receipts:
        if run.manifest.unlearned is not None:
            return [*measures, _unlearning(run.manifest.unlearned)]
        what = (
            "images taken out, their adapters masked and rebuilt, digests included"
            if run.is_ensemble
            else "shards read, written and flushed, with their digests"
        )
        measures.append(
            Measure(
                "seconds_delete",
                sum(receipt.seconds for receipt in receipts),
                f"Seconds to prepare the deletion of {sum(r.removed for r in receipts)} images in "
                f"{len(receipts)} requests on disk: {what}.",
            )
        )
    return measures


def _unlearning(record: UnlearningRecord) -> Measure:
    """Report what approximate unlearning took."""
    return Measure(
        "seconds_delete",
        record.seconds,
        f"Seconds that {record.method} took to unlearn {record.images} images: {record.forward_samples:,} "
        f"samples passed a network forward and {record.backward_samples:,} backward.",
    )


def _visits(ensemble: RefittableEnsemble, deleted: bool) -> list[Measure]:
    """Report how often images are read to fit adapters."""
    training, deleting = ensemble.visits
    measures = [
        Measure(
            "visits_train",
            training,
            "How often an image is read to fit all adapters: members times epochs, summed. The backbone, "
            "which no deletion touches, is not counted.",
        )
    ]
    if deleted and training:
        measures.append(
            Measure(
                "visits_delete",
                deleting,
                f"How often an image is read to rebuild the adapters of all deleted images once: "
                f"{deleting / training:.2%} of what all adapters took. Requests one by one rebuild more "
                "often where they share adapters.",
                details={"share_of_training": deleting / training},
            )
        )
    return measures
