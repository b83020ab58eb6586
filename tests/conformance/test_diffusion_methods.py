"""What every unlearning method for diffusion models must hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_denoising_models import small_denoising_model
from small_requests import class_request, random_request, same_state
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget, BudgetExceededError, Cost
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.table import METHODS, build_method
from gen_unlearn.methods.method import Unlearned, UnlearningMethod, unlearn
from gen_unlearn.methods.search_space import sample_settings
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state

SMALL: dict[str, Any] = {"batch_forget": 5, "batch_retain": 8, "steps": 2, "lr": 1e-3}
"""A few steps with more batches than one part has images; for methods that have these settings."""

SETTINGS: dict[str, dict[str, Any]] = {
    "siss": SMALL | {"norm_every": 2},
    "sfr-on": SMALL | {"fisher_samples": 6},
    "influence": {"samples": 6, "draws": 2},
    "selective-amnesia": SMALL
    | {"replay_per_class": 4, "fisher_samples": 6, "fisher_draws": 2, "sampler_steps": 4},
}
"""Other settings than the defaults and `SMALL`, where these are slow."""

CLASS_WISE: frozenset[str] = frozenset({"selective-amnesia", "label-erasure"})
"""These unlearn whole classes."""

LABELLED: frozenset[str] = frozenset({"salun", "selective-amnesia", "label-erasure"})
"""These need a network with labels, and say so if there is none."""

DETERMINISTIC: frozenset[str] = frozenset()
"""These do not depend on the seed."""

KINDS = {"conditional": (3, "epsilon"), "unconditional": (0, "epsilon"), "velocity": (3, "v_prediction")}
"""Classes that the network embeds, and what it predicts."""

COMMON = sorted(METHODS)


STEPPED = [name for name in COMMON if "steps" in {field.name for field in fields(METHODS[name])}]  # type: ignore[arg-type]
"""These take steps of gradients."""


def small(name: str, **changed: Any) -> UnlearningMethod:
    return build_method(name, SETTINGS.get(name, SMALL) | changed)


@functools.cache
def data_of(name: str) -> UnlearnData:
    return class_request() if name in CLASS_WISE else random_request()


@functools.cache
def original(kind: str = "conditional") -> DenoisingModel:
    return small_denoising_model(*KINDS[kind])


@functools.cache
def run(name: str, kind: str = "conditional", seed: int = 0) -> Unlearned:
    accelerator = Accelerator(cpu=True)
    return unlearn(small(name), original(kind), data_of(name), accelerator=accelerator, seed=seed)


@pytest.fixture(scope="module", autouse=True)
def the_originals_stay() -> Iterator[None]:
    before = {kind: digest_state(original(kind).state_dict()) for kind in KINDS}
    yield
    for kind, digest in before.items():
        assert digest_state(original(kind).state_dict()) == digest


@pytest.mark.parametrize("name", COMMON)
def test_moves_the_copy_and_not_the_original(name: str) -> None:
    model, found = original(), run(name).model
    assert isinstance(found, DenoisingModel)
    assert not same_state(found, model)
    assert found.state_dict().keys() == model.state_dict().keys()
    assert not found.training
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert not {v.data_ptr() for v in model.state_dict().values()} & {
        value.data_ptr() for value in found.state_dict().values()
    }
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (found.num_timesteps, found.null_label) == (model.num_timesteps, model.null_label)


@pytest.mark.parametrize("name", COMMON)
def test_the_seed_decides(name: str) -> None:
    first = run(name)
    assert same_state(run.__wrapped__(name).model, first.model)
    assert same_state(run(name, seed=1).model, first.model) == METHODS[name].deterministic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMON)
def test_works_with_every_kind_of_denoiser(name: str, kind: str) -> None:
    if kind == "unconditional" and name in LABELLED:
        with pytest.raises(ValueError, match=r"label|class"):
            run(name, kind)
        return
    model = run(name, kind).model
    with torch.no_grad():
        found = model(torch.zeros(3, 1, 4, 4), torch.tensor([0, 500, 999]), torch.tensor([0, 2, 1]))
    assert found.shape == (3, 1, 4, 4)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("part", ["forget", "retain", "heldout"])
def test_says_what_is_missing(name: str, part: str) -> None:
    data, method = data_of(name), small(name)
    if part != "forget" and part not in method.needs:
        return
    parts = {known: getattr(data, known) for known in ("forget", "retain", "heldout")}
    parts[part] = parts[part].select(np.empty(0, dtype=np.int64))
    with pytest.raises(ValueError, match="forget" if part == "forget" else f"needs {part}"):
        unlearn(method, original(), UnlearnData(**parts), accelerator=Accelerator(cpu=True), seed=0)


class Watched(UnlearnData):
    """A request that remembers which of its parts were read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("forget", "retain", "heldout"):
            vars(self).setdefault("read", set()).add(name)
        if name == "num_classes":
            return len(vars(self)["forget"].class_names)
        return super().__getattribute__(name)

    def __post_init__(self) -> None:
        pass


