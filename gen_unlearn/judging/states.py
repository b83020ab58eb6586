"""The samples that a run is judged by: of each state that can still be sampled, and of its oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.evidence import Deletion, Evidence
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SamplePlan, SampleSet, generate_samples

STATES = ("before", "after", "oracle", "random")
"""What the measures of a run end in."""


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
    """Return the set of samples that a run is judged by."""
    config = run.config.evaluation
    return SamplePlan(config.images_per_class, config.null_images, 0, run.config.sampling)


def sample_states(run: RunFolder, oracles: Sequence[RunFolder]) -> SampledStates:
    """Sample every state that can still be sampled, unless that was done before."""
    plan = sample_plan(run)
    if not run.receipts():
        return SampledStates({"before": _sample(run, plan, run.samples_path, "sample before")})
    files: dict[str, Path] = {}
    notes: list[str] = []
    before = plan.path(run.samples_path, run.undeleted_state_digest())
    if before.exists():
        files["before"] = before
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


def _sample(generator: RunFolder, plan: SamplePlan, folder: Path, description: str) -> Path:
    """Sample the present state of a run, unless that was done before; return the file."""
    path = plan.path(folder, generator.state_digest())
    if not path.exists():
        pipeline = generator.load_pipeline()
        generate_samples(pipeline, served_classes(pipeline), plan, description).save(path)
    return path
