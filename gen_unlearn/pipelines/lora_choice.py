"""Choose the adapters that images are generated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from diffusers import ImagePipelineOutput

from gen_unlearn.adapters.encoding import block_codes
from gen_unlearn.adapters.lora_config import Composition
from gen_unlearn.adapters.routing import route
from gen_unlearn.adapters.serving import NO_ADAPTER, ServedAdapters
from gen_unlearn.exemplar_keys import BLOCK
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.pipelines.lora_composition import ChosenAdapters
from gen_unlearn.repro import derive_seed


@dataclass
class AdapterSamples(ImagePipelineOutput):
    """Generated images, and who generated them.

    Attributes:
        adapters: numbers of the adapters of each image, int64 ``(images, k)``; -1 where it has fewer.
        masked_shares: share of the members of each image's class, or of all, that are with adapters which
            wait to be rebuilt, float64 ``(images,)``. Above 0, the image was drawn without them. Like the
            adapters, it tells where images were deleted: it is not for publication.
    """

    adapters: np.ndarray
    masked_shares: np.ndarray


@dataclass(frozen=True, eq=False)
class AdapterRequest:
    """Which adapters are asked for.

    Attributes:
        labels: class of each image; `None` for any.
        query_images: one for each image, uint8 ``(images, height, width, channels)``: the adapters with the
            nearest keys that answer for the image's class.
        adapters: number of the adapter of each image, or of several, ``(images, k)``.
        composition: ``"route"`` takes one adapter for each image.
        adapters_per_image: of the other compositions.
        adapter_seed: of the draws: of each image, or one, of which each image gets its own.

    Raises:
        ValueError: a value that cannot be asked for.
    """

    labels: Sequence[int | None]
    query_images: np.ndarray | None
    adapters: Sequence[int] | np.ndarray | None
    composition: Composition
    adapters_per_image: int
    adapter_seed: int | Sequence[int]

    def __post_init__(self) -> None:
        images = len(self.labels)
        if self.composition not in get_args(Composition):
            raise ValueError(
                f"expected composition {' or '.join(get_args(Composition))}, got {self.composition!r}"
            )
        if self.adapters_per_image < 1:
            raise ValueError(f"expected at least 1 adapter per image, got {self.adapters_per_image}")
        if self.query_images is not None and self.adapters is not None:
            raise ValueError("expected query_images or adapters, got both; leave one out")
        if self.query_images is not None and len(self.query_images) != images:
            raise ValueError(
                f"expected {images} query images, one for each image, got {len(self.query_images)}"
            )
        if isinstance(self.adapter_seed, Sequence) and len(self.adapter_seed) != images:
            raise ValueError(
                f"expected one adapter seed or {images}, one for each image, got {len(self.adapter_seed)}"
            )

    @property
    def count(self) -> int:
        """Adapters for each image."""
        return 1 if self.composition == "route" else self.adapters_per_image

    def choose(self, served: ServedAdapters, router: AdapterBackbone | None) -> ChosenAdapters:
        """Choose adapters among those that answer.

        Args:
            served: the adapters.
            router: a public encoder with their keys, for query images.

        Raises:
            ValueError: none answers for a class, or one that was asked for does not.
        """
        numbers = self._given(served) if self.adapters is not None else self._found(served, router)
        if self.composition != "mixture":
            return ChosenAdapters.evenly(numbers)
        shares = np.zeros(numbers.shape)
        for row, label in enumerate(self.labels):
            counts = served.members.sum(axis=1) if label is None else served.members[:, label]
            shares[row] = counts[numbers[row].clip(min=0)]
        return ChosenAdapters.by_share(numbers, shares)

    def _given(self, served: ServedAdapters) -> np.ndarray:
        """Return the adapters that were asked for by number, int64 ``(images, k)``."""
        images = len(self.labels)
        asked = np.asarray(self.adapters)
        numbers = asked.reshape(images, -1) if asked.ndim and len(asked) == images and images else asked
        one = self.composition != "route" or numbers.shape[1:] == (1,)
        if numbers.ndim != 2 or numbers.shape[1] < 1 or not one or numbers.dtype.kind not in "iu":
            raise ValueError(
                f"expected the number of an adapter for each of {images} images, or of several where the "
                f"composition is not route, got {asked.dtype} {asked.shape}"
            )
        silent = sorted(set(numbers.ravel().tolist()) - set(served.states))
        if silent:
            raise ValueError(
                f"expected adapters that answer, got {silent}, which have no members, wait to be rebuilt or "
                f"do not exist; rebuild those that wait, or ask for one of {len(served.states)} others"
            )
        return numbers.astype(np.int64)

    def _found(self, served: ServedAdapters, router: AdapterBackbone | None) -> np.ndarray:
        """Draw adapters, or take those nearest to the query images, int64 ``(images, count)``."""
        order = None if self.query_images is None else _nearest_keys(self.query_images, router)
        seeds = (
            [derive_seed(self.adapter_seed, row) for row in range(len(self.labels))]
            if isinstance(self.adapter_seed, int)
            else list(self.adapter_seed)
        )
        numbers = np.full((len(self.labels), self.count), NO_ADAPTER, dtype=np.int64)
        for label in set(self.labels):
            rows = [row for row, other in enumerate(self.labels) if other == label]
            if order is None:
                numbers[rows] = served.choose(label, [seeds[row] for row in rows], self.count)
            else:
                numbers[rows] = served.nearest(label, order[rows], self.count)
        return numbers


def checked_labels(
    denoiser: FrozenDenoiser, labels: Sequence[int | None], guidance_scale: float
) -> list[int | None]:
    """Return class labels as integers, `None` for none.

    Raises:
        ValueError: a class is unknown, or a denoiser without a null class is asked for what needs one.
    """
    checked = [None if label is None else int(label) for label in labels]
    known = {label for label in checked if label is not None}
    unknown = sorted(label for label in known if not 0 <= label < denoiser.classes)
    if unknown:
        raise ValueError(f"expected class labels from 0 to {denoiser.classes - 1}, got {unknown}")
    if denoiser.has_null_class:
        return checked
    if known and guidance_scale != 1:
        raise ValueError(
            "expected guidance_scale 1 for a denoiser without a null class, which has nothing to guide away "
            f"from, got {guidance_scale}; set guidance_scale (sampling.guidance_scale in a recipe) to 1"
        )
    if None in checked and denoiser.network.config.get("num_class_embeds") is not None:
        raise ValueError(
            "expected a class for each image, as the denoiser has no null class, got None; ask for classes"
        )
    return checked


def _nearest_keys(images: np.ndarray, router: AdapterBackbone | None) -> np.ndarray:
    """Return all adapters in the order of their keys' distances to images, int16 ``(images, adapters)``."""
    if router is None:
        raise ValueError(
            "expected a pipeline with a router for query images, got one without; load the router with it"
        )
    blocks = [block_codes(router, images[at : at + BLOCK]) for at in range(0, len(images), BLOCK)]
    keys = router.public_keys()
    return route(np.concatenate(blocks), keys, len(keys))
