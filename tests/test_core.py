"""The core: what the weights are fit on, and that nothing else leaves a trace in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, TINY_OVERRIDES, refused, tiny

from gen_unlearn.commands.fit import fit
from gen_unlearn.commands.train import train
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreConfig, split_core
from gen_unlearn.data import IndexedImages, Split, load_digits_images
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import id_keys, ids_to_hex
from gen_unlearn.runs import RunFolder

RESULTS = Path(__file__).parents[1] / "evaluation" / "results"
PUBLIC = CoreConfig("public")


def recipe(*overrides: str, base: str = "digits_spm.yaml") -> RunConfig:
    return load_config(CONFIGS / base, [*TINY_OVERRIDES, *overrides])


def names(data: IndexedImages) -> set[str]:
    return set(ids_to_hex(data.ids))


# --- the division


@pytest.fixture(scope="module")
def digits() -> IndexedImages:
    return load_digits_images()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_image_is_core_or_deletable(digits: IndexedImages, fraction: float, seed: int) -> None:
    parts = split_core(digits, CoreConfig("public", fraction, seed))
    assert names(parts.core).isdisjoint(names(parts.deletable))
    assert names(parts.core) | names(parts.deletable) == names(digits)
    assert len(parts.core) + len(parts.deletable) == len(digits)
    assert parts.core.class_names == parts.deletable.class_names == digits.class_names
    of_class = np.bincount(digits.labels)
    shares = np.bincount(parts.core.labels, minlength=10) / of_class
    np.testing.assert_allclose(shares, fraction, atol=1.01 / of_class.min())


def test_the_choice_depends_on_the_seed_and_the_ids_alone(digits: IndexedImages) -> None:
    parts = split_core(digits, PUBLIC)
    shuffled = digits.select(np.random.default_rng(0).permutation(len(digits)))
    again = split_core(shuffled, PUBLIC)
    assert names(again.core) == names(parts.core)
    assert again.digest == parts.digest
    other = split_core(digits, replace(PUBLIC, seed=1))
    assert names(other.core) != names(parts.core)
    assert other.digest != parts.digest
    larger = split_core(digits, replace(PUBLIC, fraction=0.7))
    assert names(larger.core) > names(parts.core)


def test_a_joint_core_is_both(digits: IndexedImages) -> None:
    parts = split_core(digits, CoreConfig())
    assert parts.core is parts.deletable is digits
    assert parts.digest == digits.digest
    assert parts.digest != split_core(digits, PUBLIC).digest


@pytest.mark.parametrize("unseen", [("3",), ("0", "7", "9")])
def test_an_unseen_class_has_no_image_in_the_core(digits: IndexedImages, unseen: tuple[str, ...]) -> None:
    parts = split_core(digits, CoreConfig("public", unseen_classes=unseen))
    labels = [int(name) for name in unseen]
    assert not np.isin(parts.core.labels, labels).any()
    assert np.isin(digits.labels, labels).sum() == np.isin(parts.deletable.labels, labels).sum()
    others = names(split_core(digits, PUBLIC).core)
    assert names(parts.core) == others - {
        name for name, label in zip(ids_to_hex(digits.ids), digits.labels, strict=True) if label in labels
    }
    assert parts.core.class_names == digits.class_names


def test_an_unseen_class_that_does_not_exist_is_named(digits: IndexedImages) -> None:
    with pytest.raises(ValueError, match=r"got 'eleven'; the classes are"):
        split_core(digits, CoreConfig("public", unseen_classes=("eleven",)))


def test_a_core_that_was_chosen_before_stays(digits: IndexedImages) -> None:
    """Images that came to the source, or left it, move no other image."""
    smaller = digits.select(np.arange(1000))
    before = split_core(smaller, PUBLIC)
    now = split_core(digits, replace(PUBLIC, fraction=0.2, seed=9), before.core.ids)
    assert names(now.core) == names(before.core)
    assert names(now.deletable) == names(digits) - names(before.core)


def test_copies_of_an_image_are_on_one_side(few_images: IndexedImages) -> None:
    twice = few_images.select(np.append(np.arange(30), np.arange(30)))
    twice.labels[30:] = (twice.labels[30:] + 1) % 3
    parts = split_core(twice, PUBLIC)
    assert names(parts.core).isdisjoint(names(parts.deletable))
    assert len(parts.core) == 2 * len(names(parts.core)) == 30


# --- recipes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["core.mod=public"], "unknown key core.mod; did you mean mode?"),
        (["core.colour=red"], "unknown key core.colour"),
        (["core.mode=private"], "core.mode"),
        (["core.mode=public", "core.fraction=0"], "core.fraction above 0 and below 1, got 0"),
        (["core.mode=public", "core.fraction=1"], "core.fraction above 0 and below 1, got 1"),
        (["core.fraction=-0.5"], "core.fraction"),
        (["core.mode=public", "core.fraction=.nan"], "core.fraction must be finite"),
        (["core.mode=public", "core.fraction=half"], "core.fraction"),
        (["core.mode=public", "core.fraction=true"], "core.fraction is not a switch"),
        (["core.mode=public", "core.seed=x"], "core.seed"),
        (["core.unseen_classes=['3']"], "core.unseen_classes needs core.mode public"),
        (["core.mode=public", "model.kind=class-conditional"], "core.mode public needs a semi-parametric"),
        (["core=public"], "core"),
    ],
)
def test_a_core_that_cannot_be_is_refused(overrides: Sequence[str], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.").replace("?", r"\?")) as error:
        recipe(*overrides)
    assert "\n" not in str(error.value)


def test_a_core_is_read_and_written() -> None:
    settings = ("core.mode=public", "core.fraction=0.3", "core.seed=4", "core.unseen_classes=['3', '5']")
    assert recipe(*settings).core == CoreConfig("public", 0.3, 4, ("3", "5"))
    assert recipe().core == CoreConfig("joint")


def test_a_core_that_cannot_be_leaves_no_folder(tmp_path: Path) -> None:
    public = ["--set", "core.mode=public", "--out", tmp_path / "new"]
    assert "batch_size" in refused("train", *tiny(), *public, "--set", "core.fraction=0.02")
    assert "'eleven'" in refused("train", *tiny(), *public, "--set", "core.unseen_classes=[eleven]")
    assert list(tmp_path.iterdir()) == []


def recorded() -> dict[str, str]:
    """Return the digests of recipes that results were recorded with before there was a core."""
    generation = json.loads((RESULTS / "digits_generation.json").read_text(encoding="utf-8"))
    return {f"{name} of digits_generation": digest for name, digest in generation["recipes"].items()}


@pytest.mark.parametrize("name", recorded())
def test_recipes_without_a_core_are_the_recipes_they_were(name: str) -> None:
    config = load_config(CONFIGS / f"{name.split()[0]}.yaml")
    assert config.digest == recorded()[name]
    assert replace(config, core=CoreConfig("joint", 0.1, 7)).digest == config.digest, "it decides nothing"


def test_every_value_of_a_public_core_is_part_of_the_recipe() -> None:
    cores = [
        CoreConfig("joint"),
        PUBLIC,
        replace(PUBLIC, fraction=0.4),
        replace(PUBLIC, seed=1),
        replace(PUBLIC, unseen_classes=("3",)),
    ]
    config = recipe()
    assert len({replace(config, core=core).digest for core in cores}) == len(cores)


# --- what a deletion promises


@pytest.mark.parametrize(("core", "level"), [("joint", "exemplar-only"), ("public", "bit-exact")])
def test_the_core_decides_the_promise_also_of_a_saved_pipeline(
    tiny_unet: SemiParametricUNet2DModel, few_images: IndexedImages, tmp_path: Path, core: str, level: str
) -> None:
    sampler = build_sampler("ddim", NoiseConfig().build())
    pipeline = SemiParametricDDPMPipeline(tiny_unet, sampler, ExemplarStore.from_images(few_images), core)
    pipeline.save_pretrained(tmp_path / "model", include_exemplars=True)
    loaded = SemiParametricDDPMPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert loaded.config.core == core
    receipts = [one.delete(ForgetSet(few_images.ids[:2], "test")) for one in (pipeline, loaded)]
    assert [receipt.level for receipt in receipts] == [level, level]
    assert receipts[0].artefact == receipts[1].artefact
    loaded.save_pretrained(tmp_path / "bare")
    bare = SemiParametricDDPMPipeline.from_pretrained(tmp_path / "bare", local_files_only=True)
    assert (bare.config.core, bare.exemplars) == (core, None)


def test_an_unknown_core_is_refused(tiny_unet: SemiParametricUNet2DModel) -> None:
    with pytest.raises(ValueError, match="expected a core out of joint, public, got 'private'"):
        SemiParametricDDPMPipeline(tiny_unet, build_sampler("ddim", NoiseConfig().build()), core="private")


def test_deleting_from_a_public_core_equals_never_having_held_in_every_byte(
    digits_split: Split, tmp_path: Path
) -> None:
    """The promise itself: delete and save, or fit with fewer exemplars, and compare every file."""
    parts = split_core(digits_split.train.select(np.arange(200)), PUBLIC)
    config = recipe("core.mode=public")
    gone = ForgetSet(parts.deletable.ids[:7], "test")
    pipeline, _ = fit(config, parts.core, parts.deletable)
    pipeline.delete(gone)
    pipeline.save_pretrained(tmp_path / "deleted", include_exemplars=True)
    never, _ = fit(config, parts.core, parts.deletable.without(gone))
    never.save_pretrained(tmp_path / "never", include_exemplars=True)
    assert files_of(tmp_path / "deleted") == files_of(tmp_path / "never")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --- runs


def weights_of(run: RunFolder) -> bytes:
    return (run.model_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_weights_do_not_depend_on_the_deletable_images(tmp_path: Path) -> None:
    """Train a run, and its oracle: another set of deletable images, and the same weights file."""
    config = recipe("core.mode=public")
    run = train(config, tmp_path / "run")
    deletable = run.split_core(run.load_split().train).deletable
    assert len(run.core_ids) + len(deletable) == len(run.load_split().train)
    assert set(id_keys(run.load_exemplars().ids)) == set(id_keys(deletable.ids))
    gone = ForgetSet.from_fraction(deletable, 0.6, seed=0)
    oracle = train(config, tmp_path / "oracle", gone, run)
    assert len(oracle.exemplar_folder()) == len(run.exemplar_folder()) - len(gone)
    assert weights_of(oracle) == weights_of(run)
    assert np.array_equal(np.sort(id_keys(oracle.core_ids)), np.sort(id_keys(run.core_ids)))
    joint = train(recipe(), tmp_path / "joint")
    other = train(recipe(), tmp_path / "joint oracle", gone, joint)
    assert weights_of(other) != weights_of(joint), "those of a joint core do"
    assert weights_of(joint) != weights_of(run)


def test_a_run_is_not_trained_without_images_of_its_public_core(tmp_path: Path) -> None:
    config = recipe("core.mode=public")
    run = train(config, tmp_path / "run")
    gone = ForgetSet(run.core_ids[:1], "test")
    with pytest.raises(ValueError, match="got some of the public core"):
        train(config, tmp_path / "oracle", gone, run)
    assert not (tmp_path / "oracle").exists()
