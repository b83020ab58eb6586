"""The one command that measures generators on CIFAR-10, and the benchmark's recipe: tiny, to their end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import CONFIGS, works
from small_cifar10 import SmallCifar10, write_small_cifar10

from evaluation.cifar10_generation import STAGES, main
from gen_unlearn.processes import process_state
from gen_unlearn.training import compilation

COMPILED = [name for name in STAGES if "compiled" in name]
FAST = ["train SPM", "sampling cost", "deletions from SPM", "training speed of SPM, bf16"]
NARROW = (
    "model.block_out_channels=[8,8,8,8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "model.layers_per_block=1",
)
SMALLEST = (
    *NARROW,
    "model.block_out_channels=[8]",
    "model.down_block_types=[DownBlock2D]",
    "model.up_block_types=[UpBlock2D]",
)
RECIPE_OF = {
    "DDPM": "cifar10_ddpm",
    "SPM": "cifar10_spm",
    "SPM with a public core": "cifar10_spm_public",
    "ensemble": "cifar10_lora",
    "38 M": "cifar10_spm_paper",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SmallCifar10:
    return write_small_cifar10(tmp_path_factory.mktemp("cifar10"))


def words(images: SmallCifar10, folder: Path, *options: object) -> list[str]:
    places = ["--source", images.train, "--test-source", images.test, "--out", folder]
    return ["--tiny", *map(str, [*places, *options])]


def result_in(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "cifar10_generation.json").read_text())
    assert isinstance(found, dict)
    return found


def measured(images: SmallCifar10, folder: Path, *options: object) -> dict[str, Any]:
    """Run the command tiny; return the result."""
    main(words(images, folder, *options))
    return result_in(folder)


def refused(images: SmallCifar10, folder: Path, *options: object) -> str:
    """Run the command tiny, which must end with a message; return it."""
    with pytest.raises(SystemExit) as stopped:
        main(words(images, folder, *options))
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def each(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


NARROWED = each("--set", list(NARROW))


def test_measures_what_is_left(images: SmallCifar10, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nothing = measured(images, out, "--minutes", "-1", *NARROWED)
    assert nothing["found"] == nothing["failed"] == {}
    assert nothing["left"] == list(STAGES)
    assert nothing["tiny"]
    assert nothing["command"] == (
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m evaluation.cifar10_generation "
        f"--source TRAIN --test-source TEST --tiny {shlex.join(NARROWED)}"
    )
    fast = [*each("--only", FAST), *NARROWED]
    first = measured(images, out, *fast)
    assert list(first["found"]) == FAST
    assert set(first["left"]) == set(STAGES) - set(FAST)
    assert set(first["recipes"]) == set(RECIPE_OF.values())
    assert str(images.train.parent) not in json.dumps(first)
    assert str(tmp_path) not in json.dumps(first)
    for name in FAST:
        check(name, first["found"][name], first["recipes"])
    parts = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert measured(images, out, *fast) == first
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == parts
    other = ("--minutes", "-1", *NARROWED, "--set", "seed=1")
    assert "move it away, or choose another --results" in refused(images, out, *other)
    assert "choose another --out" in refused(images, out, *other, "--results", tmp_path / "other")
    assert "--out; move it away" in refused(images, tmp_path / "other", *other, "--results", out)
    assert result_in(out) == first
    next(iter(parts)).unlink()
    (out / "cifar10_generation.json").unlink()
    assert len(measured(images, out, "--minutes", "-1", *NARROWED)["found"]) == len(FAST) - 1


def test_a_stage_that_fails_is_noted_and_the_others_go_on(
    images: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no compiler found")

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "COMPILER", broken)
    bad, good = "training speed of DDPM, compiled", "training speed of DDPM, fp32"
    smallest = each("--set", list(SMALLEST))
    assert bad in refused(images, tmp_path, "--only", bad, "--only", good, *smallest)
    result = result_in(tmp_path)
    assert list(result["found"]) == [good]
    assert list(result["failed"]) == [bad]
    assert "no compiler found" in result["failed"][bad]
    assert bad in refused(images, tmp_path, "--minutes", "-1", *smallest)
    assert result_in(tmp_path) == result
    torch._dynamo.reset()


def test_where_images_lie_is_no_setting(images: SmallCifar10, tmp_path: Path) -> None:
    assert "expected --source" in refused(images, tmp_path, "--set", f"data.source={images.train}")


def test_what_adapters_need_on_cuda_is_asked_for_first(
    images: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_state(), "device", torch.device("cuda"))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert refused(images, tmp_path / "out").startswith("expected CUBLAS_WORKSPACE_CONFIG=:4096:8")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_measures_compiled_training(
    images: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler makes of the graph takes minutes on a CPU, and is tested with smaller networks."""
    monkeypatch.setattr(compilation, "COMPILER", "eager")
    name = "training speed of SPM, compiled"
    result = measured(images, tmp_path, "--only", name, *each("--set", list(SMALLEST)))
    check(name, result["found"][name], result["recipes"])


