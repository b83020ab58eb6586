"""Apply an approximate unlearning method to a network of diffusers, and write the result as a new folder.

The new folder has the structure of the checkpoint. Its own parts::

    unlearning.json  the method with its settings, its cost, and the digests of the weights before and after
    receipts/        the sealed receipt
    receipts.key     the secret key of its seals, as that of a run: keep it, and publish the folder without it
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gen_unlearn.atomic import flush_tree, write_text
from gen_unlearn.commands.unet_checkpoint import UNetCheckpoint
from gen_unlearn.commands.unlearn_plan import UnlearningPlan
from gen_unlearn.commands.unlearn_steps import appearing, applied, receipt_of
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.method import Unlearned
from gen_unlearn.processes import process_state
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import digest_state
from gen_unlearn.sealing import RunKey, Tombstones


@dataclass(frozen=True)
class CheckpointRecord:
    """What was done to the weights of a checkpoint.

    Attributes:
        method: name of the method.
        settings: all of them, as YAML would give them.
        seed: of everything random in it.
        forward_samples: samples that passed a network forward.
        backward_samples: samples whose gradients were taken.
        seconds: wall-clock time.
        peak_memory: most bytes that the accelerator held; `None` on a CPU.
        images: how many distinct images it was to forget.
        forget_digest: SHA-256 of their tombstones.
        source: where the images came from, as it was given.
        source_digest: of all their ids and labels, sealed.
        weights_before: SHA-256 of the UNet's weights in float32.
        weights_after: the same of the new weights.
        origin_path: where the checkpoint was, relative to this folder.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    forward_samples: int
    backward_samples: int
    seconds: float
    peak_memory: int | None
    images: int
    forget_digest: str
    source: str
    source_digest: str
    weights_before: str
    weights_after: str
    origin_path: str


def carry_out_on_checkpoint(
    plan: UnlearningPlan[UNetCheckpoint],
) -> tuple[CheckpointRecord, DeletionReceipt]:
    """Unlearn, and write the new folder; return its record, and its receipt, not sealed.

    It appears when it is complete: an error, or Ctrl-C, leaves nothing behind.

    Raises:
        ValueError: the loss ran away, the weights did not move, or the method cannot work on this network.
    """
    checkpoint, classes = plan.origin, len(plan.data.forget.class_names)
    model = DenoisingModel(checkpoint.network, checkpoint.noise, classes).eval().to(process_state().device)
    with appearing(plan.out) as staging:
        done = applied(plan, model, "no")
        return _write(plan, done, staging)


def _write(
    plan: UnlearningPlan[UNetCheckpoint], done: Unlearned, staging: Path
) -> tuple[CheckpointRecord, DeletionReceipt]:
    """Write all files of the new folder."""
    assert isinstance(done.model, DenoisingModel)
    checkpoint, network, key = plan.origin, done.model.network.eval(), RunKey.fresh()
    purged = checkpoint.write(staging, network)
    digests = digest_state(checkpoint.network.state_dict()), digest_state(network.state_dict())
    record = CheckpointRecord(
        method=plan.name,
        settings=plan.settings,
        seed=plan.seed,
        **asdict(done.cost),
        images=len(plan.forget),
        forget_digest=Tombstones.of(plan.forget, key).digest,
        source=checkpoint.source,
        source_digest=key.seal("data", plan.data.digest),
        weights_before=digests[0],
        weights_after=digests[1],
        origin_path=os.path.relpath(checkpoint.path.resolve(), plan.out.resolve()),
    )
    left = (
        "the weights of the UNet: they were trained on the images",
        *(f"{name}: copied as it was, not read" for name in checkpoint.other_entries),
        "the checkpoint that this one was made from, which is as it was",
    )
    artefact = "weights of a diffusers UNet2DModel"
    receipt = receipt_of(plan, artefact, digests, done.cost.seconds, left, purged)
    key.save(staging / checkpoint.key_name)
    write_text(staging / checkpoint.record_name, json.dumps(asdict(record), indent=2) + "\n")
    receipts = staging / checkpoint.receipts_name
    receipts.mkdir()
    write_text(receipts / "0001.json", receipt.sealed(key).to_json())
    flush_tree(staging)
    return record, receipt
