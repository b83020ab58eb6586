"""What approximate unlearning does alike to a run and to a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from gen_unlearn.atomic import flush_folder
from gen_unlearn.commands.unlearn_plan import Origin, UnlearningPlan
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import Unlearned, unlearn
from gen_unlearn.methods.per_sample import evaluation_mode
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex, software_versions

_CHECKED_IMAGES = 16


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, and rename it to `out` at the end: an error, or Ctrl-C, leaves nothing."""
    made = [parent for parent in out.parents if not parent.exists()]
    staging = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        staging.rename(out)
        flush_folder(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def applied(plan: UnlearningPlan[Origin], network: nn.Module, mixed_precision: str) -> Unlearned:
    """Apply the method of a plan, and check that the result can be used.

    Args:
        plan: what is to be done.
        network: what the method unlearns; stays as it is.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        ValueError: a loss, a weight or an output is not finite, the weights did not move, the method cannot
            work on this model, or it returned another network.
    """
    AcceleratorState._reset_state()  # Each model has its own precision.
    accelerator = Accelerator(mixed_precision=mixed_precision)
    done = unlearn(plan.method, network, plan.data, accelerator=accelerator, seed=plan.seed)
    _require_same_shape(plan.name, network, done.model)
    _require_finite(plan.name, done.model, plan.data.retain)
    return done


def receipt_of(
    plan: UnlearningPlan[Origin],
    artefact: str,
    digests: tuple[str, str],
    seconds: float,
    left: tuple[str, ...],
    purged: tuple[str, ...] = (),
) -> DeletionReceipt:
    """Return the receipt of a plan that was carried out, not sealed.

    Args:
        plan: what was done.
        artefact: what the images were unlearned from.
        digests: of its state, before and after.
        seconds: that the method took.
        left: what may still carry traces of the images, and why.
        purged: what was removed besides, by path.
    """
    return DeletionReceipt(
        artefact=artefact,
        level="approximate",
        reason=plan.forget.reason,
        ids=tuple(ids_to_hex(plan.forget.ids)),
        forget_digest=plan.forget.digest,
        removed=len(plan.data.forget),
        removed_per_class=plan.per_class,
        remaining=len(plan.data.retain),
        digest_before=digests[0],
        digest_after=digests[1],
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        purged=purged,
        left=left,
    )


def _require_same_shape(name: str, before: nn.Module, after: nn.Module) -> None:
    """Refuse a result that is another network than the one it was made from, as it could not be loaded."""
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (before, after)]
    if shapes[0] != shapes[1] or type(before) is not type(after):
        raise ValueError(f"{name} returned another network than it was given; it cannot be written")


def _require_finite(name: str, model: nn.Module, retain: IndexedImages) -> None:
    """Refuse a result whose last step ran away: methods look at losses, and none follows the last step.

    A few retained images pass the result once; no method counts them.
    """
    batch = batch_of(retain, np.arange(min(_CHECKED_IMAGES, len(retain))))
    device = next(model.parameters()).device
    batch = batch._replace(inputs=batch.inputs.to(device), labels=batch.labels.to(device))
    with torch.no_grad(), evaluation_mode(model):
        if isinstance(model, DenoisingModel):
            output = DenoisingLoss(seed=0, role="check").per_image(model, batch)
        else:
            output = model(batch.inputs)
    if not output.isfinite().all():
        raise ValueError(
            f"{name} left a network whose output is not finite: its last step ran away; lower its lr"
        )
