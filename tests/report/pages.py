"""A page to test: its content, and its HTML read back."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.report.page import DeletedView, GridRow, Neighbour, ReportContent, StateView

NASTY = '<b>&"</b>'
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Collect text, attributes and pictures of a page, and check that its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def pixels(self, alt: str) -> np.ndarray:
        """Decode the one picture with this alternative text."""
        (source,) = (attrs["src"] for tag, attrs in self.tags if tag == "img" and attrs["alt"] == alt)
        kind, _, encoded = source.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scorecard() -> Scorecard:
    rows = [
        Measure("fd_retain_before", 12.84, "Distance <before>.", 0.41, 3.127, "two halves & of the data"),
        Measure("fd_retain_after", 13.3, "Distance after.", 0.41, 3.127, "two halves & of the data"),
        Measure("fd_retain_oracle", 12.6, "Distance oracle.", 0.41, 3.127, "two halves & of the data"),
        Measure("forgotten_class_rate_after", 0.0, "Share of it.", 0.005, 0.0024, "false alarms"),
        Measure("seconds_delete", 0.00213, "Wall time."),
        Measure("strange_thing", float("nan"), "Something else."),
    ]
    accuracy = {"after": {"0": 0.97}, "oracle": {"0": 0.98, NASTY: 1.0}}
    protocol = {"sampler": {"steps": 50}, "seeds": [0, 1], "judge": "<i>cnn</i>"}
    return Scorecard(tuple(rows), protocol, accuracy, notes=("One <u>note</u>.",))


def receipt() -> DeletionReceipt:
    return DeletionReceipt(
        artefact="exemplar store",
        level="exemplar-only",
        reason="<script>alert(1)</script>",
        ids=("ab" * 16, "cd" * 16),
        forget_digest="1" * 64,
        removed=2,
        removed_per_class={NASTY: 2},
        remaining=7,
        digest_before="2" * 64,
        digest_after="3" * 64,
        seconds=0.002,
        created="2025-01-02T03:04:05+00:00",
        versions={"torch": "2.8"},
    )


def content(channels: int = 1) -> ReportContent:
    """Return a report without the state before, with a class that only the oracle still knows."""
    shape = (3, 8, 6, channels)
    after = (GridRow("0", noise(*shape)), GridRow(NASTY, None, "refused: no exemplar is left"))
    oracle = (
        GridRow(NASTY, noise(*shape, seed=2)),
        GridRow("null token", noise(*shape, seed=3), "no exemplar"),
    )
    neighbour = Neighbour("after", noise(8, 6, channels, seed=5), 1.2345)
    return ReportContent(
        title=f"Digits {NASTY}",
        summary=(("removed", "2 of 9"),),
        states=(StateView("after", "once deleted", after), StateView("oracle", "retrained", oracle)),
        deleted=(DeletedView("first", noise(8, 6, channels, seed=4), (neighbour,)),),
        deleted_total=2,
        scorecard=scorecard(),
        receipts=(receipt(),),
        recipe_yaml="data: {name: <digits>}\n",
        recipe_digest="f" * 64,
    )
