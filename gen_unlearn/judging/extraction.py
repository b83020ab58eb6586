"""Whether deleted images can be drawn out of the difference that their deletion made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.metrics.before_and_after import WEIGHTS, draw_between, nearer_share
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.pipelines.denoising import NoisePredictor
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pixels import to_uint8
from gen_unlearn.repro import keyed_order
from gen_unlearn.shards import Rows
from gen_unlearn.shared_rows import shared_rows

MOST_DELETED = 10
"""Deleted images that are looked for, of as many adapters if there are so many."""

_DRAWS, _CONTROLS = 16, 10
_KINDS = ("held_out", "retained")


@dataclass(frozen=True, eq=False)
class _Target:
    """A deleted image, and what it is compared with.

    Attributes:
        image: uint8 ``(height, width, channels)``.
        name: its sample id.
        label: its class.
        adapter: the adapter with the nearest key, which changed.
        controls: kind -> images of its class, uint8 ``(n, height, width, channels)``.
    """

    image: np.ndarray
    name: bytes
    label: int
    adapter: int
    controls: dict[str, np.ndarray]


def measure_extraction(ensemble: RefittableEnsemble, held_out: Rows, steps: int) -> list[Measure]:
    """Attack the model with the one before its deletions in hand; nothing if nothing can be compared.

    An adapter that waits to be rebuilt is left out, as it gives nothing away yet. One without any image left
    is the backbone alone. Several processes share the deleted images that are looked for.

    Args:
        ensemble: the run as it is now, with what was deleted.
        held_out: images that nothing was trained on, with codes and routes.
        steps: denoising steps.
    """
    targets = _targets(ensemble, held_out)
    if not targets:
        return []
    ensemble.pipeline.set_progress_bar_config(disable=True)
    before = ensemble.before  # It is fit by all processes together, if it was not yet.
    found = shared_rows(
        len(targets),
        1,
        lambda rows: np.stack(
            [_shares(ensemble.pipeline, before, target, steps) for target in targets[rows]]
        ),
        "draw before and after",
    )
    shares = {kind: np.ascontiguousarray(found[:, number]) for number, kind in enumerate(_KINDS)}
    return [
        _measure(
            weight, shares["held_out"][:, column], shares["retained"][:, column], shares["held_out"][:, 0]
        )
        for column, weight in enumerate(WEIGHTS)
    ]


def _shares(
    after: AdapterEnsembleDDPMPipeline, before: AdapterEnsembleDDPMPipeline, target: _Target, steps: int
) -> np.ndarray:
    """Return `nearer_share` by kind of control and weight, float64 ``(kinds, weights)``; NaN without any."""
    samples = _draw(after, before, target, steps)
    shares = np.full((len(_KINDS), len(WEIGHTS)), np.nan)
    for row, kind in enumerate(_KINDS):
        for column in range(len(WEIGHTS) if len(target.controls[kind]) else 0):
            drawn = samples[column * _DRAWS : (column + 1) * _DRAWS]
            shares[row, column] = nearer_share(target.image, target.controls[kind], drawn)
    return shares


def _targets(ensemble: RefittableEnsemble, held_out: Rows) -> list[_Target]:
    """Choose deleted images, of different adapters first, each with a held-out control."""
    was = ensemble.undeleted_rows
    deleted = was.select(np.flatnonzero(ensemble.deleted.holds(was.ids)))
    order = keyed_order(deleted.ids, "before and after")
    adapters = ensemble.routes(deleted)[:, 0].astype(np.int64)
    _, firsts = np.unique(adapters[order], return_index=True)
    turn = np.concatenate([np.sort(firsts), np.setdiff1d(np.arange(len(order)), firsts)])
    found = []
    for row in order[turn].tolist():
        adapter, label = int(adapters[row]), int(deleted.labels[row])
        controls = {
            "held_out": _nearest(ensemble, held_out, label, adapter),
            "retained": _nearest(ensemble, ensemble.rows, label, adapter),
        }
        if _can_be_compared(ensemble.pipeline, adapter) and len(controls["held_out"]):
            name = deleted.ids[row].tobytes()
            found.append(_Target(deleted.pixels[row], name, label, adapter, controls))
        if len(found) == MOST_DELETED:
            break
    return found


def _can_be_compared(pipeline: AdapterEnsembleDDPMPipeline, adapter: int) -> bool:
    """Tell whether an adapter answers now, or has no image left."""
    served = pipeline.adapters
    return adapter in served.states or not served.members[adapter].any()


def _nearest(ensemble: RefittableEnsemble, rows: Rows, label: int, adapter: int) -> np.ndarray:
    """Return the images of a class with the codes nearest to an adapter's key, as uint8."""
    assert rows.codes is not None, "they are encoded"
    same = rows.select(np.flatnonzero(rows.labels == label))
    assert same.codes is not None
    key = ensemble.recipe.keys.codes[adapter].astype(np.int64)
    distances = np.square(same.codes[:, : len(key)].astype(np.int64) - key).sum(axis=1)
    return same.pixels[np.argsort(distances, kind="stable")[:_CONTROLS]]


def _draw(
    after: AdapterEnsembleDDPMPipeline, before: AdapterEnsembleDDPMPipeline, target: _Target, steps: int
) -> np.ndarray:
    """Sample with every weight, uint8 ``(n, height, width, channels)``."""
    samples = draw_between(
        after,
        _predictor(before, target),
        _predictor(after, target),
        after.denoiser.sample_shape,
        target.name,
        draws=_DRAWS,
        steps=steps,
    )
    return to_uint8(after.denoiser.decode(samples))


def _predictor(pipeline: AdapterEnsembleDDPMPipeline, target: _Target) -> NoisePredictor:
    """Return what predicts with the image's adapter, under its class; with none if it has no image left."""
    images = len(WEIGHTS) * _DRAWS
    if target.adapter in pipeline.adapters.states:
        return pipeline.noise_predictor(
            [target.label] * images, guidance_scale=1.0, adapters=[target.adapter] * images
        )
    labels = np.full(images, target.label, dtype=np.int64)

    def predict(samples: Tensor, timestep: Tensor) -> Tensor:
        with torch.no_grad():
            return pipeline.denoiser.predict(samples, timestep, labels)

    return predict


def _measure(weight: float, unseen: np.ndarray, retained: np.ndarray, alone: np.ndarray) -> Measure:
    """Sum up what was found with one weight."""
    details = {}
    known = retained[~np.isnan(retained)]
    if len(known):
        details["nearer_than_retained"] = float(known.mean())
    error = None if len(unseen) < 2 else max(_error(unseen), 0.5 / (len(unseen) + 1))
    who = "the model after the deletion alone" if weight == 0 else "the model before the deletion alone"
    if weight > 1:
        who = "what the model before the deletion knew and the one after it does not, exaggerated"
    return Measure(
        f"before_after_w{weight:g}",
        float(unseen.mean()),
        "For who kept the model from before: how often a deleted image lies nearer to what its adapter draws "
        f"than held-out images of its class do (with the codes nearest to the adapter's key, at most "
        f"{_CONTROLS}), over {len(unseen)} deleted images and {_DRAWS} draws each. Drawn with eps_after + w "
        f"(eps_before - eps_after), w = {weight:g}: {who}. 0.5 is guessing, 1 finds every image. No deletion "
        "takes back what an earlier copy of the model gives away.",
        error,
        0.5 if weight == 0 else float(alone.mean()),
        "guessing" if weight == 0 else "w = 0, the model after the deletion alone",
        details,
    )


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
