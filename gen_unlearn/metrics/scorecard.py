"""Measured numbers with their error, floor and definition, and the protocol they were taken under."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gen_unlearn.metrics.estimate import Estimate


@dataclass(frozen=True)
class Measure:
    """One number, with what is needed to read it.

    Attributes:
        name: key in the summary, such as ``fd_retain_after``.
        value: the number.
        definition: what it is, in one or two sentences.
        standard_error: its standard error, `None` where there is none to state.
        floor: what the best possible generator would get, or chance level.
        floor_definition: what the floor is.
        details: further numbers by name, such as the ends of a 95 % interval or a p-value.
    """

    name: str
    value: float
    definition: str
    standard_error: float | None = None
    floor: float | None = None
    floor_definition: str = ""
    details: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        estimate: Estimate,
        definition: str,
        floor: float | None = None,
        floor_definition: str = "",
        details: dict[str, float] | None = None,
    ) -> Measure:
        """Make a measure of an estimate with its standard error."""
        return cls(
            name,
            estimate.value,
            definition,
            estimate.standard_error,
            floor,
            floor_definition,
            details or {},
        )


@dataclass(frozen=True)
class Scorecard:
    """Everything that one evaluation found.

    Attributes:
        measures: the numbers.
        protocol: extractor, references, numbers of images, sampler and seeds: what a comparison must share.
        accuracy_per_class: state (``before``, ``after``, ``oracle``) -> class name -> share of the images
            asked for under the class that the judge recognises as it. A refused class is left out. Of a
            classifier (also state ``parametric``): the share of held-out images that is classified right.
        samples: state -> name of the file in the run's ``samples`` folder that holds its images.
        notes: what the reader must know, such as a comparison that could not be made.
        roc: attack (``loss``, ``SecMI``, ``PIA``, ``PIAN``, ``CLiD``, ``likelihood ratio``) -> state
            (``before``, ``after``, ``oracle``, ``random removal``) -> its curve: ``fpr`` and ``tpr``, lists
            of equal length of shares in [0, 1], both ascending.
        confusion: state -> class asked for, or ``null token`` -> class recognised -> number of images. The
            inner tables name every class, in the order of the labels; of more than 100 classes they leave
            out those recognised in no image. A refused class is left out of the classes asked for. Of a
            classifier: state -> class of held-out images -> class predicted, summed over the state's models.

    Raises:
        ValueError: two measures have one name.
    """

    measures: tuple[Measure, ...]
    protocol: dict[str, Any]
    accuracy_per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    roc: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    confusion: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(measure.name for measure in self.measures)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise ValueError(
                f"expected one measure of each name, got more of {', '.join(repeated)}; rename the set of "
                "images that a measure is called after"
            )

    def value(self, name: str) -> float:
        """Return the value of a measure.

        Raises:
            KeyError: there is no such measure.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure.value
        raise KeyError(name)

    def to_json(self) -> str:
        """Return the scorecard as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Scorecard:
        """Read a scorecard that was written as JSON; a damaged file is an error that names it.

        A file without ``roc`` or ``confusion`` is older than they are: they are empty.

        Raises:
            ValueError: the file is not a scorecard.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                measures=tuple(Measure(**measure) for measure in fields["measures"]),
                protocol=fields["protocol"],
                accuracy_per_class=fields["accuracy_per_class"],
                samples=fields["samples"],
                notes=tuple(fields["notes"]),
                roc=fields.get("roc", {}),
                confusion=fields.get("confusion", {}),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a scorecard: {error}") from error
