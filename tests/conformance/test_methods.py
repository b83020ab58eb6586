"""What every unlearning method for classifiers must hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_requests import (
    apply,
    class_request,
    random_request,
    same_state,
    small_batch_norm_cnn,
    small_group_norm_cnn,
    small_images,
    small_mlp,
    trained,
    with_settings,
)
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget, BudgetExceededError, Cost
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.table import METHODS, build_method
from gen_unlearn.methods.method import Unlearned, UnlearningMethod, unlearn
from gen_unlearn.methods.search_space import sample_settings
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": small_mlp,
    "batch norm": small_batch_norm_cnn,
    "group norm": small_group_norm_cnn,
}
"""All methods must do with both kinds of normalisation."""

SMALL: dict[str, Any] = {"batch_forget": 5, "batch_retain": 16, "epochs": 2}
"""Several steps in each of a few epochs, so that the order of images matters; for methods that have them."""

SETTINGS: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 1.2},
    "lfssd": {"alpha": 1.2},
    "amun": SMALL | {"attack_steps": 5},
    "unsir": {"noise_steps": 3, "batch_retain": 64, "batch_forget": 256},
    "rum": {"batch_forget": 2, "batch_retain": 16, "epochs": [1, 1, 1]},
}
"""Other settings than the defaults and `SMALL`, where these are slow or meant for many more images."""

CLASS_WISE = frozenset({"unsir", "damp"})
"""These unlearn whole classes."""

CONVOLUTIONS_ONLY = frozenset({"ct", "msg"})
"""These say that they need convolutions if there is none."""

HANDED_ON = {"rum": {"heldout"}}
"""Parts that a wrapper puts into the requests of its methods; what it does not need is empty."""

COMMON = sorted(METHODS)


def small(name: str) -> UnlearningMethod:
    known = {field.name for field in fields(METHODS[name])}  # type: ignore[arg-type]
    usual = {key: value for key, value in SMALL.items() if key in known}
    return build_method(name, SETTINGS.get(name, usual))


@functools.cache
def data_of(name: str) -> UnlearnData:
    return class_request() if name in CLASS_WISE else random_request()


@functools.cache
def original(network: str, class_wise: bool) -> nn.Module:
    return trained(NETWORKS[network](), class_request() if class_wise else random_request())


@functools.cache
def run(name: str, network: str = "batch norm", seed: int = 0) -> Unlearned:
    model = original(network, name in CLASS_WISE)
    method = small(name)
    return unlearn(method, model, data_of(name), accelerator=Accelerator(cpu=True), seed=seed)


@pytest.fixture(scope="module", autouse=True)
def the_originals_stay() -> Iterator[None]:
    before = {
        (network, wise): digest_state(original(network, wise).state_dict())
        for network in NETWORKS
        for wise in (True, False)
    }
    yield
    for (network, wise), digest in before.items():
        assert digest_state(original(network, wise).state_dict()) == digest


@pytest.mark.parametrize("name", COMMON)
def test_moves_the_copy_and_not_the_original(name: str) -> None:
    model = original("batch norm", name in CLASS_WISE)
    before = digest_state(model.state_dict())
    found = run(name)
    assert found.cost.seconds < 5, "a second at most, and a margin for busy machines"
    assert digest_state(model.state_dict()) == before
    assert not same_state(found.model, model)
    assert found.model.state_dict().keys() == model.state_dict().keys()
    own = {value.data_ptr() for value in model.state_dict().values()}
    assert not own & {value.data_ptr() for value in found.model.state_dict().values()}
    assert not found.model.training
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.cost.forward_samples > 0


@pytest.mark.parametrize("name", COMMON)
def test_the_seed_decides(name: str) -> None:
    first = run(name)
    again = run.__wrapped__(name)
    assert same_state(again.model, first.model)
    other = run(name, seed=1)
    assert same_state(other.model, first.model) == METHODS[name].deterministic


@pytest.mark.parametrize("network", ["mlp", "group norm"])
@pytest.mark.parametrize("name", COMMON)
def test_works_with_other_networks(name: str, network: str) -> None:
    if network == "mlp" and name in CONVOLUTIONS_ONLY:
        with pytest.raises(ValueError, match="convolutions"):
            run(name, network)
        return
    outputs = run(name, network).model(torch.zeros(2, 1, 4, 4))
    assert outputs.shape == (2, 3)
    assert outputs.isfinite().all()


class Output(NamedTuple):
    """What transformers' classifiers return, but for the name."""

    logits: Tensor


