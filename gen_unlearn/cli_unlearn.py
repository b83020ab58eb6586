"""The verb that unlearns approximately."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen_unlearn.cli_base import DryRunOption, JsonOption, RunArgument, app, open_run, reports_errors, show


@app.command()
@reports_errors
def unlearn(
    run: RunArgument,
    method: Annotated[str, typer.Option("--method", help="Such as fine-tune; an unknown name shows all.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new run.")],
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
    """Apply an approximate unlearning method to a trained run, and write a new run."""
    from dataclasses import asdict

    from gen_unlearn.commands.requests import ForgetRequest
    from gen_unlearn.commands.unlearn import carry_out
    from gen_unlearn.commands.unlearn_plan import plan_unlearning

    request = ForgetRequest(
        classes=classes or (),
        images=images or (),
        ids=ids or (),
        lists=lists or (),
        fraction=fraction,
        seed=fraction_seed,
        reason=reason,
    )
    plan = plan_unlearning(open_run(run), method, settings or [], request, out, seed)
    if dry_run:
        facts = plan.facts()
        show("\n".join(f"{name:<13} {value}" for name, value in facts.items()), facts, as_json)
        return
    new, receipt = carry_out(plan)
    done = new.manifest.unlearned
    assert done is not None
    lines = [
        f"method      {done.method}, seed {done.seed}",
        f"cost        {done.forward_samples:,} samples forward, {done.backward_samples:,} backward",
        str(receipt),
        f"run         {out}",
        f"oracle      gen-unlearn train --config {new.recipe_path} --without {out} --out ORACLE",
    ]
    show("\n".join(lines), asdict(receipt) | {"run": str(out), "unlearned": asdict(done)}, as_json)
