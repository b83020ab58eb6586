"""Where a benchmark of generators is computed, and where what was seen of its models lies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.generation.generators import pipeline_of
from gen_unlearn.benchmark.generation.observation import Observation, observe
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.row_work import environment_of
from gen_unlearn.benchmark.rows import RowFolder
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.repro import digest_state


@dataclass(frozen=True)
class Seen:
    """What was seen of one model.

    Attributes:
        observation: samples and scores.
        cost: of making the model.
        digest: SHA-256 of its weights; of a design that of its network alone.
        level: what deletions from it promise; `None` of a plain generator.
    """

    observation: Observation
    cost: Cost
    digest: str
    level: str | None = None


@dataclass(frozen=True, eq=False)
class GeneratorBench:
    """Where a benchmark is computed, and where its files lie.

    Attributes:
        recipe: the benchmark.
        out: its folder.
        accelerator: device and precision.
    """

    recipe: GenerationRecipe
    out: Path
    accelerator: Accelerator

    @property
    def models(self) -> Path:
        """Folder of originals and retrained generators."""
        return self.out / "models"

    @property
    def rows(self) -> RowFolder:
        """The rows that are there."""
        return RowFolder(self.out / "rows")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions and hardware."""
        return environment_of(self.accelerator)

    def has_seen(self, key: str) -> bool:
        """Say whether a model was observed."""
        return self._file(key).is_file()

    def begin(self, key: str) -> None:
        """Forget the failure of an earlier run: what failed is tried again."""
        self._error_file(key).unlink(missing_ok=True)

    def see_model(self, key: str, model: DenoisingModel, cost: Cost, prepared: PreparedGenerators) -> None:
        """Observe a plain generator."""
        model = model.to(self.accelerator.device).eval()
        self.see(key, pipeline_of(model, self.recipe.generator), cost, prepared)

    def see(
        self,
        key: str,
        pipeline: GeneratorPipeline,
        cost: Cost,
        prepared: PreparedGenerators,
        level: str | None = None,
    ) -> None:
        """Observe a generator, and keep what was seen; the file of samples comes last."""
        pipeline.to(self.accelerator.device)
        observation = observe(pipeline, prepared.measured)
        digest = digest_state(pipeline.unet.state_dict())
        facts = {"cost": asdict(cost), "digest": digest, "level": level}
        self._file(key).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._facts_file(key), json.dumps(facts) + "\n")
        observation.save(self._file(key))

    def fail(self, key: str, reason: str) -> None:
        """Keep why there is no such model."""
        self._error_file(key).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._error_file(key), json.dumps(reason) + "\n")

    def error(self, key: str) -> str | None:
        """Return why there is no such model, `None` if there is one."""
        file = self._error_file(key)
        return str(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def seen(self, key: str) -> Seen:
        """Return what was seen of a model.

        Raises:
            ValueError: it was not observed.
        """
        observation = Observation.from_file(self._file(key))
        facts = json.loads(self._facts_file(key).read_text(encoding="utf-8"))
        return Seen(observation, Cost(**facts["cost"]), facts["digest"], facts["level"])

    def _file(self, key: str) -> Path:
        return self.out / "observations" / f"{key}.safetensors"

    def _facts_file(self, key: str) -> Path:
        return self.out / "observations" / f"{key}.json"

    def _error_file(self, key: str) -> Path:
        return self.out / "observations" / f"{key}.error.json"
