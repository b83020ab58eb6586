"""Apply an approximate unlearning method to a trained run, and write the result as a new run.

The new run has the recipe, the key and the held-out images of the run it was made from. With the key, equal
forget sets have equal tombstones, so that one oracle serves every method. Its ledger ends with a deletion of
level ``approximate``, as that of an exact deletion does with its own level.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from gen_unlearn.atomic import flush_tree, write_text
from gen_unlearn.commands.derived import remaining
from gen_unlearn.commands.filing import filed
from gen_unlearn.commands.trained_classifier import TrainedClassifier
from gen_unlearn.commands.unlearn_plan import UnlearningPlan
from gen_unlearn.commands.unlearn_steps import appearing, applied, receipt_of
from gen_unlearn.ledger import append_line
from gen_unlearn.manifest import UnlearningRecord
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.method import Unlearned
from gen_unlearn.models.classifier import ParametricClassifier
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.classification import ParametricPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import digest_state
from gen_unlearn.runs import RunFolder, SavedModel
from gen_unlearn.sealing import Tombstones
from gen_unlearn.shards import sha256

_ARTEFACTS = {
    "generation": "weights of a class-conditional generator",
    "classification": "weights of a parametric classifier",
}


def carry_out(plan: UnlearningPlan[RunFolder]) -> tuple[RunFolder, DeletionReceipt]:
    """Unlearn, and write the new run; return it, and its receipt, not sealed.

    It appears when it is complete: an error, or Ctrl-C, leaves nothing behind.

    Raises:
        ValueError: the loss ran away, the weights did not move, or the method cannot work on this model.
    """
    network, saved = _loaded(plan.origin)
    with appearing(plan.out) as staging:
        done = applied(plan, network, plan.origin.recipe.training.mixed_precision)
        receipt = _write(plan, done, saved(done.model), staging)
    return RunFolder.open(plan.out), receipt


def _loaded(run: RunFolder) -> tuple[nn.Module, Callable[[nn.Module], SavedModel]]:
    """Return what a method unlearns, and what makes a saved model of the result."""
    names, shape = run.manifest.class_names, run.manifest.image_shape
    if run.recipe.task == "classification":
        classifier = run.load_classifier()
        assert isinstance(classifier, ParametricPipeline), "only a parametric run is unlearned"

        def saved_classifier(found: nn.Module) -> SavedModel:
            assert isinstance(found, ParametricClassifier)
            return TrainedClassifier(found.eval(), None, names, shape[:2])

        return classifier.network, saved_classifier
    pipeline = run.load_pipeline()

    def saved_generator(found: nn.Module) -> SavedModel:
        assert isinstance(found, DenoisingModel)
        return ClassConditionalDDPMPipeline(found.network.eval(), pipeline.scheduler)

    model = DenoisingModel(pipeline.unet, run.config.noise.build(), len(names))
    return model.to(process_state().device), saved_generator


def _digest(model: nn.Module) -> str:
    return digest_state((model.network if isinstance(model, DenoisingModel) else model).state_dict())


def _write(
    plan: UnlearningPlan[RunFolder], done: Unlearned, model: SavedModel, staging: Path
) -> DeletionReceipt:
    """Write all files of the new run to a folder."""
    run, new = plan.origin, RunFolder(staging)
    before = run.manifest.training
    assert before is not None, "an opened run is trained"
    tombstones = Tombstones.of(plan.forget, run.key)
    record = UnlearningRecord(
        method=plan.name,
        settings=plan.settings,
        seed=plan.seed,
        **asdict(done.cost),
        images=len(plan.forget),
        forget_digest=tombstones.digest,
        origin=sha256(run.manifest_path.read_bytes()),
        origin_weights=before.weights_digest,
        origin_path=os.path.relpath(run.path.resolve(), plan.out.resolve()),
    )
    run.key.save(new.key_path)
    write_text(new.recipe_path, run.recipe_path.read_text(encoding="utf-8"))
    write_text(new.held_out_path, run.held_out_path.read_text(encoding="utf-8"))
    write_text(new.manifest_path, replace(run.manifest, training=None, unlearned=record).to_json())
    new.complete_training(model, replace(before, weights_digest=_digest(done.model)))
    receipt = _receipt(plan, new, done.cost.seconds)
    name, text, entry = filed("deleted", receipt, new.ledger, tuple(sorted(tombstones.marks)))
    new.receipts_path.mkdir()
    write_text(new.receipts_path / name, text)
    append_line(new.ledger_path, new.ledger.size, entry.to_line())
    flush_tree(staging)
    return receipt


def _receipt(plan: UnlearningPlan[RunFolder], new: RunFolder, seconds: float) -> DeletionReceipt:
    origin = (
        "the run that this one was made from, which is as it was: weights that were trained on the images"
    )
    return receipt_of(
        plan,
        _ARTEFACTS[plan.origin.recipe.task],
        (plan.origin.state_digest(), new.state_digest()),
        seconds,
        left=(*remaining(new), origin),
    )
