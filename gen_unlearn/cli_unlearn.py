"""The verb that unlearns approximately."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen_unlearn.cli_base import DryRunOption, JsonOption, app, in_one_process, open_run, reports_errors, show

if TYPE_CHECKING:
    from gen_unlearn.commands.unet_checkpoint import UNetCheckpoint
    from gen_unlearn.commands.unlearn_checkpoint import CheckpointRecord
    from gen_unlearn.commands.unlearn_plan import Origin, UnlearningPlan
    from gen_unlearn.manifest import UnlearningRecord
    from gen_unlearn.receipts import DeletionReceipt
    from gen_unlearn.runs import RunFolder


@app.command()
@reports_errors
@in_one_process
def unlearn(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder, or one of a diffusers pipeline or UNet2DModel."),
    ],
    method: Annotated[str, typer.Option("--method", help="Such as fine-tune; an unknown name shows all.")],
    out: Annotated[Path, typer.Option("--out", help="New folder, of the same kind.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Of a diffusers folder: the images that it was trained on."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=B", help="Change a setting of the method. Repeatable."),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or index of a class. Repeatable.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="Image file, or a folder of them. Repeatable.")
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Sample id. Repeatable.")] = None,
    lists: Annotated[
        list[Path] | None, typer.Option("--list", help="Text or CSV file of ids or image files. Repeatable.")
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Random share of all training images.")] = None,
    fraction_seed: Annotated[int, typer.Option("--fraction-seed", help="Seed of the random share.")] = 0,
    reason: Annotated[str, typer.Option(help="Kept in the receipt.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the method.")] = 0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Apply an approximate unlearning method to a trained run or a diffusers folder, and write a new one."""
    from gen_unlearn.commands.requests import ForgetRequest
    from gen_unlearn.commands.unlearn_plan import plan_unlearning
    from gen_unlearn.runs import RunFolder

    request = ForgetRequest(
        classes=classes or (),
        images=images or (),
        ids=ids or (),
        lists=lists or (),
        fraction=fraction,
        seed=fraction_seed,
        reason=reason,
    )
    asked = method, settings or [], request, out, seed
    origin = _opened(model, data)
    if isinstance(origin, RunFolder):
        _finish(plan_unlearning(origin, *asked), _run, dry_run, as_json)
    else:
        _finish(plan_unlearning(origin, *asked), _checkpoint, dry_run, as_json)


def _opened(model: Path, data: str | None) -> RunFolder | UNetCheckpoint:
    """Open a run, or a checkpoint with the source of its images."""
    from gen_unlearn.commands.unet_checkpoint import UNetCheckpoint
    from gen_unlearn.run_paths import RunPaths

    if RunPaths(model).manifest_path.exists():
        if data is not None:
            raise ValueError(f"{model} is a run, which knows its images, got --data {data}; leave it out")
        return open_run(model)
    if data is not None:
        return UNetCheckpoint.open(model, data)
    if UNetCheckpoint.is_at(model):
        raise ValueError(
            f"expected the images that the checkpoint {model} was trained on, got none; name a folder or "
            "another source with --data: what is not to be forgotten of them is retained"
        )
    raise ValueError(
        f"{model} holds no run (no {RunPaths(model).manifest_path.name}), and neither model_index.json nor "
        "config.json of diffusers; check the path"
    )


def _finish(
    plan: UnlearningPlan[Origin],
    carry_out: Callable[
        [UnlearningPlan[Origin]], tuple[UnlearningRecord | CheckpointRecord, DeletionReceipt, list[str]]
    ],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Carry a plan out, or only show it."""
    from dataclasses import asdict

    if dry_run:
        facts = plan.facts()
        show("\n".join(f"{name:<13} {value}" for name, value in facts.items()), facts, as_json)
        return
    done, receipt, last = carry_out(plan)
    lines = [
        f"method      {done.method}, seed {done.seed}",
        f"cost        {done.forward_samples:,} samples forward, {done.backward_samples:,} backward",
        str(receipt),
        f"{plan.kind:<11} {plan.out}",
        *last,
    ]
    facts = asdict(receipt) | {plan.kind: str(plan.out), "unlearned": asdict(done)}
    show("\n".join(lines), facts, as_json)


def _run(plan: UnlearningPlan[RunFolder]) -> tuple[UnlearningRecord, DeletionReceipt, list[str]]:
    """Write a new run."""
    from gen_unlearn.commands.unlearn import carry_out

    new, receipt = carry_out(plan)
    done = new.manifest.unlearned
    assert done is not None
    oracle = f"gen-unlearn train --config {new.recipe_path} --without {plan.out} --out ORACLE"
    return done, receipt, [f"oracle      {oracle}"]


def _checkpoint(
    plan: UnlearningPlan[UNetCheckpoint],
) -> tuple[CheckpointRecord, DeletionReceipt, list[str]]:
    """Write a new checkpoint."""
    from gen_unlearn.commands.unlearn_checkpoint import carry_out_on_checkpoint

    return *carry_out_on_checkpoint(plan), []
