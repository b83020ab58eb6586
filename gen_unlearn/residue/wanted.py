"""Everything that is searched for, in the form in which it is found fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gen_unlearn.report.images import shrink_for_page
from gen_unlearn.repro import ID_BYTES, image_ids
from gen_unlearn.residue.codes import CodeMatcher
from gen_unlearn.residue.deleted import DeletedImages, KnownIds, Recognise, is_flat, textured
from gen_unlearn.residue.lossy import LossyMatcher
from gen_unlearn.residue.patterns import PatternGroup
from gen_unlearn.residue.raw import RawSearch
from gen_unlearn.residue.tiles import TileIndex
from gen_unlearn.residue.tokens import FEWEST_VALUES, TokenMatcher
from gen_unlearn.residue.windows import NARROW

SMALLEST_IMAGE = 16
"""Images of fewer values are found as rows of arrays and as whole pictures only: chance repeats them."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What to look for.

    Attributes:
        image_shape: ``(height, width, channels)`` of the deleted images.
        picture_shapes: shapes of other sizes in which pictures of them may be kept.
        known: recognises their ids, and the ids that pictures of them would have.
        raw: finds them in bytes.
        tiles: find them in larger pictures, as they are and as small as pages show them.
        lossy: finds them in lossy pictures; `None` if no pixels are known.
        tokens: finds their tokens; `None` if no tokens are known.
        codes: finds their keys; `None` if none are known.
    """

    image_shape: tuple[int, int, int]
    picture_shapes: tuple[tuple[int, int, int], ...]
    known: KnownIds
    raw: RawSearch
    tiles: tuple[TileIndex, ...]
    lossy: LossyMatcher | None
    tokens: TokenMatcher | None
    codes: CodeMatcher | None

    @classmethod
    def of(cls, deleted: DeletedImages, recognise: Recognise, image_shape: tuple[int, int, int]) -> Wanted:
        """Prepare the search for deleted images of one shape.

        Raises:
            ValueError: the images have another shape, or not 1 or 3 channels.
        """
        if len(image_shape) != 3 or image_shape[2] not in (1, 3) or deleted.images.shape[1:] != image_shape:
            raise ValueError(
                f"expected deleted images of shape {image_shape} with 1 or 3 channels, got "
                f"{deleted.images.shape[1:]}; pass the shape of the run's images"
            )
        looks = [textured(images) for images in deleted.looks]
        patterns = [_patterns(images) if _tell(images) else None for images in looks]
        tokens = None if deleted.tokens is None else TokenMatcher(deleted.tokens)
        codes = None if deleted.codes is None or not len(deleted.codes) else deleted.codes
        known = KnownIds(np.concatenate([deleted.ids, *map(image_ids, looks[1:])]), recognise)
        return cls(
            image_shape=image_shape,
            picture_shapes=tuple(images.shape[1:] for images in looks[1:]),
            known=known,
            raw=RawSearch(deleted, known, patterns),
            tiles=tuple(tile for look in zip(looks, patterns, strict=True) for tile in _tile_indexes(*look)),
            lossy=LossyMatcher(looks[0]) if len(looks[0]) else None,
            tokens=tokens if tokens is not None and tokens.values >= FEWEST_VALUES else None,
            codes=None if codes is None or not _long(codes) else CodeMatcher.of(deleted),
        )

    @property
    def row_sizes(self) -> set[int]:
        """How many values the rows of an array have that holds ids, pixels, tokens or codes."""
        tokens = set() if self.tokens is None else {self.tokens.values}
        codes = set() if self.codes is None else {self.codes.values}
        pixels = {math.prod(shape) for shape in (self.image_shape, *self.picture_shapes)}
        return {ID_BYTES} | pixels | tokens | codes

    def label(self, noun: str, name: str, number: int) -> str:
        """Name a part of a file for a report; by its number if its name is itself residue."""
        written = np.frombuffer(name.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        return f"{noun} {number}" if self.raw.search(written) else f"{noun} '{name}'"


def _long(codes: np.ndarray) -> bool:
    return codes.shape[1] >= FEWEST_VALUES


def _tell(images: np.ndarray) -> bool:
    """Whether images have enough values to be searched for in bytes."""
    return len(images) > 0 and math.prod(images.shape[1:]) >= SMALLEST_IMAGE


def _patterns(images: np.ndarray) -> PatternGroup:
    return PatternGroup.of(images.reshape(len(images), -1), line=images.shape[2] * images.shape[3])


def _tile_indexes(images: np.ndarray, patterns: PatternGroup | None) -> Iterator[TileIndex]:
    """Index images, and once more as the report shows them if it shrinks them."""
    height, width, channels = images.shape[1:]
    if patterns is None or width * channels < NARROW:
        return
    yield TileIndex(patterns, (height, width, channels))
    shown = shrink_for_page(images)
    if shown.shape != images.shape and not is_flat(shown).all():
        yield TileIndex(_patterns(shown[~is_flat(shown)]), (*shown.shape[1:3], channels))
