"""The one command that measures generators on CIFAR-10, and the benchmark's recipe: tiny, to their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CONFIGS, works
from small_cifar10 import SmallCifar10, write_small_cifar10

from evaluation.cifar10_generation import STAGES, main

COMPILED = [name for name in STAGES if "compiled" in name]
FAST = ["train SPM", "sampling cost", "deletions from SPM", "training speed of SPM, bf16"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SmallCifar10:
    return write_small_cifar10(tmp_path_factory.mktemp("cifar10"))


def measured(images: SmallCifar10, folder: Path, *options: str) -> dict[str, Any]:
    """Run the command tiny; return the result."""
    places = ["--source", images.train, "--test-source", images.test, "--out", folder, "--results", folder]
    main(["--tiny", *map(str, places), *options])
    found = json.loads((folder / "cifar10_generation.json").read_text())
    assert isinstance(found, dict)
    return found


def only(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def test_measures_what_is_left(images: SmallCifar10, tmp_path: Path) -> None:
    nothing = measured(images, tmp_path, "--minutes", "-1")
    assert nothing["found"] == {}
    assert nothing["left"] == list(STAGES)
    first = measured(images, tmp_path, *only(FAST))
    assert list(first["found"]) == FAST
    assert set(first["left"]) == set(STAGES) - set(FAST)
    assert "data.source" not in first["command"]
    assert set(first["recipes"]) >= {"cifar10_ddpm", "cifar10_lora"}
    rows = first["found"]["sampling cost"]["rows"]
    assert [row["exemplars_per_class"] for row in rows] == [2, 4, 20]
    assert [row["full_bank"] for row in rows] == [False, False, True]
    assert all(row["spm_seconds_per_image"] > 0 and row["ratio_to_ddpm"]["value"] > 0 for row in rows)
    deleted = first["found"]["deletions from SPM"]
    assert [row["removed"] for row in deleted["image"]["deletions"]] == [1, 1]
    assert [row["of"] for row in deleted["class"]["deletions"]] == [200, 180]
    assert [row["removed"] for row in deleted["tenth"]["deletions"]] == [20, 20]
    assert first["found"]["training speed of SPM, bf16"]["images_per_second"] > 0
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert measured(images, tmp_path, *only(FAST)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == parts
    path = next(iter(parts))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"made_from": "another recipe"}))
    assert len(measured(images, tmp_path, "--minutes", "-1")["found"]) == len(FAST) - 1


@pytest.mark.slow
def test_measures_everything(images: SmallCifar10, tmp_path: Path) -> None:
    skipped = [word for name in COMPILED for word in ("--skip", name)]
    found = measured(images, tmp_path, *skipped)
    assert found["left"] == COMPILED
    deletion = found["found"]["class deletion"]
    assert (deletion["class"], deletion["removed"], deletion["level"]) == ("automobile", 20, "exemplar-only")
    for name in ("retrain_gap", "gap_before", "noise_floor"):
        assert deletion[name]["judge"]["images"] == deletion[name]["judge"]["reference_images"] == 9 * 4
    for name in ("before", "after", "oracle"):
        assert deletion[name]["frechet"]["judge"]["images"] == 9 * 4
    ensemble = found["found"]["deletions of images from ensemble"]["image"]["deletions"]
    assert {row["level"] for row in ensemble} == {"bit-exact"}
    speeds = [part for name, part in found["found"].items() if name.startswith("training speed")]
    assert {(part["recipe"], part["precision"]) for part in speeds} == {
        (recipe, precision)
        for recipe in ("cifar10_ddpm", "cifar10_spm", "cifar10_spm_paper")
        for precision in ("float32", "bfloat16 autocast")
    }


@pytest.mark.slow
def test_the_benchmarks_recipe_runs_to_its_end(images: SmallCifar10, tmp_path: Path) -> None:
    """Every method and design once, on fewer images, with narrow networks."""
    recipe = yaml.safe_load((CONFIGS / "benchmarks" / "cifar10_generation.yaml").read_text())
    generator = recipe["generator"]
    generator["data"] |= {"source": str(images.train), "test_source": str(images.test)}
    generator["model"] |= {"block_out_channels": [32, 32, 32, 32], "attention_head_dim": 16}
    generator["training"] |= {
        "images": 64,
        "batch_size": 16,
        "warmup_images": 16,
        "checkpoint_images": 64,
        "dataloader_workers": 0,
    }
    generator["sampling"]["num_inference_steps"] = 2
    generator["evaluation"] = {"judge": {"epochs": 1, "width": 8}}
    few = {"steps": 2, "batch_retain": 8, "batch_forget": 8}
    sets = [entry["name"] for entry in recipe["forget_sets"]]
    for number, entry in enumerate(recipe["methods"]):
        name = entry["method"]
        entry.setdefault("sets", [sets[number % len(sets)]])
        own = {"batch_forget": 8} if name == "neggrad" else {"samples": 8} if name == "influence" else few
        entry["settings"] = entry.get("settings", {}) | own
        if name == "selective-amnesia":
            entry["settings"] |= {"sampler_steps": 2, "fisher_samples": 4, "replay_per_class": 2}
        if name == "sfr-on":
            entry["settings"] |= {"fisher_samples": 8}
    for entry in recipe["forget_sets"]:
        if entry["choose"]["kind"] == "random":
            entry["choose"]["count"] = 5
            entry["repeats"] = min(entry.get("repeats", 1), 3)
    for entry in recipe["designs"]:
        settings = entry["settings"]
        if settings["model"]["kind"] == "semi-parametric":
            settings["training"]["exemplars_per_class"] = [1, 3]
            settings["sampling"]["exemplars_per_class"] = 3
        else:
            settings["model"]["router"]["training"] |= {"images": 64, "batch_size": 16, "warmup_images": 16}
            settings["model"]["adapters"]["count"] = 4
            settings["model"]["adapters"]["lora"]["epochs"] = 1
    recipe["split"]["heldout"] = 40
    recipe["seeds"] = 1
    recipe["search"]["trials"] = 0
    recipe["measure"] = {"images_per_class": 2, "attacked_images": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    facts = works("benchmark", "--config", path, "--out", tmp_path / "out")
    assert facts["failed"] == []
