"""Recipes: what parses, what is refused and with which words, and what the digest covers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gen_unlearn.commands.demo import demo_config
from gen_unlearn.config import RunConfig, load_config, load_recipe, parse_config, with_overrides
from gen_unlearn.recipes import read_recipe, read_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS = CONFIGS / "digits_spm.yaml"


def digits(*overrides: str) -> RunConfig:
    return load_config(DIGITS, overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_parses_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    config = load_recipe(path)
    written = tmp_path / "recipe.yaml"
    written.write_text(config.to_yaml(), encoding="utf-8")
    assert load_recipe(written) == config
    assert load_recipe(written).digest == config.digest
    assert set(yaml.safe_load(config.to_yaml())["training"]) >= {"log_with", "weight_decay"}, (
        "all spelled out"
    )


def test_the_demo_runs_the_digits_recipe_for_seven_eighths_of_its_images() -> None:
    assert demo_config() == digits("training.images=84000")
    assert digits().training.images * 7 == 84_000 * 8


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("training.learning_rat", "did you mean learning_rate?"),
        ("trainin.images", "did you mean training?"),
        ("evaluation.judge.epoch", "did you mean epochs?"),
        ("sampling.zzz", "known keys: sampler, num_inference_steps"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(key: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match="unknown key") as refused:
        digits(f"{key}=1")
    unknown = key if not key.startswith("trainin.") else "trainin"
    assert f"{DIGITS}: unknown key {unknown}; {suggestion}" in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "training.images=many",
        "training.images=10.5",
        "training.images=[1]",
        "training.images=true",
        "training.images=null",
        "training.images=0",
        "training.learning_rate=fast",
        "training.learning_rate=true",
        "training.learning_rate=-1",
        "training.learning_rate=.nan",
        "training.warmup_images=-1",
        "training.mixed_precision=half",
        "training.exemplars_per_class=[1,2,3]",
        "training.exemplars_per_class=[5,2]",
        "training.exemplar_dropout=1.5",
        "training.horizontal_flip=maybe",
        "model.kind=gan",
        "model.block_out_channels=[8]",
        "noise.beta_schedule=cubic",
        "sampling.sampler=euler",
        "sampling.num_inference_steps=0",
        "sampling.num_inference_steps=1001",
        "evaluation.images_per_class=1",
        "evaluation.judge.width=wide",
        "data.test_fraction=2",
        "data.channels=2",
        "data=digits",
        "model=null",
        "seed=x",
    ],
)
def test_a_wrong_value_is_refused_by_name(override: str) -> None:
    key, _, given = override.partition("=")
    with pytest.raises(ValueError, match=key.rpartition(".")[2].replace("_", ".")) as refused:
        digits(override)
    message = str(refused.value)
    assert str(DIGITS) in message
    assert "\n" not in message
    if given.isalpha() and given not in ("null", "true"):
        assert given in message


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {source: digits}\n")
    with pytest.raises(ValueError, match=r"recipe.yaml: model: Field required"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.num_inference_steps=1001", "sampling.num_inference_steps (1001) is more than noise."),
        ("training.images=0", "training: images must be at least 1, got 0"),
        ("seed=x", "seed: Input should be a valid integer"),
    ],
)
def test_an_error_begins_with_its_place_if_it_has_one(override: str, message: str) -> None:
    with pytest.raises(ValueError, match="yaml: ") as refused:
        digits(override)
    assert str(refused.value).startswith(f"{DIGITS}: {message}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not a recipe"),
        ("- 1\n- 2\n", "is not a recipe"),
        ("data: [1\n", "is not YAML"),
        ("\0", "is not YAML"),
        ("data: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=expected):
        load_config(recipe)
    with pytest.raises(ValueError, match=r"there is no recipe .*gone.yaml"):
        load_config(tmp_path / "gone.yaml")


def test_overrides_reach_any_depth_and_are_read_as_yaml() -> None:
    config = digits(
        "training.images=2400",
        "training.exemplars_per_class=[2, 3]",
        "training.log_with=null",
        "evaluation.judge.epochs=3",
        "data.source=a=b",
        "data.image_size=8",
        "seed=7",
        "seed=8",
    )
    assert config.training.images == 2400
    assert config.training.exemplars_per_class == (2, 3)
    assert config.training.log_with is None
    assert config.evaluation.judge.epochs == 3
    assert config.evaluation.images_per_class == 100
    assert config.data.source == "a=b"
    assert config.seed == 8, "the last one counts"
    assert with_overrides(digits(), ["seed=8"]) == digits("seed=8")


@pytest.mark.parametrize("number", ["2e-3", "2.0e-3", "0.002", "2E-3"])
def test_floats_may_be_written_as_people_do(number: str) -> None:
    """YAML 1.1 reads ``2e-3`` as text."""
    config = digits(f"training.learning_rate={number}")
    assert config.training.learning_rate == 0.002
    assert config.digest == digits().digest
    assert isinstance(yaml.safe_load(config.to_yaml())["training"]["learning_rate"], float)


def test_a_precision_is_no_switch(tmp_path: Path) -> None:
    """YAML 1.1 reads ``no`` as false."""
    overridden = load_config(CONFIGS / "digits_spm.yaml", ["training.mixed_precision=no"])
    assert overridden.training.mixed_precision == "no"
    written = tmp_path / "recipe.yaml"
    written.write_text("training: {mixed_precision: no, compile: True}\n", encoding="utf-8")
    assert read_recipe(written)["training"] == {"mixed_precision": "no", "compile": True}
    assert parse_config(read_yaml(overridden.to_yaml()), "again") == overridden


@pytest.mark.parametrize("override", ["training.images", "=3", "training..images=3", ".a=1", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"expected --set section.key=value"):
        digits(override)


@pytest.mark.parametrize("override", ["training.images=[1", "seed={", "data.source='x", "seed=%"])
def test_an_override_that_is_no_yaml_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=override.partition("=")[0]):
        digits(override)


def test_a_value_is_no_section() -> None:
    with pytest.raises(ValueError, match=r"cannot set seed.low: seed is a value, not a section"):
        digits("seed.low=1")


@pytest.mark.parametrize(
    "override",
    [
        "data.test_fraction=0.3",
        "model.layers_per_block=1",
        "noise.num_train_timesteps=500",
        "training.images=240",
        "training.compile=true",
        "training.exemplar_refresh_steps=2",
        "seed=1",
    ],
)
def test_the_digest_covers_what_decides_the_model(override: str) -> None:
    assert digits(override).digest != digits().digest


@pytest.mark.parametrize(
    "override",
    [
        "training.exemplar_refresh_steps=1",
        "sampling.seed=1",
        "sampling.guidance_scale=2",
        "evaluation.images_per_class=5",
        "evaluation.judge.epochs=3",
    ],
)
def test_the_digest_leaves_out_what_does_not(override: str) -> None:
    assert digits(override).digest == digits().digest
