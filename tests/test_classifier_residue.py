"""Residue of images that were deleted from a classifier: their keys, and small pictures of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CONFIGS
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.residue import audit
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe
from gen_unlearn.forget import ForgetSet
from gen_unlearn.key_bank import key_scale
from gen_unlearn.pixels import resize_images
from gen_unlearn.report.images import image_sheet
from gen_unlearn.repro import image_ids
from gen_unlearn.residue.codes import STEPS, CodeMatcher
from gen_unlearn.residue.deleted import DeletedImages
from gen_unlearn.residue.search import search_residue
from gen_unlearn.runs import RunFolder

TINY = ("data.test_fraction=0.9", "model.encoder.width=8", "training.images=64", "training.batch_size=16")


def trained(out: Path, key_dim: int, exemplar_size: int | None = None, *overrides: str) -> RunFolder:
    config = load_recipe(CONFIGS / "digits_spm_classifier.yaml", (*TINY, *overrides))
    assert isinstance(config, ClassifierRunConfig)
    model = replace(config.model, key_dim=key_dim, exemplar_size=exemplar_size)
    return train(replace(config, model=model), out)


@pytest.fixture(scope="module")
def deleted_from(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A classifier from which images were deleted, and the codes that they had, int16 ``(n, length)``."""
    run = trained(tmp_path_factory.mktemp("run"), key_dim=16)
    gone = run.exemplar_folder().select(run.exemplar_folder().ids[[1, 5, 20]])
    forget(run, ForgetSet(gone.ids, "test"))
    assert gone.codes is not None
    return run.path, gone.codes


@pytest.fixture
def run(deleted_from: tuple[Path, np.ndarray], tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(deleted_from[0], tmp_path / "run")))


def test_nothing_is_left_in_the_run(run: RunFolder) -> None:
    assert audit(run).clean


@pytest.mark.parametrize("width", [1, 3])
def test_codes_in_a_tensor_are_found(
    run: RunFolder, deleted_from: tuple[Path, np.ndarray], width: int
) -> None:
    codes = deleted_from[1]
    draws = np.random.default_rng(0)
    table = draws.integers(-3000, 3000, (40, width, codes.shape[1])).astype(np.int16)
    table[7, width - 1], table[30, 0] = codes[2], codes[0]
    save_file({"cache": table.reshape(40, -1) if width == 1 else table}, run.path / "cache.safetensors")
    (finding,) = audit(run).report.findings
    assert (str(finding.path), finding.kind, finding.count) == ("cache.safetensors", "encoded tokens", 2)


