"""Tiny denoisers, made once; a test that changes one of them fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_denoising_models import small_denoising_model

from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.repro import digest_state


@pytest.fixture(scope="session")
def tiny_denoising_model() -> Iterator[DenoisingModel]:
    """Grey 4 x 4 images of three classes and a null label, as in `request_data`; no test may change it."""
    yield from _unchanged(small_denoising_model())


@pytest.fixture(scope="session")
def tiny_unconditional_model() -> Iterator[DenoisingModel]:
    """The same without classes; no test may change it."""
    yield from _unchanged(small_denoising_model(classes=0))


def _unchanged(model: DenoisingModel) -> Iterator[DenoisingModel]:
    before = digest_state(model.state_dict())
    yield model
    assert digest_state(model.state_dict()) == before, "a test changed a model that all tests share"