@dataclass
class Seen:
    """Samples that passed the network forward, and whose predictions got gradients."""

    forward: int = 0
    backward: int = 0
    functional: bool = False


def watch(model: DenoisingModel, seen: Seen) -> None:
    """Count what a network and its copies do; copies keep the hooks."""

    def forward(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0]
        while torch._C._functorch.is_functorch_wrapped_tensor(inputs):
            seen.functional = True
            inputs = torch._C._functorch.get_unwrapped(inputs)
        seen.forward += inputs.numel() // 16

    def backward(_: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(outputs)
        if not wrapped and outputs.requires_grad:
            outputs.register_hook(lambda _: setattr(seen, "backward", seen.backward + len(arguments[0])))

    model.network.conv_in.register_forward_pre_hook(forward)
    model.network.conv_out.register_forward_hook(backward)


@pytest.mark.parametrize("name", COMMON)
def test_counts_what_it_computes_and_reads_what_it_declares(name: str) -> None:
    model, seen, budget, data = small_denoising_model(), Seen(), Budget(), data_of(name)
    watch(model, seen)
    watched, method = Watched(data.forget, data.retain, data.heldout), small(name)
    with torch.random.fork_rng(devices=[]):
        method(model, watched, accelerator=Accelerator(cpu=True), seed=0, budget=budget)
    assert vars(watched)["read"] <= set(method.needs)
    assert seen.forward > 0
    assert Cost(budget.forward_samples, seen.backward) == Cost(seen.forward, seen.backward)
    if not seen.functional:
        assert budget.backward_samples == seen.backward


@pytest.mark.parametrize("name", STEPPED)
def test_trains_on_timesteps_of_the_whole_range(name: str) -> None:
    """Released code drew them from [999, 1000)."""
    model, seen, data = small_denoising_model(), list[Tensor](), data_of(name)

    def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        timesteps = arguments[1]
        if torch.is_grad_enabled() and not torch._C._functorch.is_functorch_wrapped_tensor(timesteps):
            seen.append(timesteps.expand(len(arguments[0])))

    model.network.register_forward_pre_hook(remember)
    method = small(name, batch_forget=100, batch_retain=100, steps=3)
    method(model, data.only(method.needs), accelerator=Accelerator(cpu=True), seed=0, budget=Budget())
    counts = torch.cat(seen).double().histc(10, 0, 1000)
    expected = counts.sum() / 10
    assert ((counts - expected) ** 2 / expected).sum() < 40, "chance exceeds this once in 100 000 times"


@pytest.mark.parametrize("name", COMMON)
def test_stops_at_the_cap(name: str) -> None:
    cap = run(name).cost.passes / 2
    with pytest.raises(BudgetExceededError, match="sample passes"):
        unlearn(
            small(name),
            original(),
            data_of(name),
            accelerator=Accelerator(cpu=True),
            seed=0,
            cap=cap,
        )


@pytest.mark.parametrize("name", COMMON)
def test_searches_over_its_own_settings(name: str) -> None:
    kind = METHODS[name]
    space = kind.search_space()
    assert set(space) <= {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for settings in sample_settings(space, 4, seed=0, name=name):
        built = build_method(name, settings)
        assert all(getattr(built, key) == value for key, value in settings.items())


@pytest.mark.parametrize("name", STEPPED)
def test_no_steps_change_nothing(name: str) -> None:
    model, data, method = original(), data_of(name), small(name, steps=0)
    found = method(model, data.only(method.needs), accelerator=Accelerator(cpu=True), seed=0, budget=Budget())
    assert found is not model
    assert same_state(found, model)


def test_a_model_without_a_noise_schedule_is_refused() -> None:
    for name in COMMON:
        with pytest.raises(ValueError, match="DenoisingModel"):
            unlearn(small(name), nn.Linear(2, 2), data_of(name), accelerator=Accelerator(cpu=True), seed=0)


def test_deterministic_methods_are_known() -> None:
    assert {name for name in METHODS if METHODS[name].deterministic} == DETERMINISTIC


def test_mistakes_in_settings_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean siss"):
        build_method("sis", {})
    with pytest.raises(ValueError, match="stepps"):
        build_method("siss", {"stepps": 3})
    with pytest.raises(ValueError, match="lambda_schedule"):
        build_method("siss", {"lambda_schedule": "risen"})
    assert build_method("siss", {"lambda_schedule": [0.0, 0.5, 1.0]}).knots == (0.0, 0.5, 1.0)  # type: ignore[attr-defined]
