"""Delete images from a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gen_unlearn.forget import Catalogue, ForgetSet
from gen_unlearn.pipelines.semiparametric import JOINT_CORE_ARTEFACT
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.runs import RunFolder


@dataclass(frozen=True)
class ForgetRequest:
    """What a person asks to be forgotten; everything named is deleted together.

    Attributes:
        classes: names or indices of classes.
        images: image files, or folders of them.
        ids: hexadecimal sample ids.
        lists: text or CSV files of ids or image files.
        fraction: random share of all images, in (0, 1].
        seed: seed of that choice.
        reason: kept in the receipt; made up from the rest when empty.
    """

    classes: Sequence[str] = ()
    images: Sequence[Path] = ()
    ids: Sequence[str] = ()
    lists: Sequence[Path] = ()
    fraction: float | None = None
    seed: int = 0
    reason: str = ""

    def resolve(self, catalogue: Catalogue) -> ForgetSet:
        """Find what is asked for among the images of `catalogue`.

        Raises:
            ValueError: nothing is asked for, or something that is not there.
        """
        parts: list[ForgetSet] = []
        if self.classes:
            parts.append(ForgetSet.from_classes(catalogue, self.classes, f"class {', '.join(self.classes)}"))
        if self.images:
            parts.append(ForgetSet.from_images(catalogue, self.images, f"{len(self.images)} image files"))
        if self.ids:
            parts.append(ForgetSet.from_ids(catalogue, self.ids, f"{len(self.ids)} ids"))
        parts += [ForgetSet.from_file(catalogue, path, f"list {path.name}") for path in self.lists]
        if self.fraction is not None:
            chosen = f"random share {self.fraction:g}, seed {self.seed}"
            parts.append(ForgetSet.from_fraction(catalogue, self.fraction, self.seed, reason=chosen))
        if not parts:
            raise ValueError("nothing is asked for; name a class, an image, an id, a list or a fraction")
        union = parts[0]
        for part in parts[1:]:
            union = union.union(part)
        reason = self.reason or " and ".join(part.reason for part in parts)
        return ForgetSet(union.ids, reason)


def forget(run: RunFolder, request: ForgetRequest) -> tuple[DeletionReceipt, Path]:
    """Delete from the exemplars of a run, on disk, and file a receipt; return it with its file.

    The network is not loaded: only the exemplar store changes.
    """
    store = run.load_exemplars()
    receipt = store.delete(request.resolve(store))
    receipt = replace(receipt, artefact=JOINT_CORE_ARTEFACT, level="exemplar-only")
    return receipt, run.commit_deletion(store, receipt)


def preview(run: RunFolder, request: ForgetRequest) -> dict[str, int]:
    """Count by class name what `forget` would delete; nothing changes."""
    store = run.load_exemplars()
    leaving = store.labels[request.resolve(store).mask(store.ids)]
    return {
        name: int((leaving == label).sum())
        for label, name in enumerate(store.class_names)
        if label in leaving
    }
