"""Judging, reporting and sampling an adapter ensemble that generates, by the commands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, TINY_OVERRIDES, refused, run_command, works
from lora_runs import DeletedRun
from PIL import Image
from run_factory import snapshot
from two_processes import as_two

from gen_unlearn.adapters.records import Records
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_config
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder


@pytest.fixture(scope="module")
def deleted(tmp_path_factory: pytest.TempPathFactory) -> DeletedRun:
    return DeletedRun.make(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def judged(deleted: DeletedRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy of the run, evaluated with its oracle and reported on."""
    path = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(deleted.run.path, path)
    works("evaluate", path, "--oracle", deleted.oracle.path)
    works("report", path)
    return RunFolder.open(path)


@pytest.fixture(scope="module")
def masked(deleted: DeletedRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy of the run with an adapter that waits."""
    path = tmp_path_factory.mktemp("masked") / "run"
    shutil.copytree(deleted.run.path, path)
    run = RunFolder.open(path)
    name = ids_to_hex(run.exemplar_folder().ids)[0]
    forget(run, ForgetRequest(ids=(name,)).resolve(run).forget_set, rebuilding="later")
    return RunFolder.open(path)


def test_the_scorecard_speaks_of_adapters_alone(judged: RunFolder) -> None:
    card = Scorecard.from_file(judged.scorecard_path)
    texts = [*card.notes, *(f"{m.definition} {m.floor_definition}" for m in card.measures)]
    assert not [text for text in texts if "exemplar" in text]
    assert card.protocol["null_images_drawn"] == "without a class"
    assert card.value("membership_gap_loss_after") == 0
    names = {measure.name for measure in card.measures}
    assert {"adapter_copying_after", "before_after_w2", "visits_train", "visits_delete"} <= names


def test_two_processes_judge_and_sample_as_one(
    deleted: DeletedRun, judged: RunFolder, tmp_path: Path
) -> None:
    """Adapters are fit again, and images drawn: attacks, samples and images like one are shared."""
    run = Path(shutil.copytree(deleted.run.path, tmp_path / "run"))
    image = tmp_path / "query.png"
    Image.fromarray(deleted.run.exemplar_folder().all_rows().pixels[0, ..., 0]).save(image)
    like = ["--like", image, "--count", 3, "--set", "sampling.batch_size=2"]

    def work(_: int) -> None:
        found = run_command("evaluate", run, "--oracle", deleted.oracle.path)
        assert found.exit_code == 0, found.output
        found = run_command("sample", deleted.run.path, *like, "--out", tmp_path / "two")
        assert found.exit_code == 0, found.output

    assert run_command("sample", deleted.run.path, *like, "--out", tmp_path / "one").exit_code == 0
    as_two(work)
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    assert RunFolder(run).scorecard_path.read_bytes() == judged.scorecard_path.read_bytes()


def test_the_page_says_what_the_model_is(judged: RunFolder) -> None:
    page = judged.report_path.read_text(encoding="utf-8")
    assert "12 LoRA adapters of rank 4, 1 for each image" in page
    assert re.search(r"class-conditional UNet, trained on \d+ public images of the core, frozen", page)
    text = re.sub(r"<style.*?</style>|<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert re.findall(r".{30}(?<![_.])exemplars?\b(?!_).{30}", text) == []


def test_who_judges_or_samples_is_told_that_adapters_wait(masked: RunFolder, tmp_path: Path) -> None:
    found = run_command("sample", masked.path, "--out", tmp_path / "images", "--count", 1)
    assert found.exit_code == 0, found.output
    assert "note: 1 adapter waits to be rebuilt: images were drawn without it" in found.stderr
    works("evaluate", masked.path, "--set", "evaluation.membership.images=0")
    card = Scorecard.from_file(masked.scorecard_path)
    assert any(note.startswith("1 adapter waits") for note in card.notes)
    assert not any(measure.name.startswith("before_after") for measure in card.measures)


def test_images_like_an_image_come_from_the_adapters_nearest_to_it(
    deleted: DeletedRun, tmp_path: Path
) -> None:
    rows, shape = deleted.run.exemplar_folder().all_rows(), recipe_of(deleted.run).shape
    nearest = Records.of_rows(rows, shape.features)[1][:, 0]
    files = []
    for row in (0, int(np.flatnonzero(nearest != nearest[0])[0])):
        files.append(tmp_path / f"{row}.png")
        Image.fromarray(rows.pixels[row, ..., 0]).save(files[-1])
    folders = [tmp_path / name for name in ("first", "again", "other", "classed")]
    for folder, file in zip(folders, [files[0], files[0], files[1], files[0]], strict=True):
        classes = ["--class", "3"] if folder.name == "classed" else []
        facts = works("sample", deleted.run.path, "--like", file, "--count", 3, "--out", folder, *classes)
        assert facts["images"] == 3
    first, again, other, classed = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert first == again == other == ["null-00000.png", "null-00001.png", "null-00002.png", "sheet.png"]
    assert classed == ["3-00000.png", "3-00001.png", "3-00002.png", "sheet.png"]
    pictures = [(folder / "null-00000.png").read_bytes() for folder in folders[:3]]
    assert pictures[0] == pictures[1] != pictures[2]


def test_like_is_refused_of_other_models(deleted: DeletedRun, tmp_path: Path) -> None:
    run = train(load_config(CONFIGS / "digits_spm.yaml", [*TINY_OVERRIDES]), tmp_path / "spm")
    line = refused("sample", run.path, "--like", tmp_path / "x.png", "--out", tmp_path / "images")
    assert "expected --like with an adapter ensemble" in line
    assert not (tmp_path / "images").exists()
    missing = refused("sample", deleted.run.path, "--like", tmp_path / "x.png", "--out", tmp_path / "images")
    assert "x.png" in missing
