"""The settings of an ensemble in a recipe."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from gen_unlearn.adapters.families import FAMILIES, AdaptersConfig
from gen_unlearn.adapters.family import Subtractable
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads


def test_heads_are_those_of_the_family_with_its_settings() -> None:
    ridge, sgd = RidgeHeads(7.0), SgdHeads(hidden=3)
    assert AdaptersConfig(ridge=ridge, sgd=sgd).heads is ridge
    assert AdaptersConfig(family="sgd", ridge=ridge, sgd=sgd).heads is sgd
    for name, family in FAMILIES.items():
        assert type(AdaptersConfig(family=name).heads) is family


def test_ridge_heads_alone_are_subtracted_from() -> None:
    assert isinstance(RidgeHeads(), Subtractable)
    assert not isinstance(SgdHeads(), Subtractable)


def test_a_recipe_in_plain_values_is_read() -> None:
    plain = {"count": 20, "neighbours": 3, "family": "sgd", "sgd": {"hidden": 16, "stack": 2}}
    config = TypeAdapter(AdaptersConfig).validate_python(plain)
    assert config == AdaptersConfig(20, 3, family="sgd", sgd=SgdHeads(hidden=16, stack=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "adapters.count from 1 to 32767, got 0"),
        ({"count": 32768}, "adapters.count from 1 to 32767, got 32768"),
        ({"neighbours": 0}, r"adapters.neighbours from 1 to adapters.count \(1000\), got 0"),
        ({"count": 4, "neighbours": 5}, r"adapters.count \(4\), got 5"),
        ({"minimum_batch": 0}, "minimum_batch of at least 1, got 0"),
        ({"keys": "training-samples"}, "adapters.keys out of public-samples"),
        ({"family": "tree"}, "adapters.family out of ridge, sgd, got 'tree'"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptersConfig(**settings)  # type: ignore[arg-type]


def test_bounds_are_within() -> None:
    assert AdaptersConfig(count=32767, neighbours=32767, minimum_batch=1).neighbours == 32767
    assert AdaptersConfig(count=1, neighbours=1).count == 1
