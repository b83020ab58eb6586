"""``gen-unlearn unlearn`` on a folder of diffusers: unconditional, class-conditional, or a UNet alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from command_line import refused, works
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from run_factory import unchanged
from torch import nn

from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.unet_checkpoint import UNetCheckpoint
from gen_unlearn.commands.unlearn_checkpoint import carry_out_on_checkpoint
from gen_unlearn.commands.unlearn_plan import UnlearningPlan, plan_unlearning
from gen_unlearn.data import load_folder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.methods.search_space import Space
from gen_unlearn.methods.unlearn_data import Part
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import digest_state, ids_to_hex
from gen_unlearn.sealing import RunKey, Tombstones

SETTINGS = tuple(
    word for setting in ("steps=1", "batch_forget=4", "batch_retain=8") for word in ("--set", setting)
)
SISS = ("--method", "siss", *SETTINGS)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def network(embeddings: int | None = None, channels: int = 1, **settings: Any) -> UNet2DModel:
    """Make a UNet of 8 x 8 images, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            **{"sample_size": 8, "out_channels": channels, **settings},
            in_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            norm_num_groups=4,
            num_class_embeds=embeddings,
        )


def save_pipeline(folder: Path, unet: UNet2DModel, **options: Any) -> Path:
    """Save a `DDPMPipeline`."""
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder, **options)
    return folder


