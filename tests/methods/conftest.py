"""A tiny trained classifier and requests for it, made once; a test that changes one of them fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from small_requests import class_request, random_request, small_batch_norm_cnn, small_mlp, trained
from torch import nn

from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state


@pytest.fixture(scope="session")
def request_data() -> UnlearnData:
    """12 random images to forget, 48 to retain, 30 held out; 4 x 4 grey pixels in three classes."""
    return random_request()


@pytest.fixture(scope="session")
def class_data() -> UnlearnData:
    """All 20 images of the first class to forget, the 40 of the others to retain, 30 held out."""
    return class_request()


@pytest.fixture(scope="session")
def tiny_mlp(request_data: UnlearnData) -> Iterator[nn.Module]:
    """An MLP that was trained on `request_data`, or as well on `class_data`; no test may change it."""
    yield from unchanged(trained(small_mlp(), request_data))


@pytest.fixture(scope="session")
def tiny_batch_norm_cnn(request_data: UnlearnData) -> Iterator[nn.Module]:
    """A CNN with batch normalisation, trained in the same way; no test may change it."""
    yield from unchanged(trained(small_batch_norm_cnn(), request_data))


@pytest.fixture(scope="session")
def cpu() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)


def unchanged(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and check at the end that it is what it was."""
    before = digest_state(model.state_dict())
    yield model
    assert digest_state(model.state_dict()) == before, "a test changed a model that all tests share"