class Awkward(nn.Module):
    """Tied kernels, dropout, a normalisation without weights that no batch of one can have, an odd output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner, self.tied = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.inner.weight
        self.dropout, self.wide = nn.Dropout(0.2), nn.Linear(64, 8)
        self.norm, self.head = nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Output:
        features = self.tied(self.inner(self.stem(images).relu()).relu()).relu().flatten(1)
        return Output(self.head(self.norm(self.wide(self.dropout(features))).relu()))


@functools.cache
def awkward() -> nn.Module:
    images = small_images(57, seed=2)
    nothing = images.select(np.empty(0, dtype=np.int64))
    torch.manual_seed(0)
    return apply(FineTune(lr=0.1, epochs=30), Awkward().eval(), UnlearnData(nothing, images, nothing)).eval()


@pytest.mark.parametrize("name", COMMON)
def test_works_with_awkward_networks_and_more_to_forget_than_to_retain(name: str) -> None:
    """The last batch of each part has one image."""
    images = small_images(57, seed=2)
    forget = images.labels != 0 if name in CLASS_WISE else np.arange(57) < 41
    data = UnlearnData(images.select(forget), images.select(~forget), small_images(30, seed=3))
    sizes = {"batch_forget": len(data.forget) - 1, "batch_retain": len(data.retain) - 1}
    method = small(name)
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]
    method = with_settings(method, **{key: size for key, size in sizes.items() if key in known})
    if name in ("ssd", "lfssd"):
        method = with_settings(method, alpha=0.5)
    accelerator = Accelerator(cpu=True)
    found = [unlearn(method, awkward(), data, accelerator=accelerator, seed=0).model for _ in range(2)]
    assert same_state(*found)
    assert found[0].get_submodule("tied").weight is found[0].get_submodule("inner").weight
    assert found[0](torch.zeros(2, 1, 4, 4)).logits.isfinite().all()


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("part", ["forget", "retain", "heldout"])
def test_says_what_is_missing(name: str, part: str) -> None:
    data = data_of(name)
    parts = {known: getattr(data, known) for known in ("forget", "retain", "heldout")}
    parts[part] = parts[part].select(np.empty(0, dtype=np.int64))
    method, model = small(name), original("batch norm", name in CLASS_WISE)
    if part != "forget" and part not in method.needs:
        return
    with pytest.raises(ValueError, match="forget" if part == "forget" else f"needs {part}"):
        unlearn(method, model, UnlearnData(**parts), accelerator=Accelerator(cpu=True), seed=0)


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
    """Samples that passed the first module forward, and whose outputs got gradients."""

    forward: int = 0
    backward: int = 0
    functional: bool = False


def watch(model: nn.Module, seen: Seen) -> None:
    """Count what a model and its copies do; copies keep the hooks."""

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

    first = next(module for module in model.modules() if not list(module.children()))
    first.register_forward_pre_hook(forward)
    model.register_forward_hook(backward)


@pytest.mark.parametrize("name", COMMON)
def test_counts_what_it_computes_and_reads_what_it_declares(name: str) -> None:
    model = trained(small_batch_norm_cnn(), data_of(name))
    seen, budget, data = Seen(), Budget(), data_of(name)
    watch(model, seen)
    watched = Watched(data.forget, data.retain, data.heldout)
    method = small(name)
    with torch.random.fork_rng(devices=[]):
        method(model, watched, accelerator=Accelerator(cpu=True), seed=0, budget=budget)
    assert vars(watched)["read"] <= set(method.needs) | HANDED_ON.get(name, set())
    assert Cost(budget.forward_samples, seen.backward) == Cost(seen.forward, seen.backward)
    if not seen.functional:
        assert budget.backward_samples == seen.backward


@pytest.mark.parametrize("name", COMMON)
def test_stops_at_the_cap(name: str) -> None:
    cost = run(name).cost
    method, model = small(name), original("batch norm", name in CLASS_WISE)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(BudgetExceededError, match="sample passes"):
        unlearn(method, model, data_of(name), accelerator=accelerator, seed=0, cap=cost.passes / 2)


@pytest.mark.parametrize("name", COMMON)
def test_searches_over_its_own_settings(name: str) -> None:
    kind = METHODS[name]
    space = kind.search_space()
    assert set(space) <= {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for settings in sample_settings(space, 4, seed=0, name=name):
        built = build_method(name, settings)
        assert all(getattr(built, key) == value for key, value in settings.items())


def test_deterministic_methods_are_known() -> None:
    assert {name for name in METHODS if METHODS[name].deterministic} == {"ssd", "lfssd", "influence", "damp"}
