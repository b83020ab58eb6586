"""The digest of exemplars in memory, of which a change makes a few parts anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gen_unlearn.repro import id_keys
from gen_unlearn.shards import (
    GROUP_BITS,
    WORD_BITS,
    Piece,
    Rows,
    bits_of,
    digest_of_pieces,
    first_word_of,
    first_words,
    shard_limit,
)


class _Listed(NamedTuple):
    """What is listed for a prefix: how many exemplars, in which pieces."""

    exemplars: int
    pieces: list[Piece]


class DigestTree:
    """The `store_digest` of exemplars, with the pieces they would be saved in remembered for every prefix.

    Args:
        image_shape: ``(height, width, channels)``.
        class_names: names of all classes.
    """

    def __init__(self, image_shape: Sequence[int], class_names: Sequence[str]) -> None:
        self.image_shape, self.class_names = image_shape, class_names
        self.limit = shard_limit(image_shape)
        self._known: dict[str, _Listed] = {}
        self._longest = 0
        self._digest = ""

    def digest(self, rows: Rows, held: np.ndarray) -> str:
        """Return the digest.

        Args:
            rows: sorted by id, and then by label; pixels are not looked at.
            held: which of them count, bool ``(n,)``.
        """
        if not self._digest:
            top = self._under("", rows, held, slice(0, len(held)))
            self._digest = digest_of_pieces(top.pieces, self.image_shape, self.class_names)
        return self._digest

    def drop(self, ids: np.ndarray) -> None:
        """Forget what ids ``(n, 16)`` that were added or removed are part of."""
        self._digest = ""
        if not self._known:
            return
        for bits in map(bits_of, first_words(ids).tolist()):
            for length in range(self._longest + 1):
                self._known.pop(bits[:length], None)

    def _under(self, prefix: str, rows: Rows, held: np.ndarray, span: slice) -> _Listed:
        """Return what is listed for a prefix, whose rows are those of a span."""
        if prefix in self._known:
            return self._known[prefix]
        shard = span.stop - span.start <= self.limit or len(prefix) == WORD_BITS
        if not shard:
            first = np.bytes_(first_word_of(prefix + "1").to_bytes(8))
            middle = span.start + int(np.searchsorted(id_keys(rows.ids[span]), first))
            low = self._under(prefix + "0", rows, held, slice(span.start, middle))
            high = self._under(prefix + "1", rows, held, slice(middle, span.stop))
            listed = _Listed(low.exemplars + high.exemplars, low.pieces + high.pieces)
            shard = listed.exemplars <= self.limit
            if len(prefix) == GROUP_BITS:
                listed = _Listed(listed.exemplars, [Piece.of_group(prefix, listed.pieces)])
        if shard:
            part = Rows(rows.pixels[:0], rows.labels[span][held[span]], rows.ids[span][held[span]])
            count = len(part.ids)
            listed = _Listed(count, [Piece.of_rows(prefix, part)] if count else [])
        self._known[prefix], self._longest = listed, max(self._longest, len(prefix))
        return listed
