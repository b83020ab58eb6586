"""File a receipt: its sealed text, and the ledger's entry that names it."""

from __future__ import annotations

from typing import NamedTuple

from gen_unlearn.ledger import Kind, Ledger, LedgerEntry
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.shards import sha256


class FiledReceipt(NamedTuple):
    """What is written of a receipt.

    Attributes:
        name: of its file.
        text: sealed.
        entry: the ledger's next, which names the file and its SHA-256.
    """

    name: str
    text: str
    entry: LedgerEntry


def filed(
    kind: Kind,
    receipt: DeletionReceipt,
    ledger: Ledger,
    tombstones: tuple[str, ...],
    environments: tuple[str, ...] | None = None,
) -> FiledReceipt:
    """Prepare what is written of a receipt, under the key of the ledger.

    Args:
        kind: of the change.
        receipt: not sealed; its state after the change is the ledger's.
        ledger: before the change.
        tombstones: of the images, sorted.
        environments: where the adapters of an ensemble were fit, if the change fits some.
    """
    name = f"{len(ledger.lines):04d}.json"
    text = receipt.sealed(ledger.key).to_json()
    entry = ledger.following(
        kind,
        receipt.digest_after,
        images=receipt.removed,
        remaining=receipt.remaining,
        level=receipt.level,
        receipt=name,
        receipt_sum=sha256(text.encode()),
        tombstones=tombstones,
        environments=environments,
    )
    return FiledReceipt(name, text, entry)
