"""The speed of adapter rebuilds after a deletion: several adapters at once, against one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.timing import Row, seconds_of
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.adapters.routing import members_of, public_keys, route
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.config import load_config
from gen_unlearn.data import load_split
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.processes import process_state
from gen_unlearn.repro import id_keys, numpy_generator

CONFIGS = Path(__file__).parents[1] / "configs"
LEAVING = 20
"""Images of a deletion."""

FASTER = 2.0

_NAMES = tuple(map(str, range(10)))
_DIGITS = (8, 8, 1)


def adapter_rows(repeats: int) -> list[Row]:
    """Time deletions that rebuild in stacks and one adapter after the other; check the bits of the first."""
    few, stacks = max(2, repeats // 3), (4, 8)
    heads, digits, network = random_records(10_000, 128), digit_records(), _network_of_digits()
    of_lora = _rows_of("LoRA adapters of the digits", digits, 100, 1, _lora_of(network), 8, stacks, few)
    return [
        *_rows_of("classifier heads", heads, 200, 10, _heads, 32, stacks, few),
        *(_explained_by(network, row, stack) for row, stack in zip(of_lora, stacks, strict=True)),
    ]


def random_records(count: int, features: int) -> Records:
    """Return random records, sorted by id."""
    draws = numpy_generator(0, "records", count)
    codes = np.rint(STEPS * draws.standard_normal((count, features))).astype(np.int16)
    ids = draws.integers(0, 256, (count, 16), dtype=np.uint8)
    return Records(codes, draws.integers(0, len(_NAMES), count), ids[np.argsort(id_keys(ids))])


def digit_records() -> Records:
    """Return half of the digits with their pixels as codes: adapters get as unequal numbers as in a run."""
    data = load_split(load_config(CONFIGS / "digits_lora.yaml").data).train
    rows = np.argsort(id_keys(data.ids))[::2]
    images = data.all_images()[rows]
    return Records(images.reshape(len(rows), -1).astype(np.int16), data.labels[rows], data.ids[rows], images)


def _heads(stack: int) -> SgdHeads:
    return SgdHeads(epochs=5, stack=stack)


def _network_of_digits() -> nn.Module:
    """Return the denoiser of the digits with fresh weights, frozen."""
    backbone = load_config(CONFIGS / "digits_ddpm.yaml").model
    network = build_denoiser(backbone, _DIGITS, len(_NAMES)).eval().requires_grad_(False)
    return network.to(process_state().device)


@one_thread()
def _explained_by(network: nn.Module, row: Row, stack: int) -> Row:
    """Say in a row how much longer the frozen network takes for the images of a stack, both passes."""

    def seconds(images: int) -> float:
        inputs = torch.zeros(images, 1, 8, 8, device=process_state().device, requires_grad=True)
        labels = torch.zeros(images, dtype=torch.long, device=inputs.device)

        def both_passes() -> None:
            network(inputs, labels, class_labels=labels).sample.sum().backward()

        both_passes()
        return float(np.median([seconds_of(both_passes) for _ in range(20)]))

    longer = seconds(8 * stack) / seconds(8)
    alone = f"the frozen network alone takes {longer:.1f} x as long for {stack} x the images"
    return replace(row, reason=f"{alone}, and {row.reason}")


def _lora_of(network: nn.Module) -> Callable[[int], LoraAdapters]:
    """Return the adapters of the digits' recipe, with few epochs."""
    config = load_config(CONFIGS / "digits_lora.yaml")
    denoiser = FrozenDenoiser(network, config.noise.build(), len(_NAMES))
    lora = replace(config.model.adapters.lora, epochs=2)
    return lambda stack: LoraAdapters(replace(lora, stack=stack), "fresh", _DIGITS, lambda: denoiser)


def _rows_of(
    name: str,
    records: Records,
    adapters: int,
    neighbours: int,
    family: Callable[[int], AdapterFamily],
    batch_size: int,
    stacks: tuple[int, ...],
    repeats: int,
) -> list[Row]:
    """Compare stacks of some sizes with stacks of one, after the same deletions."""
    keys = public_keys(records.codes, records.ids, adapters, "public-samples", 0)
    recipes = {stack: EnsembleRecipe(keys, family(stack), neighbours, _NAMES, 0) for stack in (1, *stacks)}
    routes = route(records.codes, keys, neighbours)
    members = members_of(routes, adapters)
    stand_in = recipes[1].fit(records, {0: members[0]})[0]  # For all of them: those that are timed are fit.
    states = {adapter: stand_in for adapter, rows in enumerate(members) if len(rows)}
    ensembles = {stack: AdapterEnsemble(recipe, records, routes, states) for stack, recipe in recipes.items()}
    order = numpy_generator(0, "leaving").permutation(len(records))[: LEAVING * (repeats + 1)]
    requests = [ForgetSet(records.ids[rows], "speed") for rows in order.reshape(-1, LEAVING)]
    touched = [ensembles[1].touched(request) for request in requests]
    taken = [
        {stack: seconds_of(partial(each.delete, request)) for stack, each in ensembles.items()}
        for request in requests
    ][1:]
    steps = _steps_of(ensembles[1], touched[-1], batch_size)
    rows = []
    for stack in stacks:
        if ensembles[stack].replay(touched[-1]):
            raise RuntimeError(f"{name} that were rebuilt have other bytes than those of a fresh build")
        work = f"rebuild of {np.median([len(each) for each in touched]):.0f} {name}, {stack} at once"
        pairs = [(seconds[1], seconds[stack]) for seconds in taken]
        idle = 1 - sum(steps) / sum(stack * steps[start] for start in range(0, len(steps), stack))
        reason = f"{idle:.0%} of what stacks compute is places without an adapter or with one that is done"
        rows.append(Row.of_ratio(work, "one at a time, both in one thread", pairs, FASTER, "higher", reason))
    return rows


def _steps_of(ensemble: AdapterEnsemble, adapters: np.ndarray, batch_size: int) -> list[int]:
    """Return the steps of an epoch of each adapter, descending, which is the order they are stacked in."""
    sizes = [len(ensemble.members[int(adapter)]) for adapter in adapters]
    return sorted((math.ceil(size / batch_size) for size in sizes), reverse=True)
