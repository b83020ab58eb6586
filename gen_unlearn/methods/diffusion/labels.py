"""Labels of a denoiser: which classes are forgotten, and what stands for them."""

from __future__ import annotations

import numpy as np

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.diffusion.denoising import DenoisingModel


def require_labels(model: DenoisingModel, method: str) -> None:
    """Check that a network knows classes.

    Raises:
        ValueError: it does not.
    """
    if model.network.config.num_class_embeds is None:
        raise ValueError(
            f"{method} needs a network with an embedding of classes, got an unconditional one; "
            "choose a method without labels, such as siss or erasediff"
        )


def forgotten_classes(forget: IndexedImages) -> list[int]:
    """Return the classes of the images to forget, ascending."""
    return [int(label) for label in np.unique(forget.labels)]


def pseudo_labels(classes: int, forget: IndexedImages, retain: IndexedImages) -> np.ndarray:
    """Return the label that replaces each class: the next one, modulo their number, that may be shown.

    No class of an image to forget is chosen. If all classes have one, as single images of many classes may,
    then no class without retained images is, nor the class itself.

    Args:
        classes: number of classes.
        forget: the images to forget.
        retain: retained images.

    Returns:
        int64 ``(classes,)``.

    Raises:
        ValueError: no class is left.
    """
    allowed = set(range(classes)) - set(forgotten_classes(forget))
    if not allowed:
        allowed = {int(label) for label in np.unique(retain.labels)}
    found = np.full(classes, -1, dtype=np.int64)
    for own in range(classes):
        others = [(own + step) % classes for step in range(1, classes)]
        found[own] = next((other for other in others if other in allowed), -1)
    if (found[forgotten_classes(forget)] < 0).any():
        raise ValueError("expected a class to show instead of the forgotten ones, got none; forget fewer")
    return found
