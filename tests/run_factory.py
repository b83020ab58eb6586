"""Runs that need no training, ways to tamper with them, snapshots of folders, and child processes."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from command_line import CONFIGS, TINY_OVERRIDES

from gen_unlearn.cli_base import is_ctrl_c_in_a_lock
from gen_unlearn.config import load_config
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import image_ids
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import SUMS, sha256, sums_text

INTERRUPTED = 130
"""Exit code of a child that Ctrl-C ended."""


def random_images(count: int, seed: int, start: int = 0) -> IndexedImages:
    """Return random grey images of 8x8 pixels in classes "a", "b" and "c"."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return IndexedImages(
        images=images,
        labels=np.arange(count, dtype=np.int64) % 3,
        ids=image_ids(images),
        class_names=("a", "b", "c"),
        names=tuple(f"random/{seed}/{start + number}" for number in range(count)),
    )


def make_run(path: Path, data: IndexedImages, held_out: IndexedImages | None = None) -> RunFolder:
    """Make a run of a tiny network with fresh weights over grey images of 8x8, as if it had been trained."""
    config = load_config(CONFIGS / "digits_spm.yaml", TINY_OVERRIDES)
    torch.manual_seed(0)
    unet = SemiParametricUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    sampler = build_sampler("ddim", NoiseConfig().build())
    pipeline = SemiParametricDDPMPipeline(unet, sampler, ExemplarStore.from_images(data))
    manifest = RunManifest(config.digest, data.digest, data.class_names, data.image_shape)
    run = RunFolder.create(path, config, manifest)
    run.keep_split(held_out or data.select(np.arange(0)), CoreSplit(data, data))
    run.complete_training(pipeline, TrainingRecord(1.5, 96, 0.5, 100, weights_digest(pipeline)))
    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return everything below a folder by name: bytes of files, targets of links; the lock does not count."""
    found = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        elif path.is_dir():
            found[name + "/"] = b""
        elif path.name != ".lock":
            found[name] = path.read_bytes()
    return found


def fork(work: Callable[[], object]) -> int:
    """Do `work` in a child process and return its id.

    It ends with 0, with `INTERRUPTED` on Ctrl-C, and with 1, after a traceback, on any other error.
    """
    child = os.fork()
    if child:
        return child
    code = INTERRUPTED
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = 0
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BaseException as error:  # noqa: BLE001, a child of the test must not go on as the test
            if not is_ctrl_c_in_a_lock(error):
                code = 1
                traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child, and return its exit code, or the negated signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Hold that everything below a folder stays as it is, byte for byte."""
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def picture(run: Path, row: int = 0) -> np.ndarray:
    """Return the pixels of an exemplar."""
    return ExemplarFolder.open(run / "model" / "exemplars").all_rows().pixels[row]


def shard_of(run: Path) -> Path:
    """Return a shard of the exemplars."""
    return next((run / "model" / "exemplars").glob("*.safetensors"))


def list_again(run: Path) -> None:
    """Make the sums of the exemplars right, as somebody would who tampers with care."""
    folder = run / "model" / "exemplars"
    files = [path for path in folder.iterdir() if path.name != SUMS]
    (folder / SUMS).write_text(sums_text({path.name: sha256(path.read_bytes()) for path in files}))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def trap_for_pickle(run: Path, listed: bool = False) -> None:
    """Put a pickle in the place of the shard that creates ``sprung`` beside the run when it is loaded."""
    shard_of(run).write_bytes(pickle.dumps(Trap(run.parent / "sprung")))
    if listed:
        list_again(run)
