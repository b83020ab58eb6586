"""What the comparison of adapter ensembles compares, on a few random records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation import encoded_images
from evaluation.adapter_measuring import Plan, measure
from evaluation.adapter_systems import EnsembleSetting, RefitSetting, Setting, SisaSetting
from evaluation.encoded_images import EncodedImages, load_encoded, save_encoded
from evaluation.penalties import choose
from evaluation.sisa import SisaConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.repro import id_keys, numpy_generator

NAMES = ("a", "b", "c")
PLAN = Plan((5,), (2,), (2,), deletions=((3, 1), (2, 5)), fewer=((1, 3), (1, 10)), forgotten=1)


def records(count: int, name: str) -> Records:
    draws = numpy_generator(0, name)
    ids = draws.integers(0, 256, (count, 16), dtype=np.uint8)
    labels = draws.integers(0, len(NAMES), count)
    centres = 300 * numpy_generator(0, "centres").standard_normal((len(NAMES), 4))
    codes = (centres[labels] + 150 * draws.standard_normal((count, 4))).astype(np.int16)
    order = np.argsort(id_keys(ids))
    return Records(codes[order], labels[order], ids[order])


@pytest.fixture(scope="module")
def images() -> EncodedImages:
    public = records(60, "public")
    return EncodedImages(
        public, public.select(slice(0, 30)), records(80, "deletable"), records(50, "test"), NAMES, {"a": "b"}
    )


def settings(images: EncodedImages) -> dict[str, Setting]:
    return {
        "ridge": EnsembleSetting(images, RidgeHeads(), 5, 2),
        "SGD": EnsembleSetting(images, SgdHeads(epochs=2, batch_size=4), 5, 2),
        "published": EnsembleSetting(images, RidgeHeads(), 5, 2, noise=0.1),
        "SISA": SisaSetting(SisaConfig(2, 2, 2), len(NAMES)),
        "global ridge": RefitSetting(len(NAMES)),
    }


@pytest.mark.parametrize("name", ["ridge", "SGD", "SISA", "global ridge"])
def test_every_part_equals_a_fresh_fit_after_all_deletions(images: EncodedImages, name: str) -> None:
    penalty = 0.01 if name == "SGD" else 1.0
    found = measure(images, PLAN, [(settings(images)[name], penalty)], {}, name)
    equal, total = found["bit_identical"]
    assert equal == total > 0
    assert [stage["deleted"] for stage in found["stages"]] == [0, 3, 13]
    assert found["stages"][0]["to before"] == {"value": 0.0, "standard_error": 0.0}
    assert found["stages"][0]["test"]["value"] > 0.5
    assert found["class deletion"]["images"] > 5


def test_published_keys_do_not_come_from_what_is_left(images: EncodedImages) -> None:
    system = settings(images)["published"].build(images.deletable, 1.0, 0)
    sources = system.sources
    order = np.argsort(id_keys(sources))
    system.delete(sources[order][:2])
    assert system.facts()["keys of deleted images"] == 2
    assert system.parts() != system.fresh().parts()


def test_visits_of_a_deletion(images: EncodedImages) -> None:
    one = images.deletable.ids[:1]
    built = {name: setting.build(images.deletable, 1.0, 0) for name, setting in settings(images).items()}
    routed = built["SGD"].ensemble.routes[0]
    members = sum(len(built["SGD"].ensemble.members[adapter]) - 1 for adapter in routed.tolist())
    visits = {name: system.delete(one).visits for name, system in built.items()}
    assert visits["ridge"] == 2, "it reads the image once for each of its adapters"
    assert visits["SGD"] == 2 * members, "two epochs"
    assert visits["global ridge"] == len(images.deletable) - 1


def test_the_better_penalty_is_chosen(images: EncodedImages) -> None:
    setting = settings(images)["global ridge"]
    choice = choose([(setting, 1e12), (setting, 10.0)], images.tuning, len(images.deletable))
    assert choice.penalty == 10.0
    assert choice.accuracies[1] > choice.accuracies[0]


def test_codes_are_found_again(
    images: EncodedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = encoded_images.encoder_recipe("digits", None, None)
    monkeypatch.setattr(encoded_images, "CACHE", tmp_path)
    save_encoded(images, encoded_images.cache_path(config))
    again = load_encoded(config)
    assert again.deletable.digest == images.deletable.digest
    assert again.class_names == NAMES
    assert again.about == {"a": "b"}
