"""The samples that a run is judged by: of each state that can still be sampled, and of its oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.evidence import Deletion, Evidence
from gen_unlearn.pipelines.loading import samples_without_class, served_classes
from gen_unlearn.processes import from_main, process_state
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SamplePlan, SampleSet, generate_samples
from gen_unlearn.unlearned_runs import origin_of

STATES = ("before", "after", "oracle", "random")
"""What the measures of a run end in."""

_NO_NULL_CLASS = (
    "No images were sampled without a class, as the network has no null class: nothing was measured on any."
)


@dataclass(frozen=True)
class SampledStates:
    """The files of the samples, all in the folder of the run that is judged.

    Attributes:
        states: state (``before``, ``after``, ``oracle``) -> file; ``oracle`` is the first one.
        oracles: those of each oracle, with the noise of the states.
        oracles_again: those of each oracle with other noise.
        notes: what could not be sampled.
    """

    states: dict[str, Path]
    oracles: tuple[Path, ...] = ()
    oracles_again: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def evidence(self, deletion: Deletion, test: IndexedImages) -> Evidence:
        """Read all samples, and put what was deleted and the held-out images beside them."""
        return Evidence(
            states={state: SampleSet.from_file(path) for state, path in self.states.items()},
            oracles=tuple(SampleSet.from_file(path) for path in self.oracles),
            oracles_again=tuple(SampleSet.from_file(path) for path in self.oracles_again),
            deletion=deletion,
            test=test,
        )


def sample_plan(run: RunFolder) -> SamplePlan:
    """Return the set of samples that a run is judged by.

    It has no images without a class where the network has no null class.
    """
    config = run.config.evaluation
    null_images = config.null_images if _has_null_class(run) else 0
    return SamplePlan(config.images_per_class, null_images, 0, run.config.sampling)


def sample_states(run: RunFolder, oracles: Sequence[RunFolder]) -> SampledStates:
    """Sample every state that can still be sampled, unless that was done before.

    Several processes share the sampling; the main one says what is there, and writes.
    """
    plan = sample_plan(run)
    notes = [] if _has_null_class(run) else [_NO_NULL_CLASS]
    if not run.receipts():
        before = _sample(run, plan, run.samples_path, "sample before")
        return SampledStates({"before": before}, notes=tuple(notes))
    files: dict[str, Path] = {}
    before = plan.path(run.samples_path, run.undeleted_state_digest())
    kept = from_main(before.exists())
    origin = None if kept else origin_of(run)
    if origin is not None:
        files["before"] = _sample(origin, plan, run.samples_path, "sample before")
    elif kept:
        files["before"] = before
    elif run.manifest.unlearned is not None:
        notes.append("The run that this one was made from is not where it was: there is nothing before.")
    else:
        notes.append("No samples were made before the deletion: run evaluate before forget to compare.")
    files["after"] = _sample(run, plan, run.samples_path, "sample after")
    if not oracles:
        notes.append("No oracle was given: what retraining would have done is not known.")
        return SampledStates(files, notes=tuple(notes))
    fresh_noise = replace(plan, null_images=0, first_index=plan.images_per_class)
    drawn, again = [], []
    for number, oracle in enumerate(oracles, 1):
        name = "oracle" if len(oracles) == 1 else f"oracle {number}"
        drawn.append(_sample(oracle, plan, run.samples_path, f"sample {name}"))
        again.append(_sample(oracle, fresh_noise, run.samples_path, f"sample {name} again"))
    files["oracle"] = drawn[0]
    return SampledStates(files, tuple(drawn), tuple(again), tuple(notes))


def _has_null_class(run: RunFolder) -> bool:
    return samples_without_class(run.model_path, len(run.manifest.class_names))


def _sample(generator: RunFolder, plan: SamplePlan, folder: Path, description: str) -> Path:
    """Sample the present state of a run, unless that was done before; return the file.

    Raises:
        ValueError: the run was changed while it was loaded, so that what was loaded has another digest.
    """
    entries = generator.ledger.entries
    path = plan.path(folder, generator.state_digest())
    if from_main(path.exists()):
        return path
    pipeline = generator.load_pipeline()
    if generator.ledger.entries != entries:
        raise ValueError(
            f"expected {generator.path} as it was when the command started, but it was changed since; "
            f"nothing was sampled; run the command again"
        )
    samples = generate_samples(pipeline, served_classes(pipeline), plan, description)
    process = process_state()
    if process.is_main_process:
        samples.save(path)
    process.wait_for_everyone()
    return path
