"""The verb that measures: a run, or folders of images."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen_unlearn.cli_base import (
    DryRunOption,
    JsonOption,
    SetOption,
    app,
    open_run,
    reports_errors,
    resumable,
    show,
)

if TYPE_CHECKING:
    from gen_unlearn.commands.compare import ComparisonRequest
    from gen_unlearn.runs import RunFolder


@app.command()
@reports_errors
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder.")] = None,
    oracle: Annotated[
        list[Path] | None,
        typer.Option("--oracle", help="Run trained without what was deleted from RUN. Repeatable."),
    ] = None,
    oracles: Annotated[
        Path | None,
        typer.Option("--oracles", help="Folder to find RUN's oracles in, and to train missing ones into."),
    ] = None,
    oracle_seeds: Annotated[int, typer.Option(help="Oracles to find or train, one per training seed.")] = 3,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="Folder or table of generated images from anywhere. Repeatable."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Real images to compare with; without it the last --images."),
    ] = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="What --images were trained on: are they copies of it?")
    ] = None,
    deleted: Annotated[
        Path | None, typer.Option("--deleted", help="What was deleted: are --images still copies of it?")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="Extractor: judge (RUN), inception-clean (images), random-conv, ..."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="File or folder of the extractor's weights.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side in pixels to convert --images to first, without RUN.")
    ] = None,
    detect: Annotated[
        float | None,
        typer.Option("--detect", help="Say how many images show a difference of distances this large."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write, without RUN; gen-unlearn-evaluation by default."),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a run and what a deletion changed, or compare folders of images."""
    if detect is not None and not 0 < detect < math.inf:
        raise ValueError(f"expected a difference above 0 to detect, got {detect}")
    if run is None:
        if oracle or oracles:
            raise ValueError("expected RUN with --oracle or --oracles: an oracle belongs to a run")
        request = _folder_request(
            images or [], reference, training, deleted, features, weights, size, detect, overrides or []
        )
        _compare(request, out or Path("gen-unlearn-evaluation"), dry_run, as_json)
        return
    alone: dict[str, object] = {"--reference": reference, "--training": training, "--deleted": deleted}
    alone |= {"--size": size, "--out": out}
    if given := [name for name, value in alone.items() if value is not None]:
        raise ValueError(f"expected {', '.join(given)} without RUN only: a run knows its own data and folder")
    settings = [*(overrides or [])]
    settings += [f"evaluation.features={features}"] if features else []
    settings += [f"evaluation.weights={weights}"] if weights else []
    opened = open_run(run)
    folder = opened.with_overrides(settings)
    if opened.recipe.task == "classification":
        foreign = {"--images": images, "--features": features, "--weights": weights, "--detect": detect}
        if given := [name for name, value in foreign.items() if value]:
            raise ValueError(
                f"expected {', '.join(given)} with a generator only, got the classifier {run}; leave it out"
            )
        _evaluate_classifier(folder, oracle or [], oracles, oracle_seeds, dry_run, as_json)
        return
    _evaluate(folder, oracle or [], oracles, oracle_seeds, images or [], detect, dry_run, as_json)


