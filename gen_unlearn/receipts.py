"""Deletion receipts: what was removed, what is promised, and how to check it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from gen_unlearn.core import CoreMode
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys, ids_from_hex
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.words import counted

Level = Literal["bit-exact", "distributional", "influence-free", "exemplar-only", "approximate"]

PROMISES: dict[Level, str] = {
    "bit-exact": "the artefact's bytes equal those of a fresh fit on the retained data",
    "distributional": "same law as retraining on the retained data, not the same bytes",
    "influence-free": "no served component ever saw the deleted images",
    "exemplar-only": (
        "the images are gone from the exemplars; the network weights were trained with them, "
        "and what of them is left in the weights is measured, not excluded"
    ),
    "approximate": "the weights were moved towards those of a model retrained without the images",
}


_ELSEWHERE = (
    "what weights from elsewhere saw, where a training starts from such (then they are listed as left)"
)

NOT_COVERED: dict[Level, str] = {
    "bit-exact": (
        f"{_ELSEWHERE}; nothing else inside the artefact is left out: verifying with replay fits it again "
        "and compares"
    ),
    "distributional": (
        f"{_ELSEWHERE}; equal bytes: the promise rests on how the artefact is built, not on comparing digests"
    ),
    "influence-free": (
        f"{_ELSEWHERE}; equality with a model retrained without the images, in bytes or in quality"
    ),
    "exemplar-only": (
        "the network weights, which this deletion did not change: they may still carry traces of the images"
    ),
    "approximate": "a guarantee: traces of the images may be left in the weights, and can only be estimated",
}
"""What each level does not promise, for a reader who knows nothing of the method."""

OUTSIDE = (
    "No level reaches beyond the artefact named in the receipt: the source files, backups, earlier copies of "
    "the model, and images that were generated or handed on before the deletion have to be dealt with on "
    "their own."
)

CORE_PROMISES: dict[CoreMode, tuple[str, Level]] = {
    "joint": ("exemplars of a semi-parametric generator", "exemplar-only"),
    "public": ("semi-parametric generator with a public core", "bit-exact"),
}
"""Per core of a semi-parametric generator: what a deletion changes, and what it promises."""

CLASSIFIER_PROMISES: dict[CoreMode, tuple[str, Level]] = {
    "joint": ("exemplars of a semi-parametric classifier", "exemplar-only"),
    "public": ("semi-parametric classifier with a public core", "bit-exact"),
}
"""The same of a semi-parametric classifier."""


def promise_of(task: Literal["generation", "classification"], core: CoreMode) -> tuple[str, Level]:
    """Return what a deletion from a semi-parametric model changes, and the level of its promise."""
    return (CORE_PROMISES if task == "generation" else CLASSIFIER_PROMISES)[core]


class Artefact(Protocol):
    """Anything that a receipt can be checked against."""

    @property
    def ids(self) -> np.ndarray:
        """Ids held now, uint8 ``(n, 16)``."""

    @property
    def digest(self) -> str:
        """SHA-256 of the state."""

    def verify(self) -> None:
        """Check that what is held is what its ids stand for; raise a ValueError otherwise."""


class Deletable(Artefact, Protocol):
    """An artefact from which images can be deleted, exactly and without an optimiser."""

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete every image of `forget`; an id that is not held is an error and changes nothing."""


