"""The states of a model that a page compares: their order, their colours, and how measures name them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_VARIABLES = {"before": "before", "after": "after", "oracle": "oracle", "random removal": "random"}
"""Known states, in the order in which they are shown -> variable of the style sheet that colours them."""

_FURTHER = ("extra-1", "extra-2", "extra-3")
"""Variables that colour further states, such as folders of images, in turn."""

_SUFFIXES = {"random removal": "random"}


def measure_suffix(name: str) -> str:
    """Return how the names of measures end for a state or attack: ``random`` or ``likelihood_ratio``."""
    return _SUFFIXES.get(name, re.sub(r"\W+", "_", name.lower()).strip("_"))


@dataclass(frozen=True)
class States:
    """The states that one page may show, in the order in which they are shown."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> States:
        """Order the known states, whether named or not, before the others in the order of `names`."""
        return cls(tuple(dict.fromkeys([*_VARIABLES, *names])))

    def variable(self, name: str) -> str:
        """Return the variable of the style sheet that colours a state, without its dashes.

        Raises:
            ValueError: the state is not one of the page.
        """
        if name not in self.names:
            raise ValueError(f"{name!r} is no state of this page; it has {', '.join(self.names)}")
        further = [known for known in self.names if known not in _VARIABLES]
        return _VARIABLES.get(name) or _FURTHER[further.index(name) % len(_FURTHER)]
