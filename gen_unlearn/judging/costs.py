"""What training and deleting took."""

from __future__ import annotations

from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.runs import RunFolder


def measure_costs(run: RunFolder) -> list[Measure]:
    """Report what training and deleting took."""
    training, receipts = run.manifest.training, run.receipts()
    measures = []
    if training is not None:
        measures.append(
            Measure(
                "seconds_train", training.seconds, f"Seconds to train on {training.images:,} images shown."
            )
        )
    if receipts:
        measures.append(
            Measure(
                "seconds_delete",
                sum(receipt.seconds for receipt in receipts),
                f"Seconds to prepare the deletion of {sum(r.removed for r in receipts)} images in "
                f"{len(receipts)} requests on disk: shards read, written and flushed, with their digests.",
            )
        )
    return measures
