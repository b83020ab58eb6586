"""Our own models as rows: a deletion is what their level says, and costs what it says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from accelerate import Accelerator

from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.benchmark.designs import (
    Design,
    LegoNetDesign,
    SemiParametricDesign,
    SisaDesign,
    public_core,
)
from gen_unlearn.benchmark.networks import NetworkConfig
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.forget import ForgetSet
from gen_unlearn.methods.sisa import SisaConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.training.classification_config import ClassifierTrainingConfig

ENCODER = EncoderConfig(width=8, depth=0)
TRAINING = ClassifierTrainingConfig(images=3200, batch_size=32, warmup_images=200, learning_rate=2e-2)

DESIGNS: dict[str, Design] = {
    "SPM-C": SemiParametricDesign(encoder=ENCODER, key_dim=16, training=TRAINING),
    "SPM-R": SemiParametricDesign(
        vote="exemplars", core="public", encoder=ENCODER, key_dim=16, training=TRAINING
    ),
    "LegoNet": LegoNetDesign(
        encoder=ENCODER, adapters=AdaptersConfig(count=20, neighbours=4), training=TRAINING
    ),
    "SISA": SisaDesign(
        network=NetworkConfig(width=32),
        sisa=SisaConfig(shards=2, slices=2, epochs=8, batch_size=16, lr=0.2),
    ),
}


@cache
def _digits() -> tuple[IndexedImages, IndexedImages]:
    """500 images to train on, and 200 others."""
    digits = load_digits_images()
    order = np.random.default_rng(0).permutation(len(digits))
    return digits.select(order[:500]), digits.select(order[500:700])


def _request(design: Design, images: IndexedImages) -> ForgetSet:
    """Ten images that may be deleted."""
    deletable = np.flatnonzero(~design.core_of(images))
    return ForgetSet(images.ids[deletable[:10]], "test")


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_learns_deletes_and_keeps_its_promise(name: str) -> None:
    """Bit-exact ones answer as if trained without the images; joint weights do not, and say so."""
    images, unseen = _digits()
    design, accelerator = DESIGNS[name], Accelerator(cpu=True)
    forget = _request(design, images)
    trained = design.train(images, 3, accelerator=accelerator)
    before = trained.logits(unseen)
    assert before.shape == (200, 10)
    assert before.dtype == np.float64
    assert np.isfinite(before).all()
    assert (before.argmax(axis=1) == unseen.labels).mean() > 0.6
    cost = trained.delete(forget)
    after = trained.logits(unseen)
    assert cost.seconds > 0
    assert (cost.backward_samples > 0) == (name == "SISA")
    assert not np.array_equal(after, before)
    fresh = design.train(images.without(forget), 3, accelerator=accelerator).logits(unseen)
    assert np.array_equal(after, fresh) == (design.level == "bit-exact")
    assert design.level == ("exemplar-only" if name == "SPM-C" else "bit-exact")


@pytest.mark.parametrize("name", ["SPM-R", "LegoNet"])
def test_the_public_core_is_never_forgotten(name: str) -> None:
    """An image of the core in a request is an error, and the others of the request stay too."""
    images, unseen = _digits()
    design = DESIGNS[name]
    trained = design.train(images, 0, accelerator=Accelerator(cpu=True))
    before = trained.logits(unseen)
    core, request = images.ids[design.core_of(images)], _request(design, images)
    with pytest.raises(ValueError, match="1 of 11 images to forget are in the public core"):
        trained.delete(ForgetSet(np.concatenate([core[:1], request.ids]), "test"))
    np.testing.assert_array_equal(trained.logits(unseen), before)
    trained.delete(request)
    with pytest.raises(ValueError, match="nothing was deleted"):
        trained.delete(request)


def test_the_core_depends_on_each_image_alone() -> None:
    """About the share that is asked for; a deletion changes no other image's part."""
    images, _ = _digits()
    core = public_core(images, 0.3)
    assert core.mean() == pytest.approx(0.3, abs=0.07)
    np.testing.assert_array_equal(public_core(images.select(np.arange(100, 500)), 0.3), core[100:])
    assert not public_core(images, 0.0).any()
    assert not SisaDesign().core_of(images).any()
    assert not SemiParametricDesign().core_of(images).any()
    with pytest.raises(ValueError, match="core_fraction"):
        public_core(images, 1.0)


def test_another_seed_gives_another_model() -> None:
    """Weights and places follow from the seed."""
    images, unseen = _digits()
    design = DESIGNS["SISA"]
    one, two = (design.train(images, seed, accelerator=Accelerator(cpu=True)) for seed in (0, 1))
    assert not np.array_equal(one.logits(unseen), two.logits(unseen))
