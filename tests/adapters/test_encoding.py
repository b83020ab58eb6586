"""Records of an adapter ensemble: an image's own codes, statistics and keys of the core alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import CONFIGS

from gen_unlearn.adapters.encoding import block_codes, encode_records, images_cut_off, set_public_statistics
from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.adapters.recipe import ensemble_recipe
from gen_unlearn.adapters.records import LARGEST_CODE, STEPS, Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import route
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.config import load_recipe
from gen_unlearn.data import IndexedImages
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.repro import digest_state, id_keys, image_ids
from gen_unlearn.shards import Rows

NAMES = ("a", "b", "c")
COUNT, SIZE, ADAPTERS, NEIGHBOURS = 130, (8, 8), 7, 3


def images_of(seed: int, count: int = COUNT) -> IndexedImages:
    """Random images; row 3 is there twice, and rows 10 and 11 are one image in two classes."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 1), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 3
    images[count - 1], labels[count - 1] = images[3], labels[3]
    images[11] = images[10]
    return IndexedImages(images, labels, image_ids(images), NAMES, tuple(f"{row}" for row in range(count)))


def bare() -> AdapterBackbone:
    torch.manual_seed(0)
    architecture = encoder_architecture(EncoderConfig(width=8, depth=1), (1, *SIZE))
    return AdapterBackbone(architecture, ADAPTERS)


@pytest.fixture(scope="module")
def core() -> IndexedImages:
    return images_of(1)


@pytest.fixture(scope="module")
def backbone(core: IndexedImages) -> AdapterBackbone:
    made = bare()
    set_public_statistics(made, core, seed=4)
    return made


@pytest.fixture(scope="module")
def data() -> IndexedImages:
    return images_of(2)


@pytest.fixture(scope="module")
def rows(backbone: AdapterBackbone, data: IndexedImages) -> Rows:
    return encode_records(backbone, data, NEIGHBOURS, SIZE)


def test_records_are_features_and_routes(backbone: AdapterBackbone, data: IndexedImages, rows: Rows) -> None:
    features = backbone.encoder.out_dim
    assert rows.code_length == features + NEIGHBOURS
    records, routes = Records.of_rows(rows, features)
    assert len(records) == COUNT - 1, "a repeated image counts once, one in two classes twice"
    order = np.lexsort((records.labels, id_keys(records.ids)))
    assert np.array_equal(order, np.arange(len(records)))
    assert np.array_equal(routes, route(records.codes, backbone.public_keys(), NEIGHBOURS))
    row = int(np.flatnonzero((records.ids == data.ids[5]).all(axis=1))[0])
    codes = block_codes(backbone, data.images[np.array([5])])
    assert np.array_equal(records.codes[row], codes[0])


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, COUNT])
def test_codes_do_not_depend_on_the_company(
    backbone: AdapterBackbone, data: IndexedImages, rows: Rows, size: int
) -> None:
    chosen = np.random.default_rng(size).permutation(COUNT)[:size]
    alone = encode_records(backbone, data.select(chosen), NEIGHBOURS, SIZE)
    assert alone.codes is not None
    assert rows.codes is not None
    whole = dict(zip(zip(map(bytes, rows.ids), rows.labels.tolist(), strict=True), rows.codes, strict=True))
    for name, label, codes in zip(map(bytes, alone.ids), alone.labels.tolist(), alone.codes, strict=True):
        assert np.array_equal(codes, whole[name, label])


def test_the_core_is_standardised(backbone: AdapterBackbone, core: IndexedImages) -> None:
    parts = [core.images[np.arange(start, min(start + 64, COUNT))] for start in range(0, COUNT, 64)]
    codes = np.concatenate([block_codes(backbone, part) for part in parts]).astype(np.float64)
    distinct = np.unique(id_keys(core.ids), return_index=True)[1]
    assert np.abs(codes[distinct].mean(axis=0)).max() < 1
    spread = codes[distinct].std(axis=0)
    assert spread.max() < 1.01 * STEPS
    assert np.median(spread) > 0.99 * STEPS
    assert {code.tobytes() for code in backbone.public_keys().codes} <= {
        code.astype(np.int16).tobytes() for code in codes
    }


def test_order_and_repetition_of_the_core_change_nothing(
    core: IndexedImages, backbone: AdapterBackbone
) -> None:
    shuffled = core.select(np.random.default_rng(0).permutation(np.r_[np.arange(COUNT), 5, 6, 7]))
    other = bare()
    set_public_statistics(other, shuffled, seed=4)
    assert digest_state(other.state_dict()) == digest_state(backbone.state_dict())
    reseeded = bare()
    set_public_statistics(reseeded, core, seed=5)
    assert reseeded.public_keys().digest != backbone.public_keys().digest


def test_a_feature_that_hardly_varies_decides_no_distance(core: IndexedImages) -> None:
    dead = bare()
    convolution = [
        part for part in dead.encoder.modules() if hasattr(part, "weight") and part.weight.ndim == 1
    ][-1]
    with torch.no_grad():
        convolution.weight[0] = 0
    set_public_statistics(dead, core, seed=4)
    assert dead.deviation.min() > 0
    assert dead.deviation.min() >= 0.099 * dead.deviation.square().mean().sqrt()


def test_far_images_are_cut_off_and_it_is_said(
    backbone: AdapterBackbone, data: IndexedImages, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_records(backbone, data, NEIGHBOURS, SIZE)
    assert "cut off" not in capsys.readouterr().err
    tight = bare()
    tight.load_state_dict(backbone.state_dict())
    tight.deviation.div_(1000)
    found = encode_records(tight, data, NEIGHBOURS, SIZE)
    assert found.codes is not None
    assert np.abs(found.codes.astype(int)).max() == 32767
    assert f"of {COUNT - 1} images" in capsys.readouterr().err


def test_images_that_are_cut_off_are_counted_and_no_filling(
    backbone: AdapterBackbone, data: IndexedImages
) -> None:
    tight = bare()
    tight.load_state_dict(backbone.state_dict())
    tight.deviation.div_(1000)
    for count in (1, 5, 64):
        codes = block_codes(tight, data.images[np.arange(count)])
        assert images_cut_off(codes) == (np.abs(codes) == LARGEST_CODE).any(axis=1).sum() > 0
    assert images_cut_off(block_codes(backbone, data.images[np.arange(5)])) == 0


def test_a_recipe_of_an_ensemble(backbone: AdapterBackbone) -> None:
    config = load_recipe(CONFIGS / "digits_adapters.yaml")
    assert isinstance(config, ClassifierRunConfig)
    adapters = AdaptersConfig(count=ADAPTERS, neighbours=2, ridge=RidgeHeads(penalty=3.0))
    config = replace(config, model=replace(config.model, adapters=adapters), seed=9)
    recipe = ensemble_recipe(config, backbone.public_keys(), NAMES)
    assert (recipe.neighbours, recipe.seed, recipe.class_names) == (2, 9, NAMES)
    assert recipe.family == RidgeHeads(penalty=3.0)
    assert recipe.shape == (backbone.encoder.out_dim, 3)
