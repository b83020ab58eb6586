"""Membership attacks on a run: which states they see, what tells these apart, and what is compared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_runs import Judged, delete, train_tiny
from PIL import Image
from run_factory import unchanged

from gen_unlearn.commands.evaluate import evaluate, find_deletion
from gen_unlearn.commands.oracles import find_oracles
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.judging.attacks import (
    ScoredImages,
    attack_model,
    pipelines_by_state,
    scaled_attack,
    with_likelihood_ratios,
)
from gen_unlearn.judging.evidence import Deletion, Evidence, of_classes
from gen_unlearn.judging.leakage import Leakage, measure_leakage
from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.metrics.denoiser_attacks import attack_scores
from gen_unlearn.metrics.likelihood_ratio import likelihood_ratio_score
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.runs import RunFolder

ATTACKS = ("loss", "secmi", "pia", "pian")
CONFIG = MembershipConfig(20, attack=AttackConfig((100, 200), loss_draws=1, secmi_stride=50))
QUIET = "x"


@pytest.fixture(scope="module")
def deletion(judged: Judged) -> Deletion:
    return find_deletion(judged.run, judged.run.load_split().train)


@pytest.fixture(scope="module")
def images(judged: Judged, deletion: Deletion) -> ScoredImages:
    return ScoredImages.choose(deletion, judged.run.load_split().test, 20)


@pytest.fixture(scope="module")
def threes_and_fours(judged: Judged) -> ScoredImages:
    """Images of the deleted class and of one that stays."""
    split = judged.run.load_split()
    return ScoredImages(
        *(
            data.select(np.concatenate([np.flatnonzero(data.labels == label)[:6] for label in (3, 4)]))
            for data in (split.train, split.test)
        )
    )


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray], rel: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for attack in one:
        np.testing.assert_allclose(one[attack], other[attack], rtol=rel, err_msg=attack)


def moved(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> np.ndarray:
    """Return which images have another score by any attack."""
    return np.any([~np.isclose(one[attack], other[attack], rtol=1e-4) for attack in ATTACKS], axis=0)


@pytest.fixture(scope="module")
def leaks(judged: Judged) -> list[Leakage]:
    """What is found with no oracle, with one and with two."""
    return [leak(judged.run, judged.oracles[:count]) for count in range(3)]


def leak(run: RunFolder, oracles: Sequence[RunFolder] = ()) -> Leakage:
    """Do what `evaluate` does, without samples and a judge."""
    split = run.load_split()
    evidence = Evidence({}, (), (), find_deletion(run, split.train), split.test)
    return measure_leakage(run, oracles, evidence, run.config.evaluation.membership)


def membership(found: Leakage | Scorecard) -> dict[str, float]:
    return {
        measure.name.removeprefix("membership_"): measure.value
        for measure in found.measures
        if measure.name.startswith("membership_")
    }


def names(attacks: Sequence[str], states: Sequence[str], rates: Sequence[str] = ("auc", "tpr")) -> set[str]:
    return {f"{rate}_{attack}_{state}" for rate in rates for attack in attacks for state in states}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_states_and_attacks_that_there_are(leaks: list[Leakage], count: int) -> None:
    found = leaks[count]
    states = ["before", "after", "random", "oracle"][: 4 if count else 3]
    compared = {0: [], 1: states[:3], 2: states}[count]
    expected = names(ATTACKS, states) | names(["likelihood_ratio"], compared)
    expected |= names(["clid"], ["before", "random"])
    gaps = (*ATTACKS, "likelihood_ratio")[: {0: 0, 1: 4, 2: 5}[count]]
    expected |= names(gaps, states[:3], ["gap"])
    assert membership(found).keys() == expected
    shown = [state.replace("random", "random removal") for state in states]
    curves = {name: list(by_state) for name, by_state in found.roc.items()}
    ratio = curves.pop("likelihood ratio", [])
    assert curves.pop("CLiD") == ["before", "random removal"], "where class 3 has exemplars"
    assert curves == dict.fromkeys(("loss", "SecMI", "PIA", "PIAN"), shown)
    assert ratio == shown[: len(compared)]
    assert any("had one oracle as reference" in note for note in found.notes) == (count == 1)
    assert any("rest on 20 held-out images only" in note for note in found.notes)
    for measure in found.measures:
        assert re.fullmatch(r"[A-Za-z][^\n]*[^.]\.", measure.definition)
        assert len(measure.definition) < 400
        if "_gap_" in measure.name:
            continue
        assert measure.floor == (0.5 if "_auc_" in measure.name else 0.01)
        assert measure.details["interval_low"] <= measure.value <= measure.details["interval_high"]
        assert "20 deleted against 20 held-out images of the same classes" in measure.definition


def test_the_gap_to_the_oracle_is_that_of_paired_scores(
    judged: Judged, images: ScoredImages, leaks: list[Leakage]
) -> None:
    found = {measure.name: measure for measure in leaks[2].measures}
    config = judged.run.config.evaluation.membership
    scores = [
        attack_model(model.load_pipeline(), images, config, QUIET)
        for model in (judged.run, judged.oracles[0])
    ]
    spread = 0.0
    for attack in ATTACKS:
        gap = found[f"membership_gap_{attack}_after"]
        areas = [found[f"membership_auc_{attack}_{state}"] for state in ("after", "oracle")]
        assert gap.value == pytest.approx(areas[0].value - areas[1].value, abs=1e-12)
        of_after, of_oracle = (of_model[attack] for of_model in scores)
        ranks = [np.subtract.outer(one[:20], one[20:]) > 0 for one in (of_after, of_oracle)]
        placements = [[rank.mean(axis=axis) for rank in ranks] for axis in (1, 0)]
        variance = sum(np.var(np.subtract(*both), ddof=1) / 20 for both in placements)
        assert gap.standard_error == pytest.approx(np.sqrt(variance) or 1 / 21, rel=1e-6)
        spread += variance
        assert (gap.floor, gap.floor_definition) == (0, "the oracle")
        assert "above 0 the weights remember more than retraining" in gap.definition
        before = found[f"membership_gap_{attack}_before"]
        assert "the weights and the exemplars" in before.definition
    assert spread > 0, "some attack ranks the images otherwise"


def test_a_class_that_makes_no_difference_is_not_asked_about(
    judged: Judged, deletion: Deletion, threes_and_fours: ScoredImages
) -> None:
    """Class 4 keeps its exemplars: of the two, only the deleted class is scored as without one."""
    states = pipelines_by_state(judged.run, deletion.images)
    scores = attack_model(states["after"], threes_and_fours, CONFIG, QUIET)
    np.testing.assert_array_equal(scores["clid"] == 0, threes_and_fours.labels == 3)
    alone = ScoredImages(*(data.select(data.labels == 3) for data in (deletion.images, deletion.images)))
    assert "clid" not in attack_model(states["after"], alone, CONFIG, QUIET)
    assert "clid" in attack_model(states["before"], alone, CONFIG, QUIET)


def test_an_evaluation_holds_what_was_found(judged: Judged, leaks: list[Leakage]) -> None:
    card, found = evaluate(judged.run, judged.oracles[:1]), leaks[1]
    assert membership(card) == membership(found)
    assert card.roc == found.roc
    assert set(found.notes) <= set(card.notes)


def test_only_a_class_whose_exemplars_changed_has_other_scores(
    judged: Judged, deletion: Deletion, threes_and_fours: ScoredImages
) -> None:
    threes = threes_and_fours.labels == 3
    scores = {
        state: attack_model(pipeline, threes_and_fours, CONFIG, QUIET)
        for state, pipeline in pipelines_by_state(judged.run, deletion.images).items()
    }
    assert list(scores) == ["before", "after", "random"]
    np.testing.assert_array_equal(moved(scores["before"], scores["after"]), threes)
    np.testing.assert_array_equal(moved(scores["before"], scores["random"]), ~threes)


def test_before_is_the_model_as_it_was_trained(
    judged: Judged, deletion: Deletion, threes_and_fours: ScoredImages, tmp_path: Path
) -> None:
    trained = train_tiny(tmp_path / "run").load_pipeline()
    states = pipelines_by_state(judged.run, deletion.images)
    assert_close(
        attack_model(states["before"], threes_and_fours, CONFIG, QUIET),
        attack_model(trained, threes_and_fours, CONFIG, QUIET),
        rel=0,
    )


def test_images_of_a_deleted_class_are_scored_under_the_null_token(
    judged: Judged, images: ScoredImages
) -> None:
    pipeline = judged.run.load_pipeline()
    schedule = pipeline.scheduler.alphas_cumprod
    expected = attack_scores(
        images.pixels,
        images.keys,
        lambda rows: pipeline.noise_predictor([None] * len(images.labels[rows])),
        schedule,
        scaled_attack(CONFIG.attack, len(schedule)),
    )
    assert_close(attack_model(pipeline, images, CONFIG, QUIET), expected, rel=0)


def test_random_removal_takes_as_many_others_and_nothing_on_disk(judged: Judged, deletion: Deletion) -> None:
    with unchanged(judged.run.path):
        states = pipelines_by_state(judged.run, deletion.images)
    before, after, random = (states[state].exemplars for state in ("before", "after", "random"))
    assert before.holds(deletion.images.ids).all()
    assert not after.holds(deletion.images.ids).any()
    assert random.holds(deletion.images.ids).all()
    assert before.holds(random.ids).all()
    assert len(random) == len(after) == len(before) - 91
    assert states["random"].unet is states["before"].unet


def test_no_random_removal_of_more_than_there_is(tmp_path: Path) -> None:
    run = delete(train_tiny(tmp_path / "run"), fraction=0.6)
    assert "random" not in pipelines_by_state(run, find_deletion(run, run.load_split().train).images)
    assert membership(leak(run)).keys() == names((*ATTACKS, "clid"), ["before", "after"])


def test_an_oracle_is_compared_with_the_other_oracles_alone() -> None:
    losses = np.random.default_rng(0).normal(size=(5, 12))
    scores = {state: {"loss": losses[row]} for row, state in enumerate(("after", "before", "oracle"))}
    oracles = [{"loss": losses[2]}, {"loss": losses[3]}, {"loss": losses[4]}]
    found = with_likelihood_ratios(scores, oracles)
    for state, first in (("after", 2), ("before", 2), ("oracle", 3)):
        expected = likelihood_ratio_score(scores[state]["loss"], losses[first:])
        np.testing.assert_array_equal(found[state]["likelihood_ratio"], expected)
    assert list(scores["after"]) == ["loss"], "the scores that were handed in are left alone"
    alone = with_likelihood_ratios(scores, oracles[:1])
    np.testing.assert_allclose(alone["after"]["likelihood_ratio"], losses[0] - losses[2])
    assert "likelihood_ratio" not in alone["oracle"]
    assert with_likelihood_ratios(scores, []) == scores


def test_the_likelihood_ratio_of_a_run_by_hand(
    judged: Judged, images: ScoredImages, leaks: list[Leakage]
) -> None:
    config = judged.run.config.evaluation.membership
    first, second = (
        attack_model(oracle.load_pipeline(), images, config, QUIET)["loss"] for oracle in judged.oracles[:2]
    )
    found = membership(leaks[2])
    ranked = np.subtract.outer((first - second)[:20], (first - second)[20:])
    assert found["auc_likelihood_ratio_oracle"] == pytest.approx((ranked > 0).mean(), abs=0.005)
    assert found["auc_likelihood_ratio_oracle"] != found["auc_loss_oracle"]


def test_held_out_images_are_of_the_deleted_classes_and_never_trained_on(
    judged: Judged, deletion: Deletion
) -> None:
    test = judged.run.load_split().test
    chosen = ScoredImages.choose(deletion, test, 20)
    assert len(chosen.data) == len(chosen.held_out) == 20
    assert set(chosen.labels.tolist()) == {3}
    everything = ScoredImages.choose(deletion, test, 10_000)
    assert (len(everything.data), len(everything.held_out)) == (91, (test.labels == 3).sum())
    everywhere = ScoredImages.choose(replace(deletion, images=deletion.retained), test, 100)
    assert np.bincount(everywhere.held_out.labels, minlength=10)[list(deletion.retained_classes)].min() > 8

    def joined(one: IndexedImages, other: IndexedImages) -> IndexedImages:
        return IndexedImages(
            np.concatenate([one.all_images(), other.all_images()]),
            np.concatenate([one.labels, other.labels]),
            np.concatenate([one.ids, other.ids]),
            one.class_names,
            (*one.names, *other.names),
        )

    threes = of_classes(test, [3])
    for trained in (deletion.images, deletion.retained):  # A separate source may hold the same files.
        overlapping = ScoredImages.choose(deletion, joined(trained, threes), 10_000)
        np.testing.assert_array_equal(np.sort(overlapping.held_out.ids, 0), np.sort(threes.ids, 0))
    nothing = ScoredImages.choose(deletion, deletion.images, 20)
    assert len(nothing.held_out) == 0


def save_pictures(folder: Path) -> None:
    """Write two classes of 24 pictures, each of them twice."""
    random = np.random.default_rng(0)
    for level, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            picture = Image.fromarray((110 * level + random.integers(0, 99, (8, 8))).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
            picture.save(folder / name / f"copy of {number}.png")


def test_a_folder_with_copies_that_people_clear_afterwards(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    save_pictures(source)
    where = (f"data.source={source}", "data.image_size=8", "data.channels=1", "training.batch_size=12")
    run = delete(train_tiny(tmp_path / "run", where), classes=("ant",))
    split = run.load_split()
    chosen = ScoredImages.choose(find_deletion(run, split.train), split.test, 100)
    assert len(chosen.data) == len(chosen.held_out) == 24, "12 of each, twice"
    keys = {row.tobytes() for row in chosen.data.ids}
    assert keys.isdisjoint(row.tobytes() for row in chosen.held_out.ids)
    assert membership(leak(run))
    shutil.rmtree(source / "ant")
    assert leak(run) == Leakage(
        notes=("Membership was not tested: the source no longer has the deleted images.",)
    )


def test_nothing_to_compare_with_is_said(tmp_path: Path) -> None:
    """A separate source of held-out images need not have the deleted class."""
    source = tmp_path / "pictures"
    save_pictures(source)
    held_out = Path(shutil.copytree(source / "bee", tmp_path / "held_out" / "bee")).parent
    for path in held_out.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    where = (
        f"data.source={source}",
        f"data.test_source={held_out}",
        "data.image_size=8",
        "data.channels=1",
        "training.batch_size=12",
    )
    assert leak(delete(train_tiny(tmp_path / "run", where), classes=("ant",))) == Leakage(
        notes=("Membership was not tested: no held-out image is of a deleted image's class.",)
    )


def test_switched_off_and_before_any_deletion(judged: Judged, tmp_path: Path) -> None:
    off = judged.run.with_overrides(["evaluation.membership.images=0"])
    assert leak(off, judged.oracles[:1]) == Leakage()
    for base in ("digits_spm.yaml", "digits_ddpm.yaml"):
        assert leak(train_tiny(tmp_path / base, base=base)) == Leakage()


def test_scores_do_not_depend_on_threads_or_batches(
    tiny_pipeline: SemiParametricDDPMPipeline, few_images: IndexedImages
) -> None:
    images = ScoredImages(few_images.select(np.arange(3)), few_images.select(np.arange(6, 9)))
    short = AttackConfig(loss_timesteps=(100, 200), loss_draws=1, secmi_timestep=20, secmi_stride=20)
    expected = attack_model(tiny_pipeline, images, MembershipConfig(attack=short), QUIET)
    torch.set_num_threads(2)
    try:
        found = [attack_model(tiny_pipeline, images, MembershipConfig(attack=short), QUIET)]
    finally:
        torch.set_num_threads(1)
    for batch_size in (1, 4):
        config = MembershipConfig(attack=replace(short, batch_size=batch_size))
        found.append(attack_model(tiny_pipeline, images, config, QUIET))
    for scores in found:
        np.testing.assert_allclose(scores.pop("secmi"), expected["secmi"], rtol=2e-3)  # It is near 0.
        np.testing.assert_allclose(scores.pop("clid"), expected["clid"], atol=1e-6)  # So is this.
        assert all(np.allclose(scores[name], expected[name], rtol=1e-4, atol=0) for name in scores)


def test_timesteps_are_scaled_to_the_schedule() -> None:
    usual = AttackConfig()
    assert scaled_attack(usual, 1000) == usual
    hundred = scaled_attack(usual, 100)
    assert hundred.loss_timesteps == (10, 15, 20, 25)
    assert (hundred.secmi_timestep, hundred.secmi_stride, hundred.pia_timestep) == (10, 1, 20)
    long = scaled_attack(usual, 4000)
    assert (long.secmi_timestep, long.secmi_stride, long.pia_timestep) == (400, 40, 800)


def pipeline_over(
    unet: SemiParametricUNet2DModel, data: IndexedImages, noise: NoiseConfig, sampler: str = "ddim"
) -> SemiParametricDDPMPipeline:
    scheduler = build_sampler(sampler, noise.build())  # type: ignore[arg-type]
    return SemiParametricDDPMPipeline(unet, scheduler, ExemplarStore.from_images(data))


@pytest.mark.parametrize("timesteps", [4, 10, 50, 1000])
def test_every_length_of_schedule_and_every_sampler(
    tiny_unet: SemiParametricUNet2DModel, few_images: IndexedImages, timesteps: int
) -> None:
    images = ScoredImages(few_images.select(np.arange(6)), few_images.select(np.arange(6, 12)))
    found = [
        attack_model(
            pipeline_over(tiny_unet, few_images, NoiseConfig(num_train_timesteps=timesteps), sampler),
            images,
            CONFIG,
            QUIET,
        )
        for sampler in ("ddim", "ddpm", "dpm-solver++")
    ]
    assert all(np.isfinite(scores).all() for scores in found[0].values())
    for other in found[1:]:
        assert_close(other, found[0], rel=0)


def test_a_model_that_predicts_velocity(
    tiny_unet: SemiParametricUNet2DModel, few_images: IndexedImages
) -> None:
    """Its noise is ``sqrt(a) v + sqrt(1 - a) x``."""
    noise = NoiseConfig(prediction_type="v_prediction")
    pipeline = pipeline_over(tiny_unet, few_images, noise)
    schedule = pipeline.scheduler.alphas_cumprod
    images = ScoredImages(few_images.select(np.arange(6)), few_images.select(np.arange(6, 12)))
    predict = pipeline.noise_predictor(images.labels.tolist(), CONFIG.exemplars_per_class, guidance_scale=1.0)

    def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        kept = schedule[timestep]
        return kept.sqrt() * predict(noisy, timestep) + (1 - kept).sqrt() * noisy

    expected = attack_scores(images.pixels, images.keys, lambda _: denoise, schedule, CONFIG.attack)
    found = attack_model(pipeline, images, CONFIG, QUIET)
    assert np.abs(found.pop("clid")).max() > 1e-5
    assert_close(found, expected, rel=1e-3)
    as_noise = attack_model(pipeline_over(tiny_unet, few_images, NoiseConfig()), images, CONFIG, QUIET)
    assert moved(found, as_noise).all()


def test_a_public_core_leaks_no_more_than_its_oracle(tmp_path: Path) -> None:
    """The weights never saw what was deleted: the oracle of the run's own seed is the run itself."""
    run = delete(train_tiny(tmp_path / "run", base="digits_public.yaml"), classes=("3",))
    found = membership(leak(run, find_oracles(run, tmp_path / "oracles", range(1))))
    for attack in ATTACKS:
        assert found[f"auc_{attack}_after"] == found[f"auc_{attack}_oracle"], attack
        assert found[f"gap_{attack}_after"] == 0, attack
    assert any(found[f"auc_{attack}_before"] != found[f"auc_{attack}_after"] for attack in ATTACKS)


def test_a_recipe_that_predicts_velocity(tmp_path: Path) -> None:
    run = delete(train_tiny(tmp_path / "run", ("noise.prediction_type=v_prediction",)), fraction=0.1)
    assert membership(leak(run)).keys() == names((*ATTACKS, "clid"), ["before", "after", "random"])
