"""The loops that methods are timed against do the same arithmetic, where nothing is drawn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_requests import apply, flat, random_request, small_batch_norm_cnn

from evaluation.handwritten_classifier_loops import LOOPS
from evaluation.handwritten_training import Images, Request
from gen_unlearn.data import IndexedImages
from gen_unlearn.methods.classification.table import build_method
from gen_unlearn.pixels import to_model_input

SETTINGS: dict[str, Any] = {"lr": 0.1, "epochs": 4, "batch_forget": 64, "batch_retain": 64}
CASES: dict[str, dict[str, Any]] = {
    "fine-tune": {},
    "l1-sparse": {},
    "gradient-ascent": {},
    "neggrad-plus": {"alpha": 0.7},
    "scrub": {"alpha": 0.5, "milestones": []},
    "cf-k": {"k": 2},
}


def placed(images: IndexedImages) -> Images:
    return Images(to_model_input(images.all_images()), torch.from_numpy(images.labels))


@pytest.mark.parametrize("name", CASES)
def test_full_batches_give_the_same_weights(name: str) -> None:
    data = random_request()
    model = small_batch_norm_cnn().eval()
    method = build_method(name, SETTINGS | CASES[name])
    by_hand = copy.deepcopy(model)
    LOOPS[name](by_hand, Request(placed(data.forget), placed(data.retain), placed(data.heldout)), method)
    torch.testing.assert_close(flat(apply(method, model, data)), flat(by_hand), rtol=0, atol=1e-5)
    assert not torch.allclose(flat(by_hand), flat(model), rtol=0, atol=0.01)
