"""``gen-unlearn unlearn``: a new run by an approximate method, and what the other verbs say of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from command_line import CONFIGS, refused, run_command, tiny, works
from PIL import Image
from run_factory import make_run, random_images, unchanged
from torch import nn

from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.unlearn import carry_out
from gen_unlearn.commands.unlearn_plan import UnlearningPlan, plan_unlearning
from gen_unlearn.forget import ForgetSet
from gen_unlearn.judging.states import sample_states
from gen_unlearn.methods.search_space import Space
from gen_unlearn.methods.unlearn_data import Part
from gen_unlearn.repro import id_keys, ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.unlearned_runs import origin_of

FINE_TUNE = ("--method", "fine-tune", "--set", "batch_retain=16", "--set")
THREE = (*FINE_TUNE, "steps=2", "--class", "3")
CLASSIFIER = (
    "data.test_fraction=0.9",
    "model.kind=parametric",
    "model.encoder.width=4",
    "model.encoder.depth=0",
    "training.images=64",
    "training.batch_size=16",
    "training.warmup_images=16",
)


@dataclass(frozen=True)
class Shelf:
    """Runs that tests share and must not change: a generator, one unlearned from it, and its oracle."""

    plain: Path
    unlearned: Path
    oracle: Path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    root = tmp_path_factory.mktemp("unlearn")
    shelf = Shelf(root / "plain", root / "unlearned", root / "oracle")
    works("train", *tiny("digits_ddpm.yaml"), "--out", shelf.plain)
    with unchanged(shelf.plain):
        done = works("unlearn", shelf.plain, *THREE, "--out", shelf.unlearned, "--reason", "licence ended")
    assert (done["level"], done["reason"]) == ("approximate", "licence ended")
    recipe = shelf.unlearned / "recipe.yaml"
    works("train", "--config", recipe, "--without", shelf.unlearned, "--out", shelf.oracle)
    return shelf


def forgotten(run: Path) -> ForgetSet:
    return ForgetSet.from_classes(RunFolder.open(run).load_split().train, ["3"], "")


def test_the_manifest_and_the_receipt_say_what_was_done(shelf: Shelf) -> None:
    before, after = RunFolder.open(shelf.plain), RunFolder.open(shelf.unlearned)
    record, asked = after.manifest.unlearned, forgotten(shelf.plain)
    assert record is not None
    assert (record.method, record.seed, record.settings["steps"]) == ("fine-tune", 0, 2)
    assert (record.forward_samples, record.backward_samples, record.images) == (32, 32, len(asked))
    assert before.manifest.training is not None
    assert record.origin_weights == before.manifest.training.weights_digest
    assert after.state_digest() != before.state_digest() == after.undeleted_state_digest()
    assert before.manifest.unlearned is None
    [receipt] = after.receipts()
    assert (receipt.level, receipt.removed_per_class) == ("approximate", {"3": receipt.removed})
    assert receipt.forget_digest == record.forget_digest == after.forgotten().digest
    assert receipt.remaining == len(before.load_split().train) - receipt.removed
    assert "unlearned" in str(receipt).splitlines()[0]
    assert any("weights that were trained on the images" in left for left in receipt.left)


def test_no_id_and_no_pixels_of_the_forgotten_are_kept(shelf: Shelf) -> None:
    names = ids_to_hex(forgotten(shelf.plain).ids)
    for path in (path for path in shelf.unlearned.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(name.encode() in content for name in names), path
    assert works("verify", shelf.unlearned, "--residue")["passed"] is True


def test_info_and_verify_claim_nothing_exact(shelf: Shelf) -> None:
    facts = works("info", shelf.unlearned)
    assert (facts["level"], facts["deletions"]) == ("approximate", 1)
    assert facts["unlearned"]["method"] == "fine-tune"
    assert "level" not in works("info", shelf.plain)
    said = [check["said"] for check in works("verify", shelf.unlearned)["checks"]]
    assert any("approximate unlearning, which may have left traces" in text for text in said)
    assert "no exact deletion from it could be replayed" in refused("verify", shelf.unlearned, "--replay")


def test_verify_notices_other_weights(shelf: Shelf, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shelf.unlearned, tmp_path / "run"))
    shutil.copytree(shelf.plain / "model", run / "model", dirs_exist_ok=True)
    assert run_command("verify", run).exit_code == 1
    run = Path(shutil.copytree(shelf.unlearned, tmp_path / "again"))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["unlearned"]["method"] = "retraining"
    (run / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    assert run_command("verify", run).exit_code == 1


def test_evaluate_compares_before_and_after_with_the_oracle(shelf: Shelf, tmp_path: Path) -> None:
    shutil.copytree(shelf.plain, tmp_path / "plain")
    run = shutil.copytree(shelf.unlearned, tmp_path / "unlearned")
    quick = ("--set", "evaluation.membership.images=8", "--set", "evaluation.membership.attack.loss_draws=1")
    quick += ("--set", "evaluation.membership.attack.secmi_stride=50")
    card = works("evaluate", run, "--oracle", shelf.oracle, *quick)
    assert set(card["samples"]) == {"before", "after", "oracle"}
    assert card["protocol"]["forgotten_classes"] == ["3"]
    names = {measure["name"] for measure in card["measures"]}
    expected = {"fd_to_oracle", "forgotten_class_rate_after", "membership_gap_loss_after", "seconds_delete"}
    assert expected | {"membership_gap_loss_before"} <= names
    again = sample_states(RunFolder.open(run), []).states
    assert {state: path.name for state, path in again.items()}.items() <= card["samples"].items()
    assert again["before"] != again["after"]
    works("report", run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Approximate unlearning in an image generator" in html
    assert "images approximately unlearned from the weights of a class-conditional generator" in html
    assert works("sample", run, "--out", tmp_path / "images", "--count", 1)["images"] == 10


def test_the_origin_is_known_by_its_weights(shelf: Shelf, tmp_path: Path) -> None:
    run = shutil.copytree(shelf.unlearned, tmp_path / "unlearned")
    assert origin_of(RunFolder.open(run)) is None
    shutil.copytree(shelf.oracle, tmp_path / "plain")
    assert origin_of(RunFolder.open(run)) is None
    shutil.rmtree(tmp_path / "plain")
    shutil.copytree(shelf.plain, tmp_path / "plain")
    origin = origin_of(RunFolder.open(run))
    assert origin is not None
    assert origin.path == tmp_path / "plain"
    assert origin_of(origin) is None


def test_one_oracle_serves_every_method_and_a_seed_decides(shelf: Shelf, tmp_path: Path) -> None:
    runs = {seed: tmp_path / f"seed{number}" for number, seed in enumerate((0, 1))}
    for seed, out in runs.items():
        works("unlearn", shelf.plain, *THREE, "--seed", seed, "--out", out)
    digests = {path: RunFolder.open(path).state_digest() for path in (shelf.unlearned, *runs.values())}
    assert digests[runs[0]] == digests[shelf.unlearned] != digests[runs[1]]
    assert RunFolder.open(runs[1]).forgotten().digest == RunFolder.open(shelf.oracle).manifest.without


def test_every_way_to_ask(shelf: Shelf, tmp_path: Path) -> None:
    split = RunFolder.open(shelf.plain).load_split()
    few = ids_to_hex(split.train.ids[:2])
    (tmp_path / "list.txt").write_text(f"id\n{few[1]}\n")
    Image.fromarray(split.train.all_images()[2, ..., 0]).save(tmp_path / "one.png")
    asked = ("--id", few[0], "--list", tmp_path / "list.txt", "--image", tmp_path / "one.png")
    planned = works("unlearn", shelf.plain, *THREE[:-2], *asked, "--out", tmp_path / "new", "--dry-run")
    wanted = np.isin(id_keys(split.train.ids), id_keys(split.train.ids[:3]))
    assert sum(planned["would_forget"].values()) == int(wanted.sum())
    assert planned["would_retain"] == int((~wanted).sum())
    share = ("--fraction", 0.1, "--fraction-seed", 1)
    planned = works("unlearn", shelf.plain, *THREE[:-2], *share, "--out", tmp_path / "new", "--dry-run")
    assert sum(planned["would_forget"].values()) >= round(0.1 * len(np.unique(id_keys(split.train.ids))))
    assert not (tmp_path / "new").exists()
    held_out = ids_to_hex(split.test.ids[:1])
    asked = ("--id", held_out[0], "--out", tmp_path / "new")
    assert "held out" in refused("unlearn", shelf.plain, *THREE[:-2], *asked)


def test_mistakes_are_one_line_and_leave_nothing(shelf: Shelf, tmp_path: Path) -> None:
    new = ("--out", tmp_path / "new")
    with unchanged(tmp_path), unchanged(shelf.plain.parent):
        assert "did you mean fine-tune" in refused(
            "unlearn", shelf.plain, "--method", "fine-tun", "--class", 3, *new
        )
        assert "unknown key stepz" in refused(
            "unlearn", shelf.plain, *FINE_TUNE, "stepz=2", "--class", 3, *new
        )
        assert "expected steps" in refused("unlearn", shelf.plain, *FINE_TUNE, "steps=-1", "--class", 3, *new)
        assert "nothing is asked for" in refused("unlearn", shelf.plain, *THREE[:-2], *new)
        assert "class name" in refused("unlearn", shelf.plain, *THREE[:-1], "eleven", *new)
        assert "which exists" in refused("unlearn", shelf.plain, *THREE, "--out", shelf.oracle)
        assert "images that are retained" in refused(
            "unlearn", shelf.plain, *THREE[:-2], "--fraction", 1, *new
        )
        assert "unlearned before, with fine-tune" in refused("unlearn", shelf.unlearned, *THREE, *new)
        assert "the oracle" in refused("unlearn", shelf.oracle, *THREE, *new)
        assert "holds no run" in refused("unlearn", tmp_path, *THREE, *new)
        assert "did not move" in refused("unlearn", shelf.plain, *FINE_TUNE, "steps=0", "--class", 3, *new)
        assert "knows its images" in refused("unlearn", shelf.plain, "--data", "digits", *THREE, *new)
        wild = (*FINE_TUNE, "steps=1", "--set", "lr=1e30", "--class", 3)
        assert "output is not finite" in refused("unlearn", shelf.plain, *wild, *new)
        recipe = ("--config", shelf.plain / "recipe.yaml", "--out", shelf.unlearned)
        assert "holds another run" in refused("train", *recipe)


def test_a_run_that_is_not_trained_or_forgets_exactly_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(shelf.plain, tmp_path / "begun"))
    manifest = json.loads((begun / "manifest.json").read_text())
    (begun / "manifest.json").write_text(json.dumps(manifest | {"training": None}))
    assert "is not complete" in refused("unlearn", begun, *THREE, "--out", tmp_path / "new")
    exact = make_run(tmp_path / "exact", random_images(12, 0)).path
    assert f"gen-unlearn forget {exact}" in refused("unlearn", exact, *THREE, "--out", tmp_path / "new")


def test_a_changed_source_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shelf.plain, tmp_path / "run"))
    held_out = (run / "held_out.txt").read_text().splitlines(keepends=True)
    (run / "held_out.txt").write_text("".join(held_out[1:]))
    assert "was trained on" in refused("unlearn", run, *THREE, "--out", tmp_path / "new")


@dataclass(frozen=True)
class Broken:
    """A method that is stopped, or fails."""

    error: type[BaseException] = KeyboardInterrupt
    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = True

    def __call__(self, *_: object, **__: object) -> nn.Module:
        raise self.error("no more")

    @classmethod
    def search_space(cls) -> dict[str, Space]:
        return {}


class Stopped(UnlearningPlan[RunFolder]):
    """Ctrl-C comes when the model is written, and its receipt is being made."""

    @property
    def per_class(self) -> dict[str, int]:
        assert len(list(self.out.parent.glob(".new.unfinished/model/unet/*.safetensors"))) == 1
        raise KeyboardInterrupt


def test_an_interruption_leaves_no_half_run(shelf: Shelf, tmp_path: Path) -> None:
    run, settings = RunFolder.open(shelf.plain), ["steps=1", "batch_retain=8"]
    plan = plan_unlearning(run, "fine-tune", settings, ForgetRequest(classes=["3"]), tmp_path / "new")
    parts = (plan.origin, plan.name, plan.method, plan.forget, plan.data, plan.out)
    for error in (KeyboardInterrupt, ValueError):
        with unchanged(tmp_path), pytest.raises(error):
            carry_out(replace(plan, method=Broken(error)))
    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        carry_out(Stopped(*parts))
    carry_out(plan)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_parametric_classifier(tmp_path: Path) -> None:
    recipe = ["--config", CONFIGS / "digits_spm_classifier.yaml"]
    settings = [word for override in CLASSIFIER for word in ("--set", override)]
    run, new, oracle = tmp_path / "run", tmp_path / "new", tmp_path / "oracle"
    works("train", *recipe, *settings, "--out", run)
    words = ("--set", "epochs=1", "--class", "3")
    with unchanged(run):
        assert (
            works("unlearn", run, "--method", "neggrad-plus", *words, "--out", new)["level"] == "approximate"
        )
        assert "no held-out images" in refused(
            "unlearn", run, "--method", "scrub-rewind", "--class", "3", "--out", tmp_path / "other"
        )
    works("train", *recipe, *settings, "--set", "seed=1", "--without", new, "--out", oracle)
    card = works("evaluate", new, "--oracle", oracle)
    assert list(card["accuracy_per_class"]) == ["before", "after", "parametric"]
    works("report", new)
    html = (new / "report.html").read_text(encoding="utf-8")
    assert "Class 3 approximately unlearned from an image classifier" in html
    assert "its weights after neggrad-plus, an approximate unlearning method" in html
    assert works("verify", new)["passed"] is True