@pytest.mark.slow
def test_measures_everything(images: SmallCifar10, tmp_path: Path) -> None:
    result = measured(images, tmp_path, *each("--skip", COMPILED), *NARROWED)
    assert result["left"] == COMPILED
    for name, found in result["found"].items():
        check(name, found, result["recipes"])


def check(name: str, found: dict[str, Any], recipes: dict[str, str]) -> None:
    """Check what a stage found."""
    what, _, of = name.partition(" ")
    if what in ("train", "retrain"):
        check_training(of, found, recipes)
    elif name.startswith("training speed"):
        network, kind = of.removeprefix("speed ").removeprefix("of ").removeprefix("at ").split(", ")
        assert found["recipe"] == RECIPE_OF[network]
        assert found["precision"].partition(",")[0] == ("float32" if kind == "fp32" else "bfloat16 autocast")
        assert found["changes"] == (["training.compile=true"] if kind == "compiled" else [])
        assert {"cudnn_allow_tf32", "matmul_allow_tf32", "peak_bytes_of_process"} < found.keys()
        assert (found["batch_size"], found["steps"]) == (16, 2)
        assert min(found["images_per_second"], found["seconds_of_first_steps"], found["parameters"]) > 0
    elif name == "class deletion":
        check_class_deletion(found)
    elif name == "real images":
        assert (found["training_images"]["count"], found["held_out_images"]["count"]) == (200, 60)
        check_images(found, 40, 60)
    elif name == "quality of DDPM without the class":
        for part in ("before", "oracle"):
            check_images(found[part], 36, 54)
    elif what == "quality":
        check_images(found, 40, 60)
    elif name == "sampling cost":
        rows = found["rows"]
        assert [row["exemplars_per_class"] for row in rows] == [2, 4, 20]
        assert [row["full_bank"] for row in rows] == [False, False, True]
        for row in rows:
            assert (row["images_per_draw"], row["batch_size"]) == (25, 20)
            assert row["precision"].startswith("float32")
            assert row["spm_seconds_per_image"] > 0
            assert row["ratio_to_ddpm"]["value"] > 0
    else:
        check_deletions(name, found)


def check_training(of: str, found: dict[str, Any], recipes: dict[str, str]) -> None:
    assert found["recipe"] == recipes[RECIPE_OF[of.removesuffix(" without the class")]]
    if of == "ensemble":
        assert [found[f"{part}_images"] for part in ("backbone", "adapter", "router")] == [32, 100, 64]
        assert found["backbone_precision"] == "bfloat16 autocast"
        assert "images_per_second" not in found
    else:
        assert found["images"] == 32
        assert found["images_per_second"] == pytest.approx(32 / found["seconds_train"])


def check_images(found: dict[str, Any], count: int, reference: int) -> None:
    assert set(found["frechet"]) == {"judge", "random-conv"}
    for distance in found["frechet"].values():
        assert (distance["images"], distance["reference_images"]) == (count, reference)
        assert distance["value"] > 0
    assert 0 <= found["recognised"]["value"] <= 1


def check_class_deletion(found: dict[str, Any]) -> None:
    assert (found["class"], found["removed"], found["level"]) == ("automobile", 20, "exemplar-only")
    for name in ("retrain_gap", "gap_before", "noise_floor"):
        assert found[name]["judge"]["images"] == found[name]["judge"]["reference_images"] == 9 * 4
    for name in ("before", "after", "oracle"):
        check_images(found[name], 36, 54)


def check_deletions(name: str, found: dict[str, Any]) -> None:
    expected = {
        "deletions from SPM": {"image": [1, 1], "class": [20, 20], "tenth": [20, 20]},
        "deletions of images from ensemble": {"image": [1, 1]},
        "deletion of a class from ensemble": {"class": [10]},
        "deletion of a tenth from ensemble": {"tenth": [10]},
    }[name]
    assert {kind: [row["removed"] for row in one["deletions"]] for kind, one in found.items()} == expected
    level = "bit-exact" if "ensemble" in name else "exemplar-only"
    for one in found.values():
        assert {row["level"] for row in one["deletions"]} == {level}
        assert one["median_seconds"] > 0


@pytest.mark.slow
def test_the_benchmarks_recipe_runs_to_its_end(images: SmallCifar10, tmp_path: Path) -> None:
    """Every method and design once, on fewer and smaller images, with narrow networks."""
    recipe = yaml.safe_load((CONFIGS / "benchmarks" / "cifar10_generation.yaml").read_text())
    generator = recipe["generator"]
    generator["data"] |= {"source": str(images.train), "test_source": str(images.test), "image_size": 16}
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
