"""The command line from end to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Shop, heavy_imports, refused, run_command, tiny, tree, works
from PIL import Image

from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.batches import DiffusionBatch, DiffusionBatches

VERBS = [
    "demo",
    "train",
    "forget",
    "unlearn",
    "add",
    "verify",
    "sample",
    "evaluate",
    "report",
    "predict",
    "info",
]
READS_ONLY = {"info": ["--json"], "verify": ["--json"]}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop.open(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def run(shop: Shop, tmp_path: Path) -> Path:
    """A trained run of the test's own."""
    return Path(shutil.copytree(shop.fresh, tmp_path / "run"))


def test_the_main_job(shop: Shop, tmp_path: Path) -> None:
    run = shutil.copytree(shop.deleted, tmp_path / "run")
    card = works("evaluate", run, "--oracle", shop.oracle)
    assert {measure["name"] for measure in card["measures"]} >= {"fd_to_oracle", "forgotten_class_rate_after"}
    assert works("report", run) == {"report": str(run / "report.html")}
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "exemplar-only" in html
    assert "http" + "://" not in html.replace("http://www.w3.org", "")
    assert works("sample", run, "--out", tmp_path / "images", "--count", 2)["images"] == 18
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{c}-0000{i}.png" for c in range(10) if c != 3 for i in range(2)} | {"sheet.png"}
    with Image.open(tmp_path / "images" / "0-00000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    assert works("sample", run, "--out", tmp_path / "null", "--null", "--count", 3)["images"] == 3
    facts = works("info", run)
    assert facts["deletions"] == 1
    assert facts["evaluated"] is True
    assert facts["exemplars_per_class"]["3"] == 0
    assert "torch" in works("info")
    for verb in ("evaluate", "report", "info"):
        text = run_command(verb, run)
        assert text.exit_code == 0
        assert text.stdout.strip()


def test_every_way_to_ask_for_deletion(run: Path, tmp_path: Path) -> None:
    first = works("forget", run, "--class", "5", "--reason", "licence ended")
    assert first["level"] == "exemplar-only"
    assert (first["reason"], first["removed_per_class"]) == ("licence ended", {"5": first["removed"]})
    drawn = works("forget", run, "--fraction", 0.01, "--seed", 1)
    assert drawn["removed"] == round(0.01 * first["remaining"])
    held = load_ids(run)
    assert works("forget", run, "--id", held[0], "--id", held[1])["removed"] == 2
    (tmp_path / "list.txt").write_text(f"# two of them\nid\n{held[2]}\n{held[3].upper()}\n")
    assert works("forget", run, "--list", tmp_path / "list.txt", "--id", held[3])["removed"] == 2
    before = tree(run)
    asked = ["--class", "6", "--id", held[4]]
    preview = works("forget", run, *asked, "--dry-run", "--out", tmp_path / "preview")["would_remove"]
    assert tree(run) == before
    done = works("forget", run, *asked)
    assert done["removed_per_class"] == preview
    assert works("info", run)["deletions"] == 5
    assert sorted(path.name for path in (run / "receipts").iterdir()) == [f"000{n}.json" for n in range(1, 6)]


def load_ids(run: Path) -> list[str]:
    """Return ids that a run holds of classes other than 6."""
    store = RunFolder.open(run).load_exemplars()
    return ids_to_hex(store.ids[store.labels != 6])


def test_exit_code_and_streams_of_a_process(run: Path) -> None:
    command = [sys.executable, "-m", "gen_unlearn", "forget", str(run), "--class", "eleven"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("error: expected a class name")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_names_the_verb_and_its_options(verb: str) -> None:
    result = run_command(*filter(None, [verb, "--help"]))
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    expected = {"": VERBS, **READS_ONLY}.get(verb, ["--json", "--dry-run"])
    assert all(word in result.stdout for word in expected)


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'diffusers', 'numpy', 'pydantic', 'matplotlib'}"
    code = f"import sys, gen_unlearn.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_what_computes_nothing_imports_nothing_heavy(shop: Shop, tmp_path: Path) -> None:
    assert heavy_imports("info") == []
    assert heavy_imports("info", shop.deleted) == []
    assert heavy_imports("info", shop.plain, "--set", "sampling.seed=1") == []
    assert heavy_imports("verify", tmp_path) == []
    assert heavy_imports("forget", shop.fresh, "--class", "eleven") == []
    assert heavy_imports("forget", shop.fresh, "--class", "3", "--dry-run", "--out", tmp_path / "new") == []


@pytest.mark.parametrize("verb", ["train", "demo", "sample", "evaluate", "report"])
def test_a_dry_run_writes_nothing(shop: Shop, tmp_path: Path, verb: str) -> None:
    new, root = ["--out", tmp_path / "new"], shop.fresh.parent
    options = {"train": [*tiny(), *new], "demo": new, "sample": [shop.fresh, *new]}
    before = tree(root)
    works(verb, *options.get(verb, [shop.evaluated]), "--dry-run")
    assert tree(root) == before
    assert not any(tmp_path.iterdir())


def test_ctrl_c_then_the_same_command_gives_the_uninterrupted_weights(tmp_path: Path) -> None:
    steps = {"images": 400, "batch_size": 4, "exemplars_per_class": "[1, 1]", "checkpoint_images": 80}
    longer = [*tiny(), *(word for key in steps for word in ("--set", f"training.{key}={steps[key]}"))]
    whole = works("train", *longer, "--out", tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "gen_unlearn",
        "train",
        *map(str, longer),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    waited = time.monotonic()
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None
        assert time.monotonic() < waited + 120
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith(f"continue with: gen-unlearn train {tmp_path / 'run'}")
    assert "is not complete; continue it with: gen-unlearn train" in refused("evaluate", tmp_path / "run")
    assert works("train", tmp_path / "run")["weights_digest"] == whole["weights_digest"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_time_of_interrupted_parts_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DiffusionBatches.__getitem__

    def slow_then_interrupted(self: DiffusionBatches, index: int) -> DiffusionBatch:
        if index == 1:
            time.sleep(1)
            signal.raise_signal(signal.SIGINT)
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionBatches, "__getitem__", slow_then_interrupted)
        assert run_command("train", *tiny(), "--out", tmp_path / "run").exit_code == 130
    assert works("train", *tiny(), "--out", tmp_path / "run")["seconds_train"] > 1


def test_an_interrupted_oracle_can_be_continued_as_it_says(shop: Shop, tmp_path: Path) -> None:
    """Leave the manifest of an oracle as it is before training is complete."""
    oracle = Path(shutil.copytree(shop.oracle, tmp_path / "oracle"))
    manifest = (oracle / "manifest.json").read_text(encoding="utf-8")
    (oracle / "manifest.json").write_text(manifest[: manifest.index('"training"')] + '"training": null}')
    advice = refused("info", oracle).partition("continue it with: gen-unlearn ")[2]
    result = run_command(*advice.split())
    assert result.exit_code == 0, result.stderr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of photographs as people have them: three classes, all sizes, modes and formats."""
    random = np.random.default_rng(0)
    forms = [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg")]
    for level, name in enumerate(("cats & dogs", "fish", "zebra")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            height, width = random.integers(9, 40, 2)
            pixels = (80 * level + random.integers(0, 80, (height, width, 3))).astype(np.uint8)
            mode, suffix = forms[number % len(forms)]
            path = tmp_path / "pictures" / name / f"{number}.{suffix}"
            Image.fromarray(pixels).convert(mode).save(path)
    return tmp_path / "pictures"


def test_a_folder_of_pictures(pictures: Path, tmp_path: Path) -> None:
    source = [
        "--set",
        f"data.source={pictures}",
        "--set",
        "data.image_size=16",
        "--set",
        "data.test_fraction=0.25",
    ]
    run = tmp_path / "run"
    works("train", *tiny(), *source, "--set", "training.batch_size=12", "--out", run)
    assert works("info", run)["image_shape"] == [16, 16, 3]
    assert works("evaluate", run)["accuracy_per_class"]["before"].keys() == {"cats & dogs", "fish", "zebra"}
    held = [path for path in sorted((pictures / "fish").iterdir()) if can_be_asked(run, path, tmp_path)]
    assert len(held) == 9, "the rest is held out"
    assert works("forget", run, "--image", held[0])["removed_per_class"] == {"fish": 1}
    (tmp_path / "asked").mkdir()
    for path in held[1:3]:
        shutil.copy(path, tmp_path / "asked")
    assert works("forget", run, "--image", tmp_path / "asked")["removed"] == 2
    assert "are deleted before" in refused("forget", run, "--image", held[0])
    assert works("forget", run, "--class", "0")["removed_per_class"] == {"cats & dogs": 9}, "by index"
    works("evaluate", run)
    works("report", run)
    assert "cats &amp; dogs" in (run / "report.html").read_text(encoding="utf-8")
    assert works("sample", run, "--class", "fish", "--out", tmp_path / "new", "--count", 1)["images"] == 1


def can_be_asked(run: Path, picture: Path, folder: Path) -> bool:
    preview = run_command("forget", run, "--image", picture, "--dry-run", "--out", folder / "preview")
    return preview.exit_code == 0
