"""In which order the images to forget and the retained ones are gone through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.loop import LoopSettings, Loss, Pass

Schedule = Literal["forget_then_retain", "mixed", "zipped"]
"""All images to forget and then all retained ones in every epoch; or batches that mix both; or a batch of
each in every step."""


def scheduled(
    settings: LoopSettings, schedule: Schedule, forget: IndexedImages, retain: IndexedImages, loss: Loss
) -> Sequence[Pass]:
    """Return the passes of an epoch over both parts, with one loss that tells them apart by their ids.

    Args:
        settings: batch sizes and modes; mixed batches have the size and the mode of retained ones.
        schedule: the order.
        forget: the images to forget.
        retain: retained images.
        loss: of a batch with images of either part or of both.
    """
    if schedule == "mixed":
        return [[settings.retain_term(join(forget, retain), loss)]]
    terms = [settings.forget_term(forget, loss), settings.retain_term(retain, loss)]
    return [terms] if schedule == "zipped" else [[term] for term in terms]
