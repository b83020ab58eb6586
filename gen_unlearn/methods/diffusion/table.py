"""All unlearning methods for diffusion models by name, and methods from the settings of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen_unlearn.methods.build import method_of
from gen_unlearn.methods.diffusion.erase_diff import EraseDiff
from gen_unlearn.methods.diffusion.fine_tune import FineTuneDenoiser
from gen_unlearn.methods.diffusion.gradient_surgery import GradientSurgery
from gen_unlearn.methods.diffusion.influence import InfluenceDenoiser
from gen_unlearn.methods.diffusion.label_erasure import LabelErasure
from gen_unlearn.methods.diffusion.neg_grad import NegGradDenoiser
from gen_unlearn.methods.diffusion.neg_grad_plus import NegGradPlusDenoiser
from gen_unlearn.methods.diffusion.salun import SalunDenoiser
from gen_unlearn.methods.diffusion.selective_amnesia import SelectiveAmnesia
from gen_unlearn.methods.diffusion.sfr_on import SfrOn
from gen_unlearn.methods.diffusion.siss import Siss
from gen_unlearn.methods.method import UnlearningMethod

METHODS: dict[str, type[UnlearningMethod]] = {
    "fine-tune": FineTuneDenoiser,
    "neggrad": NegGradDenoiser,
    "neggrad-plus": NegGradPlusDenoiser,
    "siss": Siss,
    "erasediff": EraseDiff,
    "salun": SalunDenoiser,
    "selective-amnesia": SelectiveAmnesia,
    "sfr-on": SfrOn,
    "gradient-surgery": GradientSurgery,
    "influence": InfluenceDenoiser,
    "label-erasure": LabelErasure,
}
"""A method of one's own is one more line here. The names are those of recipes and of tables."""


def build_method(name: str, settings: Mapping[str, Any]) -> UnlearningMethod:
    """Return a method with some of its settings changed.

    Args:
        name: a key of `METHODS`.
        settings: hyper-parameter -> value, as YAML gives them; what is left out takes its default.

    Raises:
        ValueError: no such method or hyper-parameter, or a value of the wrong type or out of range.
    """
    return method_of(METHODS, name, settings)
