"""Boundary unlearning: shift the decision boundary over the images to forget, or grow it around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.adversarial import fgsm
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, Teacher, cross_entropy, logits
from gen_unlearn.methods.loop import LoopSettings, batch_of, batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import torch_generator


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(LoopSettings):
    """Train images to forget on the class beyond their nearest decision boundary.

    Chen et al., CVPR 2023, arXiv 2303.11570. The class is what the original takes the image for after one
    step of `fgsm`. Retained images are not read.

    Attributes:
        epsilon: length of that step per pixel, for images in [0, 1].
        label: ``"predicted"``, as published: the most likely class, which is the true one where the step did
            not lead over a boundary. ``"wrong"``: the most likely of the other classes.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-5
    epsilon: float = 0.1
    label: Literal["predicted", "wrong"] = "predicted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0:
            raise ValueError(f"expected epsilon above 0, got {self.epsilon}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, trained on the images to forget with their new labels."""
        student = copy_of(model, accelerator)
        labels = self.labels(model, data.forget, accelerator, budget)
        forget = self.forget_term(replace(data.forget, labels=labels), cross_entropy)
        self.run(student, lambda _: [[forget]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    def labels(
        self, model: nn.Module, forget: IndexedImages, accelerator: Accelerator, budget: Budget
    ) -> np.ndarray:
        """Return the class beyond the nearest boundary of every image to forget, int64 ``(images,)``."""
        teacher = Teacher(model, budget)
        teacher.model.to(accelerator.device)
        found = []
        for batch in batches_of(forget, self.batch_forget):
            inputs, own = batch.inputs.to(accelerator.device), batch.labels.to(accelerator.device)
            beyond = teacher(fgsm(teacher.model, inputs, own, epsilon=self.epsilon, budget=budget))
            if self.label == "wrong":
                beyond = beyond.scatter(1, own[:, None], -math.inf)
            found.append(beyond.argmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-8, 1e-3), "epochs": Choice((3, 5, 10))}


@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(LoopSettings):
    """Train images to forget on a new class, then take it away (Chen et al., CVPR 2023, arXiv 2303.11570).

    The head gets one more row; the result has the rows it had before. Retained images are not read.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-5

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model with as many outputs as before."""
        student = copy_of(model, accelerator)
        sample = batch_of(data.forget, np.arange(1)).inputs
        name, head = head_of(student.eval(), sample.to(accelerator.device), budget)
        wide = widened(head, torch_generator(seed, "boundary expand"))
        student.set_submodule(name, wide)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            shadow = torch.full_like(batch.labels, head.out_features)
            return cross_entropy(network, batch._replace(labels=shadow))

        forget = self.forget_term(data.forget, loss)
        self.run(student, lambda _: [[forget]], accelerator=accelerator, seed=seed, budget=budget)
        student.set_submodule(name, narrowed(wide, head))
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-8, 1e-3), "epochs": Choice((3, 5, 10))}


def head_of(model: nn.Module, inputs: Tensor, budget: Budget) -> tuple[str, nn.Linear]:
    """Return the linear layer, with its name, whose output the logits are.

    Args:
        model: a classifier in evaluation mode.
        inputs: one image is enough; its pass forward is counted.
        budget: where.

    Raises:
        ValueError: the logits do not come out of a linear layer as they are.
    """
    outputs: dict[str, Tensor] = {}
    linear = {name: part for name, part in model.named_modules() if name and isinstance(part, nn.Linear)}
    hooks = [part.register_forward_hook(_keep(outputs, name)) for name, part in linear.items()]
    budget.count(forward=len(inputs))
    with torch.no_grad():
        found = logits(model, inputs)
    for hook in hooks:
        hook.remove()
    names = [name for name, output in outputs.items() if output.data_ptr() == found.data_ptr()]
    if len(names) != 1 or outputs[names[0]].shape != found.shape:
        raise ValueError(
            f"expected the logits of {type(model).__name__} to be what a linear layer inside of it puts out, "
            f"found {names}; choose another method"
        )
    return names[0], linear[names[0]]


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Return a hook that keeps what a layer puts out."""

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[name] = output

    return hook


@torch.no_grad()
def widened(head: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Return a head with one more output, whose weights are uniform in ``±1 / sqrt(in_features)``."""
    wide = nn.Linear(
        head.in_features,
        head.out_features + 1,
        head.bias is not None,
        device=head.weight.device,
        dtype=head.weight.dtype,
    )
    bound = 1 / math.sqrt(head.in_features)
    for own, old in ((wide.weight, head.weight), (wide.bias, head.bias)):
        if own is not None:
            drawn = torch.rand(own.shape, generator=generator).mul_(2).sub_(1).mul_(bound)
            own.copy_(torch.cat([old, drawn[-1:].to(old)]))
    return wide


@torch.no_grad()
def narrowed(wide: nn.Linear, head: nn.Linear) -> nn.Linear:
    """Return a head with its old number of outputs and the first weights of the wide one."""
    head.weight.copy_(wide.weight[: head.out_features])
    if head.bias is not None:
        head.bias.copy_(wide.bias[: head.out_features])
    return head