KEYS: dict[str, Callable[[np.ndarray, int], np.ndarray | torch.Tensor]] = {
    "int32": lambda codes, _: codes.astype(np.int32),
    "int64": lambda codes, _: codes.astype(np.int64),
    "codes as floats": lambda codes, _: codes.astype(np.float64),
    "keys": lambda codes, scale: (codes / scale).astype(np.float32),
    "rounded keys": lambda codes, scale: (codes / scale + 2.4 / scale).astype(np.float32),
    "float16": lambda codes, scale: (codes / scale).astype(np.float16),
    "bfloat16": lambda codes, scale: torch.from_numpy(codes / scale).bfloat16(),
    "three steps": lambda codes, _: (codes + np.resize([3, -3], codes.shape)).astype(np.int16),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_found_in_every_number_type(
    run: RunFolder, deleted_from: tuple[Path, np.ndarray], kind: str
) -> None:
    made = torch.as_tensor(KEYS[kind](deleted_from[1], key_scale(16)))
    save_torch_file({"cache": made}, run.path / "cache.safetensors")
    (finding,) = audit(run).report.findings
    assert (finding.kind, finding.count) == ("encoded tokens", 3)


@pytest.mark.parametrize("number", ["int16", "float32"])
def test_keys_that_differ_by_more_are_others(
    run: RunFolder, deleted_from: tuple[Path, np.ndarray], number: str
) -> None:
    table = deleted_from[1].copy()
    table[:, 3] += 4
    made = table if number == "int16" else (table / key_scale(16)).astype(np.float32)
    save_file({"cache": made}, run.path / "cache.safetensors")
    assert audit(run).clean


def test_codes_agree_with_a_search_of_every_pair() -> None:
    draws = np.random.default_rng(0)
    codes = draws.integers(-40, 40, (300, 3)).astype(np.int16)
    rows = draws.integers(-40, 40, (3000, 3)).astype(np.int64)
    near = (np.abs(rows[:, None] - codes) <= STEPS).all(axis=2).any(axis=1)
    assert 0 < near.sum() < len(near)
    assert CodeMatcher(codes, 1).find(rows) == np.flatnonzero(near).tolist()


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_no_keys_are_passed_over(deleted_from: tuple[Path, np.ndarray]) -> None:
    matcher = CodeMatcher(deleted_from[1], key_scale(16))
    for value in (np.nan, np.inf, 0.0, 1e300):
        for half_precision in (False, True):
            assert matcher.find(np.full((5, matcher.values), value), half_precision) == []


def test_nearly_equal_keys_are_told_apart_by_their_differences() -> None:
    draws = np.random.default_rng(0)
    codes = (1000 + draws.integers(-2, 3, (40, 64))).astype(np.int16)
    assert CodeMatcher(codes[:10], 1).find(codes) == list(range(10))


def test_keys_that_are_too_short_are_said_not_to_be_searched_for(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", key_dim=8)
    forget(run, ForgetSet(run.exemplar_folder().ids[:1], "test"))
    found = audit(run)
    assert found.clean
    assert found.lines()[-1].startswith("left    copies of encoded images: keys of 8 numbers are too short")
    assert found.lines()[-1][len("left    ") :] == found.facts()["left"][-1]


def test_what_is_nearer_to_the_key_of_a_retained_image_is_no_residue() -> None:
    codes = np.random.default_rng(0).integers(-3000, 3000, (2, 16)).astype(np.int16)
    twin, same = codes[:1] + np.int16(2), codes[1:]
    matcher = CodeMatcher(codes, 1, retained=np.concatenate([twin, same]))
    rows = np.concatenate([codes, twin, twin + np.int16(1), codes[:1] - np.int16(1)])
    assert matcher.find(rows) == [0, 4]


# --- small pictures


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A classifier of images of 32x32 pixels with pictures of 16x16, and what was deleted, in that size.

    Two images differ where the small pictures do not, and have nearly the same key: one was deleted.
    """
    root = tmp_path_factory.mktemp("photographs")
    images = np.random.default_rng(3).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    images[1], images[2:4] = 77, images[2]
    images[2, 0, 0, 0] ^= 1
    for number, image in enumerate(images):
        path = root / "source" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    source = (
        f"data.source={root / 'source'}",
        "data.image_size=32",
        "data.test_fraction=0.1",
        "data.split_seed=1",
    )
    run = trained(root / "run", 16, 16, *source)
    held = run.exemplar_folder().holds(image_ids(images))
    assert held[[1, 2, 3]].all(), "choose another split_seed"
    assert np.array_equal(*resize_images(images[2:4], (16, 16)))
    gone = [1, 2, *np.flatnonzero(held)[np.flatnonzero(held) > 3][:4].tolist()]
    forget(run, ForgetSet(image_ids(images[gone]), "test"))
    return run.path, resize_images(images[gone], (16, 16))


def small_tensor(path: Path, pictures: np.ndarray) -> None:
    save_file({"pixels": pictures}, path)


def small_floats(path: Path, pictures: np.ndarray) -> None:
    floats = pictures.transpose(0, 3, 1, 2) / 127.5 - 1
    save_file({"x": np.ascontiguousarray(floats, dtype=np.float32)}, path)


def small_picture(path: Path, pictures: np.ndarray) -> None:
    Image.fromarray(pictures[2]).save(path)


def small_sheet(path: Path, pictures: np.ndarray) -> None:
    image_sheet(pictures, 3, scale=2).save(path)


def small_bytes(path: Path, pictures: np.ndarray) -> None:
    path.write_bytes(b"header" + pictures[2:].tobytes())


@pytest.mark.parametrize(
    ("name", "plant", "kind", "count"),
    [
        ("cache.safetensors", small_tensor, "pixels", 4),
        ("floats.safetensors", small_floats, "pixels", 4),
        ("one.png", small_picture, "picture", 1),
        ("sheet.png", small_sheet, "picture", 4),
        ("bytes.bin", small_bytes, "pixels", 4),
    ],
)
def test_small_pictures_are_found(
    photographs: tuple[Path, np.ndarray],
    tmp_path: Path,
    name: str,
    plant: Callable[[Path, np.ndarray], None],
    kind: str,
    count: int,
) -> None:
    """But neither flat ones, nor those that a retained exemplar has too."""
    run = RunFolder.open(Path(shutil.copytree(photographs[0], tmp_path / "run")))
    assert audit(run).clean
    plant(run.path / name, photographs[1])
    found = [(str(one.path), one.kind, one.count) for one in audit(run).report.findings]
    assert found == [(name, kind, count)]


def test_tiny_pictures_are_found_whole(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    deleted = DeletedImages(image_ids(images), images, pictures=resize_images(images, (3, 3)))
    assert deleted.pictures is not None
    Image.fromarray(deleted.pictures[4, :, :, 0]).save(tmp_path / "tiny.png")
    save_file({"x": deleted.pictures}, tmp_path / "tiny.safetensors")
    report = search_residue(tmp_path, deleted, lambda ids: np.zeros(len(ids), dtype=bool), (8, 8, 1))
    assert [(one.kind, one.count) for one in report.findings] == [("picture", 1), ("pixels", 5)]


def test_codes_of_another_type_are_refused(deleted_from: tuple[Path, np.ndarray]) -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="expected int16 codes of shape"):
        DeletedImages(np.zeros((3, 16), np.uint8), images, codes=deleted_from[1].astype(np.int32))
