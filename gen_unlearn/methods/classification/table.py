"""All unlearning methods for classifiers by name, and methods from the settings of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen_unlearn.methods.build import method_of
from gen_unlearn.methods.classification.amun import Amun
from gen_unlearn.methods.classification.bad_teacher import BadTeacher
from gen_unlearn.methods.classification.boundary import BoundaryExpand, BoundaryShrink
from gen_unlearn.methods.classification.damp import Damp
from gen_unlearn.methods.classification.fcs import Fcs
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.fisher_forgetting import FisherForgetting
from gen_unlearn.methods.classification.gradient_ascent import GradientAscent
from gen_unlearn.methods.classification.influence import InfluenceUnlearning
from gen_unlearn.methods.classification.l1_sparse import L1Sparse
from gen_unlearn.methods.classification.lfssd import Lfssd
from gen_unlearn.methods.classification.msg import Msg
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.classification.negmerge import NegMerge
from gen_unlearn.methods.classification.partial_layers import CatastrophicForgettingK, ExactUnlearningK
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.regun import ReGUn
from gen_unlearn.methods.classification.rum import Rum
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.classification.salun_soft import SalUnSoft
from gen_unlearn.methods.classification.scrub import Scrub
from gen_unlearn.methods.classification.scrub_rewind import ScrubRewind
from gen_unlearn.methods.classification.ssd import Ssd
from gen_unlearn.methods.classification.task_arithmetic import TaskArithmetic
from gen_unlearn.methods.classification.transpose_kernels import TransposeKernels
from gen_unlearn.methods.classification.unsir import Unsir
from gen_unlearn.methods.method import UnlearningMethod

METHODS: dict[str, type[UnlearningMethod]] = {
    "fine-tune": FineTune,
    "l1-sparse": L1Sparse,
    "gradient-ascent": GradientAscent,
    "neggrad-plus": NegGradPlus,
    "random-labels": RandomLabels,
    "salun": SaliencyUnlearning,
    "salun-soft": SalUnSoft,
    "scrub": Scrub,
    "scrub-rewind": ScrubRewind,
    "bad-teacher": BadTeacher,
    "ssd": Ssd,
    "lfssd": Lfssd,
    "cf-k": CatastrophicForgettingK,
    "eu-k": ExactUnlearningK,
    "influence": InfluenceUnlearning,
    "fisher-forgetting": FisherForgetting,
    "msg": Msg,
    "ct": TransposeKernels,
    "fcs": Fcs,
    "unsir": Unsir,
    "boundary-shrink": BoundaryShrink,
    "boundary-expand": BoundaryExpand,
    "amun": Amun,
    "task-arithmetic": TaskArithmetic,
    "negmerge": NegMerge,
    "regun": ReGUn,
    "damp": Damp,
    "rum": Rum,
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