@dataclass(frozen=True)
class DeletionReceipt:
    """The record of one deletion.

    Attributes:
        artefact: what the images were deleted from.
        level: the promise, one of DESIGN section 3; `PROMISES` spells it out.
        reason: why, in the words of the request.
        ids: hexadecimal sample ids that were deleted, sorted; none in a sealed receipt, nor in one that
            completes deletions whose ids are forgotten.
        forget_digest: SHA-256 of the ids; sealed, of their tombstones.
        removed: images removed.
        removed_per_class: the same by class name; classes without a removed image are left out.
        remaining: images left.
        digest_before: state of the artefact before; keyed in a sealed receipt.
        digest_after: state of the artefact after; keyed in a sealed receipt.
        seconds: duration of the deletion inside the process.
        created: time of the deletion, ISO 8601, UTC.
        versions: software that did it.
        purged: what was removed from the run besides, by path.
        left: what may still carry traces of the images, and why.
        sealed_with: fingerprint of the run's key; empty in a receipt that is not sealed.
    """

    artefact: str
    level: Level
    reason: str
    ids: tuple[str, ...]
    forget_digest: str
    removed: int
    removed_per_class: dict[str, int]
    remaining: int
    digest_before: str
    digest_after: str
    seconds: float
    created: str
    versions: dict[str, str]
    purged: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    sealed_with: str = ""

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"expected a level out of {', '.join(get_args(Level))}, got {self.level!r}")

    @property
    def forget_set(self) -> ForgetSet:
        """The deleted ids as a forget set.

        Raises:
            ValueError: a sealed receipt, which holds no ids.
        """
        if self.sealed_with:
            raise ValueError("a sealed receipt holds no ids; the run's ledger recognises the images")
        return ForgetSet(ids_from_hex(self.ids), self.reason)

    def sealed(self, key: RunKey) -> DeletionReceipt:
        """Return the receipt as it is kept: nobody without the key can recognise an image by it.

        Without ids, of images that were deleted before, the digest is that of their tombstones already.
        """
        return replace(
            self,
            ids=(),
            forget_digest=Tombstones.of(self.forget_set, key).digest if self.ids else self.forget_digest,
            digest_before=key.seal("receipt", self.created, self.digest_before),
            digest_after=key.seal("receipt", self.created, self.digest_after),
            sealed_with=key.fingerprint,
        )

    def verify(self, artefact: Artefact) -> None:
        """Check that `artefact` is in the state that this receipt describes.

        Raises:
            ValueError: a deleted id is held, the state differs, or the receipt contradicts itself; or it is
                sealed, then `gen-unlearn verify` checks it.
        """
        forget = self.forget_set
        if forget.digest != self.forget_digest:
            raise ValueError("the receipt was altered: its ids do not have the digest that it states")
        if self.removed != sum(self.removed_per_class.values()) or self.removed < len(forget):
            raise ValueError("the receipt was altered: its numbers of removed images contradict each other")
        artefact.verify()
        still_held = int(np.isin(id_keys(artefact.ids), id_keys(forget.ids)).sum())
        if still_held:
            raise ValueError(
                f"{still_held} of {self.removed} deleted images are still in the {self.artefact}"
            )
        if artefact.digest == self.digest_after and len(artefact.ids) != self.remaining:
            raise ValueError(
                f"the receipt was altered: it states {self.remaining} remaining images, "
                f"the state has {len(artefact.ids)}"
            )
        if artefact.digest != self.digest_after:
            raise ValueError(
                f"the {self.artefact} has digest {artefact.digest[:12]}..., the receipt states "
                f"{self.digest_after[:12]}...; it was changed after this deletion"
            )

    def __str__(self) -> str:
        per_class = ", ".join(f"{name}: {count}" for name, count in self.removed_per_class.items())
        done = "unlearned" if self.level == "approximate" else "deleted"
        return "\n".join(
            [
                f"{done:<11} {counted(self.removed, 'image')} ({per_class}); {self.remaining:,} remain",
                f"from        {self.artefact}",
                f"reason      {self.reason}",
                f"level       {self.level}: {PROMISES[self.level]}",
                f"not covered {NOT_COVERED[self.level]}",
                *(f"left        {left}" for left in self.left),
                *(f"purged      {path}" for path in self.purged),
                f"forget set  {self.forget_digest[:16]}...",
                f"state       {self.digest_before[:16]}... -> {self.digest_after[:16]}...",
                f"took        {1000 * self.seconds:.2f} ms on {self.created}",
            ]
        )

    def to_json(self) -> str:
        """Return the receipt as indented JSON text, with the promise and what it leaves out spelled out."""
        words = {
            "promise": PROMISES[self.level],
            "not_covered": NOT_COVERED[self.level],
            "outside": OUTSIDE,
        }
        return json.dumps(asdict(self) | words, indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> DeletionReceipt:
        """Read a receipt that was written as JSON; a file of another kind is an error that names it."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            for words in ("promise", "not_covered", "outside"):
                del fields[words]
            tuples = {name: tuple(fields[name]) for name in ("ids", "purged", "left")}
            return cls(**{**fields, **tuples})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a deletion receipt: {error}") from error