@dataclass(frozen=True)
class Shelf:
    """What tests share and must not change: a pipeline, one with classes, images, and images by class."""

    plain: Path
    classes: Path
    images: Path
    by_class: Path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    root = tmp_path_factory.mktemp("checkpoints")
    shelf = Shelf(*(root / name for name in ("plain", "classes", "images", "by_class")))
    save_pipeline(shelf.plain, network())
    (shelf.plain / "README.md").write_text("a card")
    scheduler = DDIMScheduler(num_train_timesteps=20)
    ClassConditionalDDPMPipeline(network(4), scheduler).save_pretrained(shelf.classes)
    pixels = np.random.default_rng(0).integers(0, 256, (18, 10, 10), dtype=np.uint8)
    for number, image in enumerate(pixels):
        for folder in (shelf.images, shelf.by_class / "abc"[number % 3]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    return shelf


def weights_of(folder: Path) -> str:
    return digest_state(UNet2DModel.from_pretrained(folder, local_files_only=True).state_dict())


def test_a_pipeline_is_written_with_other_weights_and_nothing_else_changed(
    shelf: Shelf, tmp_path: Path
) -> None:
    asked = ("--data", shelf.images, *SISS, "--image", shelf.images / "3.png", "--reason", "licence ended")
    out = tmp_path / "deep" / "new"
    with unchanged(shelf.plain.parent):
        done = works("unlearn", shelf.plain, *asked, "--out", out)
    assert (done["level"], done["reason"], done["checkpoint"]) == ("approximate", "licence ended", str(out))
    assert (done["removed"], done["remaining"]) == (1, 17)
    own = {"unlearning.json", "receipts", "receipts/0001.json", "receipts.key"}
    names = {str(path.relative_to(shelf.plain)) for path in shelf.plain.rglob("*")}
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == names | own
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "README.md"):
        assert (out / name).read_bytes() == (shelf.plain / name).read_bytes()
    pipeline = DDPMPipeline.from_pretrained(out, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    again = works("unlearn", shelf.plain, *asked, "--out", tmp_path / "again")
    assert again["digest_after"] == done["digest_after"] == weights_of(out / "unet")
    other = works("unlearn", shelf.plain, *asked, "--seed", 1, "--out", tmp_path / "other")
    assert other["digest_after"] != done["digest_after"]


def test_record_and_receipt_say_what_was_done_and_name_no_image(shelf: Shelf, tmp_path: Path) -> None:
    out, picture = tmp_path / "new", shelf.images / "3.png"
    works("unlearn", shelf.plain, "--data", shelf.images, *SISS, "--image", picture, "--out", out)
    record = json.loads((out / "unlearning.json").read_text())
    assert (record["method"], record["seed"], record["settings"]["steps"]) == ("siss", 0, 1)
    assert record["backward_samples"] > 0
    assert (record["images"], record["source"]) == (1, str(shelf.images))
    before, after = weights_of(shelf.plain / "unet"), weights_of(out / "unet")
    assert (record["weights_before"], record["weights_after"]) == (before, after)
    assert before != after
    assert (out / record["origin_path"]).resolve() == shelf.plain.resolve()
    receipt = DeletionReceipt.from_file(out / "receipts" / "0001.json")
    key = RunKey.from_file(out / "receipts.key")
    assert (receipt.level, receipt.removed_per_class) == ("approximate", {"all": 1})
    assert receipt.sealed_with == key.fingerprint
    assert "README.md: copied as it was, not read" in receipt.left
    forget = ForgetSet.from_images(load_folder(shelf.images, size=(8, 8), channels=1), [picture], "")
    assert receipt.forget_digest == record["forget_digest"] == Tombstones.of(forget, key).digest
    [name] = ids_to_hex(forget.ids)
    assert not any(name.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_classes_of_a_class_conditional_network(shelf: Shelf, tmp_path: Path) -> None:
    asked = ("--method", "label-erasure", "--set", "steps=1", "--class", "b")
    done = works("unlearn", shelf.classes, "--data", shelf.by_class, *asked, "--out", tmp_path / "new")
    assert done["removed_per_class"] == {"b": 6}
    new = ClassConditionalDDPMPipeline.from_pretrained(tmp_path / "new", local_files_only=True)
    new.set_progress_bar_config(disable=True)
    assert new([0, 2, None], num_inference_steps=2, output_type="np").images.shape == (3, 8, 8, 1)
    out = ("--out", tmp_path / "other")
    assert "expected 3 classes" in refused(
        "unlearn", shelf.classes, "--data", shelf.images, *SISS, "--fraction", 0.1, *out
    )
    assert "an unconditional one" in refused("unlearn", shelf.plain, "--data", shelf.by_class, *asked, *out)
    planned = works(
        "unlearn", shelf.plain, "--data", shelf.by_class, *SISS, "--class", "b", *out, "--dry-run"
    )
    assert (planned["checkpoint"], planned["data"]) == (str(shelf.plain), str(shelf.by_class))
    assert (planned["would_forget"], planned["would_retain"]) == ({"b": 6}, 12)
    assert not (tmp_path / "other").exists()


def test_a_unet_alone_takes_the_scheduler_in_or_beside_it(shelf: Shelf, tmp_path: Path) -> None:
    asked = ("--data", shelf.images, *SISS, "--fraction", 0.1)
    bare = tmp_path / "bare"
    network(channels=3).save_pretrained(bare)
    out = tmp_path / "new"
    assert "scheduler_config.json" in refused("unlearn", bare, *asked, "--out", out)
    shutil.copytree(shelf.plain / "scheduler", bare / "scheduler")
    works("unlearn", bare, *asked, "--out", out)
    assert (out / "scheduler" / "scheduler_config.json").is_file()
    assert weights_of(out) != weights_of(bare)
    works("unlearn", shelf.plain / "unet", *asked, "--out", tmp_path / "unet")
    kept = {"config.json", WEIGHTS, "unlearning.json", "receipts", "receipts.key"}
    assert {path.name for path in (tmp_path / "unet").iterdir()} == kept


def test_what_holds_the_old_weights_is_left_out(shelf: Shelf, tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "sharded", network(), max_shard_size="10KB")
    assert not (folder / "unet" / WEIGHTS).exists()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    (folder / ".git").mkdir()
    (folder / ".git" / "object").write_bytes(b"old")
    (folder / ".gitattributes").write_text("text")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "other.bin").write_bytes(b"kept")
    out = tmp_path / "new"
    done = works("unlearn", folder, "--data", shelf.images, *SISS, "--fraction", 0.1, "--out", out)
    assert done["purged"] == [".git", "unet/diffusion_pytorch_model.bin"]
    assert {path.name for path in (out / "unet").iterdir()} == {"config.json", WEIGHTS}
    assert (out / "deeper" / "other.bin").read_bytes() == b"kept"
    assert not (out / ".git").exists()
    assert (out / ".gitattributes").exists()
    assert "deeper: copied as it was, not read" in done["left"]
    assert "was unlearned before" in refused(
        "unlearn", out, "--data", shelf.images, *SISS, "--fraction", 0.1, "--out", tmp_path / "twice"
    )


def test_mistakes_are_one_line_and_leave_nothing(shelf: Shelf, tmp_path: Path) -> None:
    pickled = save_pipeline(tmp_path / "pickled", network(), safe_serialization=False)
    wide = save_pipeline(tmp_path / "wide", network(sample_size=(8, 16)))
    variance = save_pipeline(tmp_path / "variance", network(out_channels=2))
    run, inside = tmp_path / "run", tmp_path / "wide" / "new"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    data, share = ("--data", shelf.images), ("--fraction", 0.1)
    new = ("--out", tmp_path / "deep" / "new")
    with unchanged(tmp_path), unchanged(shelf.plain.parent):
        for checkpoint, words in {
            pickled: "may run code",
            wide: "square images",
            variance: "predicts no variance",
            tmp_path / "nothing": "expected a local folder of a diffusers UNet or pipeline",
            run: "is a run, which knows its images",
        }.items():
            assert words in refused("unlearn", checkpoint, *data, *SISS, *share, *new)
        plain = ("unlearn", shelf.plain)
        assert "with --data" in refused(*plain, *SISS, *share, *new)
        assert "neither model_index.json" in refused("unlearn", tmp_path / "nothing", *SISS, *share, *new)
        assert "outside of" in refused("unlearn", wide, *data, *SISS, *share, "--out", inside)
        assert "which exists" in refused(*plain, *data, *SISS, *share, "--out", run)
        assert "nothing is asked for" in refused(*plain, *data, *SISS, *new)
        assert "are not in the data" in refused(*plain, *data, *SISS, "--id", "0" * 32, *new)
        assert "images that are retained" in refused(*plain, *data, *SISS, "--fraction", 1, *new)
        assert "no-such" in refused(*plain, "--data", tmp_path / "no-such", *SISS, *share, *new)
        for setting, words in {
            "steps": "expected --set setting=value",
            "lr=1e30": "output is not finite",
            "steps=0": "did not move",
        }.items():
            assert words in refused(*plain, *data, *SISS, "--set", setting, *share, *new)


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


class Stopped(UnlearningPlan[UNetCheckpoint]):
    """Ctrl-C comes when the weights are written, and the receipt is being made."""

    @property
    def per_class(self) -> dict[str, int]:
        assert len(list(self.out.parent.glob(".new.unfinished/unet/*.safetensors"))) == 1
        raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = UNetCheckpoint.open(shelf.plain, str(shelf.images))
    out = tmp_path / "deep" / "new"
    plan = plan_unlearning(checkpoint, "siss", ["steps=1"], ForgetRequest(fraction=0.1), out)
    for error in (KeyboardInterrupt, ValueError):
        with unchanged(tmp_path), pytest.raises(error):
            carry_out_on_checkpoint(replace(plan, method=Broken(error)))
    parts = (plan.origin, plan.name, plan.method, plan.forget, plan.data, plan.out)
    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        carry_out_on_checkpoint(Stopped(*parts))
    carry_out_on_checkpoint(plan)
    assert [path.name for path in out.parent.iterdir()] == ["new"]
