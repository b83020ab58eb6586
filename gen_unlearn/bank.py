"""The bank: the exemplars of a store, encoded once for all denoising steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.fusion import ExemplarTokens
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import id_keys

_ODD_MULTIPLIER = 0x1E3779B97F4A7C15


@dataclass(frozen=True)
class ExemplarBank:
    """The encoded exemplars of a store: row *i* of the tokens belongs to row *i* of the store.

    Attributes:
        tokens: keys and values of the fusion, on the device of the encoder.
        ids: the ids that were encoded, uint8 ``(n, 16)``.
        encoder: fingerprint of the weights that encoded them.
    """

    tokens: ExemplarTokens
    ids: np.ndarray
    encoder: tuple[str | int, ...]

    @classmethod
    def build(
        cls, store: ExemplarStore, unet: SemiParametricUNet2DModel, previous: ExemplarBank | None = None
    ) -> ExemplarBank:
        """Bring a bank up to date with `store`: encode what is new, drop what is gone, keep the rest.

        A bank of other weights is of no use and is rebuilt; one that is up to date is returned as it is.
        """
        encoder = weights_fingerprint(unet)
        if previous is None or previous.encoder != encoder:
            return cls(_encode_rows(store, unet, np.arange(len(store))), store.ids.copy(), encoder)
        if np.array_equal(previous.ids, store.ids):
            return previous
        kept = previous.restrict(store)
        position = np.searchsorted(id_keys(kept.ids), id_keys(store.ids))
        known = np.isin(id_keys(store.ids), id_keys(kept.ids))
        encoded = _encode_rows(store, unet, np.flatnonzero(~known))
        source = torch.from_numpy(np.where(known, position, len(kept.ids) + np.cumsum(~known) - 1))
        source = source.to(encoded.keys.device)
        tokens = _join([kept.tokens, encoded]).map(lambda part: part.index_select(0, source))
        return cls(tokens, store.ids.copy(), encoder)

    def restrict(self, store: ExemplarStore) -> ExemplarBank:
        """Drop the tokens of every exemplar that `store` no longer holds."""
        keep = np.isin(id_keys(self.ids), id_keys(store.ids))
        index = torch.from_numpy(np.flatnonzero(keep)).to(self.tokens.keys.device)
        return ExemplarBank(
            self.tokens.map(lambda part: part.index_select(0, index)), self.ids[keep], self.encoder
        )


def weights_fingerprint(module: torch.nn.Module) -> tuple[str | int, ...]:
    """Identify the weights of a network by their content, read where they lie.

    For each parameter the 64-bit sum of its words, each times an odd number that depends on its position.
    Good against accidents: a network that was trained on, loaded over or replaced.
    """
    parameters = list(module.parameters())
    sums = []
    for parameter in parameters:
        words = parameter.detach().contiguous().view(torch.uint8).reshape(-1)
        if words.numel() % 4 == 0:
            words = words.view(torch.int32)
        position = torch.arange(1, words.numel() + 1, device=words.device)
        sums.append((words.to(torch.int64) * (position * _ODD_MULTIPLIER | 1)).sum())
    first = parameters[0]
    return (str(first.device), str(first.dtype), *torch.stack(sums).tolist())


@torch.no_grad()
def _encode_rows(
    store: ExemplarStore, unet: SemiParametricUNet2DModel, rows: np.ndarray, batch_size: int = 256
) -> ExemplarTokens:
    """Encode some rows of a store, in batches."""
    chunks = np.split(rows, range(batch_size, len(rows), batch_size))
    encoded = [
        unet.encode_exemplars(to_model_input(store.images[chunk]).to(unet.device, unet.dtype))
        for chunk in chunks
    ]
    return _join(encoded)


def _join(parts: list[ExemplarTokens]) -> ExemplarTokens:
    """Join the tokens of several sets of exemplars."""
    keys = torch.cat([part.keys for part in parts])
    shared = parts[0].values is parts[0].keys
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return ExemplarTokens(
        keys,
        keys if shared else torch.cat([part.values for part in parts]),
        torch.cat(pixels) if pixels else None,
    )
