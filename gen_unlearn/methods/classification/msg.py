"""Masked small gradients: start the weights anew whose gradients tell forgotten from retained least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.per_sample import summed_gradient
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import keyed_order, torch_generator

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Msg(LoopSettings):
    """Restart the weights with the smallest gradients, then fine-tune on what is retained.

    The second place of the NeurIPS 2023 unlearning challenge (report: arXiv 2406.09073). The gradient is that
    of ``CE(as many retained images) - CE(images to forget)``, in evaluation mode. In every layer the
    `fraction` of weights where it is smallest is drawn anew (He et al. 2015, normal, by the inputs, gain of
    ReLU). In the fine-tuning, the gradients of all other weights are multiplied with `kept_scale`.

    Attributes:
        fraction: share of the weights of a layer that are drawn anew, above 0 and at most 1.
        layers: which layers: ``"convolutions"``, as published, or ``"matrices"``, linear layers too.
        kept_scale: factor of the gradients of weights that were not drawn anew, at least 0.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    fraction: float = 0.3
    layers: Literal["convolutions", "matrices"] = "convolutions"
    kept_scale: float = 0.1
    lr: float = 1e-3
    epochs: int = 5
    decay: Literal["constant", "cosine", "trapezoid"] = "trapezoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"expected fraction above 0 and at most 1, got {self.fraction}")
        if not self.kept_scale >= 0:
            raise ValueError(f"expected kept_scale of at least 0, got {self.kept_scale}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, partly drawn anew and fine-tuned.

        Raises:
            ValueError: the model has no layer of the chosen kind.
        """
        student = copy_of(model, accelerator)
        restarted = self.restart(student, data, seed=seed, budget=budget)
        scales = {
            name: torch.where(restarted[name], 1.0, self.kept_scale) if name in restarted else self.kept_scale
            for name, _ in student.named_parameters()
        }
        hooks = [p.register_hook(_scaled_by(scales[name])) for name, p in student.named_parameters()]
        retain = self.retain_term(data.retain, cross_entropy)
        self.run(student, lambda _: [[retain]], accelerator=accelerator, seed=seed, budget=budget)
        for hook in hooks:
            hook.remove()
        return student

    def restart(self, model: nn.Module, data: UnlearnData, *, seed: int, budget: Budget) -> dict[str, Tensor]:
        """Draw the weights with the smallest gradients anew, in place.

        Returns:
            Name of a parameter -> bool of its shape, true where a weight was drawn anew; of two equal
            gradients the first one counts as smaller.

        Raises:
            ValueError: the model has no layer of the chosen kind.
        """
        kinds = _CONVOLUTIONS if self.layers == "convolutions" else (*_CONVOLUTIONS, nn.Linear)
        chosen = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
        names = [name for name, parameter in model.named_parameters() if id(parameter) in chosen]
        if not names:
            raise ValueError(
                f"expected {self.layers} to draw anew, {type(model).__name__} has none; "
                "set layers to matrices for a network without convolutions"
            )
        some = data.retain.select(keyed_order(data.retain.ids, "msg", seed)[: len(data.forget)])
        retain = summed_gradient(model, some, budget=budget)
        forget = summed_gradient(model, data.forget, budget=budget)
        masks = {}
        for name in names:
            size = (retain[name] / len(some) - forget[name] / len(data.forget)).abs().flatten()
            mask = torch.zeros(len(size), dtype=torch.bool, device=size.device)
            mask[torch.sort(size, stable=True).indices[: round(self.fraction * len(size))]] = True
            weight = model.get_parameter(name)
            fresh = torch.empty(weight.shape, dtype=weight.dtype)
            draws = torch_generator(seed, "msg", name)
            nn.init.kaiming_normal_(fresh, nonlinearity="relu", generator=draws)
            masks[name] = mask.reshape(weight.shape)
            with torch.no_grad():
                weight.copy_(torch.where(masks[name], fresh.to(weight.device), weight))
        return masks

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "fraction": Choice((0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
            "epochs": Choice((3, 5, 10)),
        }


def _scaled_by(scale: Tensor | float) -> Callable[[Tensor], Tensor]:
    """Return a hook that multiplies a gradient."""
    return lambda gradient: gradient * scale