def _evaluate(
    folder: RunFolder,
    oracle: list[Path],
    oracles: Path | None,
    oracle_seeds: int,
    images: list[Path],
    detect: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from gen_unlearn.commands.evaluate import evaluate as evaluate_run
    from gen_unlearn.commands.oracles import find_oracles, missing_seeds
    from gen_unlearn.commands.oracles import oracle_seeds as seeds_of
    from gen_unlearn.judging.states import sample_plan
    from gen_unlearn.report.table import text_table

    if oracle and oracles is not None:
        raise ValueError("expected --oracle or --oracles, got both")
    seeds = seeds_of(folder, oracle_seeds)
    if dry_run:
        plan = sample_plan(folder)
        missing = [] if oracles is None else missing_seeds(folder, oracles, seeds)
        text = (
            f"would judge {folder.path} by {plan.images_per_class} images per class and "
            f"{plan.null_images} others"
        )
        if missing:
            text = f"would train {len(missing)} oracles into {oracles}, seeds {missing}\n{text}"
        facts = {
            "images_per_class": plan.images_per_class,
            "null_images": plan.null_images,
            "oracles_to_train": len(missing),
        }
        show(text, facts, as_json)
        return
    found = [open_run(path) for path in oracle]
    if oracles is not None:
        with resumable("the same command"):
            found = find_oracles(folder, oracles, seeds)
    card = evaluate_run(folder, found, images, detect)
    show(f"{text_table(card)}\nscorecard  {folder.scorecard_path}", asdict(card), as_json)


def _evaluate_classifier(
    folder: RunFolder,
    oracle: list[Path],
    oracles: Path | None,
    oracle_seeds: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    from gen_unlearn.commands.evaluate_classifier import classification_plan, evaluate_classifier
    from gen_unlearn.commands.oracles import find_oracles, missing_seeds
    from gen_unlearn.commands.oracles import oracle_seeds as seeds_of
    from gen_unlearn.report.table import text_table

    seeds = seeds_of(folder, oracle_seeds)
    if dry_run:
        missing = [] if oracles is None else missing_seeds(folder, oracles, seeds)
        facts = classification_plan(folder) | {"oracles_to_train": len(missing)}
        text = (
            f"would classify {facts['deleted_images']} deleted, at most {facts['retained_images']} retained "
            f"and {facts['held_out_images']} held-out images with {folder.path}"
        )
        if missing:
            text = f"would train {len(missing)} oracles into {oracles}, seeds {missing}\n{text}"
        show(text, facts, as_json)
        return
    found = [open_run(path) for path in oracle]
    if oracles is not None:
        with resumable("the same command"):
            found += find_oracles(folder, oracles, seeds)
    card = evaluate_classifier(folder, found)
    show(f"{text_table(card)}\nscorecard  {folder.scorecard_path}", asdict(card), as_json)


def _folder_request(
    images: list[Path],
    reference: Path | None,
    training: Path | None,
    deleted: Path | None,
    features: str | None,
    weights: Path | None,
    size: int | None,
    detect: float | None,
    overrides: list[str],
) -> ComparisonRequest:
    from gen_unlearn.commands.compare import ComparisonRequest
    from gen_unlearn.config import comparison_config

    if reference is None:
        if len(images) < 2:
            raise ValueError(
                "expected RUN, or --images GENERATED --reference REAL; see: gen-unlearn evaluate --help"
            )
        *images, reference = images
    return ComparisonRequest(
        generated=tuple(images),
        reference=reference,
        training=training,
        deleted=deleted,
        features=features or "inception-clean",
        weights=weights,
        size=size,
        detect=detect,
        config=comparison_config(overrides),
    )


def _compare(request: ComparisonRequest, out: Path, dry_run: bool, as_json: bool) -> None:
    from gen_unlearn.commands.compare import ComparedSets, compare_images
    from gen_unlearn.metrics.extractors.choice import load_extractor
    from gen_unlearn.processes import process_state
    from gen_unlearn.report.table import text_table

    if dry_run:
        sets = ComparedSets.open(request)
        generated = {images.name: len(images) for images in sets.generated}
        by = load_extractor(request.features, request.weights).name
        listed = ", ".join(f"{count} images of {name}" for name, count in generated.items())
        real = len(sets.reference)
        text = f"would compare {listed} as generated with {real} of {request.reference} as real, by {by}"
        facts = {"generated": generated, "reference": real, "features": by, "out": str(out)}
    else:
        card = compare_images(request, out)
        roles = f"{', '.join(map(str, request.generated))} as generated, {request.reference} as real"
        text = f"{roles}\n{text_table(card)}\nscorecard  {out / 'scorecard.json'}"
        facts = asdict(card)
    if process_state().is_main_process:
        show(text, facts, as_json)
