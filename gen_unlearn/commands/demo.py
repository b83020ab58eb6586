"""The main job on real images with no download: scikit-learn's handwritten digits."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.report import load_states, write_report
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.residue import audit
from gen_unlearn.commands.stages import Stages
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.judging.states import sample_states
from gen_unlearn.metrics.cost import sampling_overhead
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.report.comparison import comparison_picture
from gen_unlearn.repro import ids_to_hex, keyed_order
from gen_unlearn.runs import RunFolder

FORGOTTEN_CLASS = "3"
SINGLE_IMAGES = 12
_TIMED_IMAGES = 100


def demo_config(overrides: Sequence[str] = ()) -> RunConfig:
    """Return the demo's recipe: ``configs/digits_spm.yaml`` with seven eighths of its training."""
    with resources.as_file(resources.files("gen_unlearn.commands") / "demo.yaml") as path:
        return load_config(path, overrides)


def run_demo(config: RunConfig, out: Path, stages: Stages) -> dict[str, Any]:
    """Train, delete a class and some single images, retrain, evaluate, report and verify.

    Each stage that is complete is found again when the demo is run into the same folder, so an interrupted
    demo continues.

    Args:
        config: a semi-parametric recipe on a data set that has a class "3".
        out: folder; the generator goes to ``run``, the oracle to ``oracle``.
        stages: gets the seconds of each stage; what was found complete takes next to none.

    Returns:
        The summary, which is also written to ``summary.json``.
    """
    _say("1/7  train a semi-parametric generator on real handwritten digits")
    with stages.timed("train"):
        run = train(config, out / "run", description="train")
    if not run.receipts():
        _say("2/7  judge it before the deletion")
        _judge(run, (), stages)
    _say(f"3/7  delete class {FORGOTTEN_CLASS} and {SINGLE_IMAGES} single images of other classes")
    with stages.timed("delete"):
        for request in _requests(run)[len(run.receipts()) :]:
            receipt, _ = forget(run, request.resolve(run).forget_set, keep_comparison=True)
            _say(str(receipt))
    _say("4/7  retrain from scratch without them: the oracle")
    with stages.timed("train oracle"):
        oracle = train(config, out / "oracle", *deleted_from([run.path]), description="train oracle")
    _say("5/7  judge it after the deletion, against the oracle")
    card = _judge(run, [oracle], stages)
    with stages.timed("time sampling"):
        card = replace(card, measures=(*card.measures, _overhead(run)))
        write_text(run.scorecard_path, card.to_json())
    _say("6/7  write the report")
    with stages.timed("report"):
        write_report(run, out / "report.html", show_deleted=True)
        comparison_picture(load_states(run, card), run.manifest.class_names).save(out / "samples.png")
    _say("7/7  verify the ledger and the state, and search every file of the run for what was deleted")
    with stages.timed("verify"):
        checks, residue = verify(run), audit(run)
    _say("\n".join([*map(str, checks), *residue.lines()]))
    summary = summarise(run, card) | {
        "verified": not failures(checks),
        "checks": [asdict(check) for check in checks],
        "residue": residue.facts(),
        "stages": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _judge(run: RunFolder, oracles: Sequence[RunFolder], stages: Stages) -> Scorecard:
    """Judge a run; the samples, which the judging finds in the run, are a stage of their own."""
    with stages.timed("sample"):
        sample_states(run, oracles)
    with stages.timed("judge"):
        return evaluate(run, oracles)


def summarise(run: RunFolder, card: Scorecard) -> dict[str, Any]:
    """Return every measure by name, the level of the promise, and how to read them."""
    receipts = run.receipts()
    return {measure.name: measure.value for measure in card.measures} | {
        "level": receipts[-1].level,
        "removed": sum(receipt.removed for receipt in receipts),
        "remaining": receipts[-1].remaining,
        "measures": [asdict(measure) for measure in card.measures],
        "accuracy_per_class": card.accuracy_per_class,
        "protocol": card.protocol,
        "recipe_digest": run.manifest.recipe_digest,
        "versions": run.manifest.versions,
        "notes": list(card.notes),
    }


def _requests(run: RunFolder) -> list[ForgetRequest]:
    """Ask for a class, and for some images of the other classes, chosen by a hash of their ids."""
    data = run.load_split().train
    others = data.ids[data.labels != data.class_index(FORGOTTEN_CLASS)]
    chosen = others[keyed_order(others, "demo")[:SINGLE_IMAGES]]
    return [
        ForgetRequest(classes=(FORGOTTEN_CLASS,)),
        ForgetRequest(ids=ids_to_hex(chosen), reason=f"{SINGLE_IMAGES} single images"),
    ]


def _overhead(run: RunFolder) -> Measure:
    """Time sampling against a plain class-conditional UNet of the same size, whose weights do not matter."""
    config = run.config
    pipeline = run.load_pipeline()
    plain = build_denoiser(
        replace(config.model, kind="class-conditional"),
        run.manifest.image_shape,
        len(run.manifest.class_names),
    )
    assert isinstance(plain, UNet2DModel)
    reference = ClassConditionalDDPMPipeline(plain.eval(), pipeline.scheduler).to(pipeline.device)
    served = served_classes(pipeline)
    labels = [served[index % len(served)] for index in range(_TIMED_IMAGES)]
    return Measure.of(
        "sampling_overhead_vs_ddpm",
        sampling_overhead(pipeline, reference, labels, config.sampling, repeats=3),
        "Seconds per image over those of a plain class-conditional DDPM of the same size, in one run: "
        f"batches of {_TIMED_IMAGES}, the same sampler, steps and guidance, "
        f"{config.sampling.exemplars_per_class} exemplars per class. Encoding the exemplars, done once, is "
        "not in it.",
        1.0,
        "the plain model",
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
