"""Folders of images from anywhere, compared through the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import refused, run_command, tree, works
from PIL import Image
from two_processes import as_two

from gen_unlearn.judging.distances import floor_from_halves, measure_frechet
from gen_unlearn.metrics import feature_sets
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.features import MeasurementProtocol
from gen_unlearn.metrics.manifold import manifold_metrics
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Scorecard

FEW = ("--features", "random-conv", "--set", "evaluation.comparison.permutations=20")
PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))


def pictures(count: int, seed: int, levels: tuple[int, ...] = (40, 120, 200)) -> np.ndarray:
    """Return noise about some levels of grey in turn, uint8 ``(count, 8, 8, 3)``."""
    noise = np.random.default_rng(seed).integers(-30, 31, (count, 8, 8, 3))
    return (np.resize(levels, count)[:, None, None, None] + noise).astype(np.uint8)


def save(folder: Path, images: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}{suffix}")
    return folder


def measured(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the measures of a scorecard by name."""
    return {measure["name"]: measure for measure in card["measures"]}


def values(card: dict[str, Any]) -> dict[str, float]:
    return {name: measure["value"] for name, measure in measured(card).items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images, generated ones that show only one of their three kinds, and training images."""
    root = tmp_path_factory.mktemp("sets")
    save(root / "real", pictures(90, 1))
    save(root / "narrow", pictures(40, 2, (120,)))
    save(root / "good", pictures(80, 3), ".jpg")
    save(root / "training", pictures(120, 4))
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_the_roles_of_precision_and_recall(root: Path, out: Path) -> None:
    narrow, real = root / "narrow", root / "real"
    found = values(works("evaluate", "--images", narrow, "--reference", real, *FEW, "--out", out))
    assert found["precision_narrow"] > 0.9, "what is generated is real"
    assert found["recall_narrow"] < 0.5, "but not all that is real is generated"
    swapped = values(works("evaluate", "--images", real, "--reference", narrow, *FEW, "--out", out))
    assert swapped["precision_real"] == found["recall_narrow"]
    assert swapped["recall_real"] == found["precision_narrow"]
    assert swapped["fd_real"] == pytest.approx(found["fd_narrow"], rel=1e-6)


def test_without_a_reference_the_last_set_is_real(root: Path, out: Path) -> None:
    narrow, good, real = root / "narrow", root / "good", root / "real"
    sets = ("--images", narrow, "--images", good)
    card = works("evaluate", *sets, "--images", real, *FEW, "--out", out)
    assert card["protocol"]["generated"] == {"narrow": 40, "good": 80}
    assert card["protocol"]["reference"]["name"] == "real"
    assert card == works("evaluate", *sets, "--reference", real, *FEW, "--out", out)
    assert values(card)["fd_good"] < values(card)["fd_narrow"]


def test_the_table_for_people(root: Path, out: Path) -> None:
    sets = [word for name in ("narrow", "good", "real") for word in ("--images", root / name)]
    result = run_command("evaluate", *sets, *FEW, "--out", out, "--detect", "0.5")
    assert result.exit_code == 0, result.output
    roles, header, *lines = result.stdout.splitlines()
    assert roles == f"{root / 'narrow'}, {root / 'good'} as generated, {root / 'real'} as real"
    assert header.split() == ["narrow", "good", "floor"]
    table = [line for line in lines if not line.startswith(("note: ", "scorecard "))]
    assert [line.split()[0] for line in table if line[:2] == "  " != line[2:4]] == [
        "fd", "kd", "precision", "recall", "density", "coverage",
    ]  # fmt: skip
    assert max(map(len, [header, *table])) <= 100
    assert any("Fewer than 256 images for 64 features" in line for line in lines)
    assert any(line.startswith("note: fd_good: ") and "a difference of 0.5" in line for line in lines)
    assert lines[-1].split() == ["scorecard", str(out / "scorecard.json")]


def test_a_set_against_itself(root: Path, out: Path) -> None:
    real = root / "real"
    card = works("evaluate", "--images", real, "--reference", real, *FEW, "--out", out)
    found = values(card)
    assert found["fd_real"] == pytest.approx(0, abs=1e-5)
    assert found["precision_real"] == found["recall_real"] == found["coverage_real"] == 1
    assert measured(card)["kd_real"]["details"]["p_value"] > 0.9
    assert "images_needed" not in measured(card)["fd_real"]["details"]


def test_the_scorecard_says_how_it_was_measured(root: Path, out: Path) -> None:
    sets = ("--images", root / "good", "--reference", root / "real", "--size", 12)
    card = works("evaluate", *sets, *FEW, "--detect", 0.01, "--out", out)
    assert json.loads((out / "scorecard.json").read_text()) == card
    assert Scorecard.from_file(out / "scorecard.json").value("fd_good") == values(card)["fd_good"]
    protocol = card["protocol"]
    assert protocol["extractor"].startswith("random-conv-64")
    assert len(protocol["extractor_digest"]) == len(protocol["reference"]["digest"]) == 64
    assert (protocol["size"], protocol["input_shape"]) == (12, [3, 12, 12])
    assert protocol["comparison"]["permutations"] == 20
    assert protocol["reference"]["images"] == 90
    assert {"feature_dimensions", "quantisation", "resize", "versions", "standard_errors"} <= protocol.keys()
    assert measured(card)["fd_good"]["details"]["images_needed"] > 80
    assert all(measure["definition"] and measure["floor_definition"] for measure in card["measures"])


def test_tables_and_folders_are_alike(root: Path, tmp_path: Path, out: Path) -> None:
    rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted((root / "good").iterdir())]
    pq.write_table(pa.table({"img": rows}), tmp_path / "good.parquet")
    real = ("--reference", root / "real", *FEW)
    folder = values(works("evaluate", "--images", root / "good", *real, "--out", out))
    kept = tree(out / "features")
    table = values(works("evaluate", "--images", tmp_path / "good.parquet", *real, "--out", out))
    assert list(table.values()) == list(folder.values())
    assert {name.replace("good.parquet", "good") for name in table} == folder.keys()
    assert tree(out / "features") == kept, "known by content"


def test_sets_of_one_name_are_told_apart(root: Path, tmp_path: Path, out: Path) -> None:
    for model in ("first_rate", "second"):
        save(tmp_path / model / "samples", pictures(20, len(model)))
    sets = [word for model in ("first_rate", "second") for word in ("--images", tmp_path / model / "samples")]
    card = works("evaluate", *sets, "--reference", root / "real", *FEW, "--out", out)
    assert {"fd_first_rate/samples", "fd_second/samples"} <= values(card).keys()
    text = run_command("evaluate", *sets, "--reference", root / "real", *FEW, "--out", out).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("  fd "))
    assert "%" not in line, "a distance, whatever the folder is called"
    twice = ("--images", root / "good", "--images", root / "good", "--reference", root / "real")
    assert "different sets of images" in refused("evaluate", *twice, *FEW, "--out", out)


def test_mixed_sizes_need_a_size(root: Path, tmp_path: Path, out: Path) -> None:
    mixed = save(tmp_path / "mixed", pictures(20, 5))
    Image.fromarray(pictures(1, 6)[0]).resize((10, 14)).convert("L").save(mixed / "odd.png")
    large = save(tmp_path / "large", np.repeat(np.repeat(pictures(20, 7), 2, axis=1), 2, axis=2))
    for folder, what in ((mixed, r"in mixed, got \(3, 14, 10\)"), (large, r"\(3, 16, 16\) in large")):
        sets = ("--images", folder, "--reference", root / "real", *FEW, "--out", out)
        line = refused("evaluate", *sets)
        assert what.replace("\\", "") in line
        assert "--size" in line
        assert not (out / "scorecard.json").exists()
        works("evaluate", *sets, "--size", 8)
        (out / "scorecard.json").unlink()


def test_a_corrupt_image_is_named(root: Path, tmp_path: Path, out: Path) -> None:
    folder = save(tmp_path / "broken", pictures(12, 0))
    (folder / "0007.png").write_bytes((folder / "0007.png").read_bytes()[:60])
    line = refused("evaluate", "--images", folder, "--reference", root / "real", *FEW, "--out", out)
    assert str(folder / "0007.png") in line
    assert not (out / "scorecard.json").exists()


def test_missing_weights_are_named(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(out))
    monkeypatch.setenv("GEN_UNLEARN_WEIGHTS", str(out))
    sets = ("--images", root / "good", "--reference", root / "real", "--out", out)
    for dry in ((), ("--dry-run",)):
        line = refused("evaluate", *sets, *dry)
        assert "inception-2015-12-05.pt" in line
        assert "https://" in line
    assert not out.exists()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_tiny_sets(root: Path, tmp_path: Path, out: Path, count: int) -> None:
    """Five neighbours need six images; with one neighbour three do, and four to split into halves."""
    tiny = save(tmp_path / "tiny", pictures(count, 0))
    one = ("--set", "evaluation.comparison.neighbours=1")
    for role, least in (("--images", 3), ("--reference", 4)):
        other = "--reference" if role == "--images" else "--images"
        sets = (role, tiny, other, root / "real", *FEW, "--out", out)
        assert "images in tiny for 5 neighbours" in refused("evaluate", *sets)
        if count < least:
            assert f"at least {least} images in tiny for 1 neighbours" in refused("evaluate", *sets, *one)
        else:
            assert works("evaluate", *sets, *one)["measures"]


def test_training_images_show_copying(root: Path, tmp_path: Path, out: Path) -> None:
    save(tmp_path / "copies", pictures(120, 4))
    sets = ("--images", root / "good", "--images", tmp_path / "copies", "--reference", root / "real")
    card = works("evaluate", *sets, "--training", root / "training", *FEW, "--out", out)
    found = values(card)
    assert found["authenticity_share_copies"] == 0 < found["authenticity_share_good"]
    assert found["copying_z_copies"] < -6 < found["copying_z_good"]
    assert found["mifid_copies"] > found["fd_copies"]
    assert "training" in measured(card)["fd_good"]["floor_definition"]
    few = ("--images", root / "narrow", "--reference", root / "real", "--training", root / "training")
    card = works("evaluate", *few, *FEW, "--out", out)
    assert any("copying_z takes more than 20" in note for note in card["notes"]) == (
        "copying_z_narrow" not in values(card)
    )


def test_copies_of_deleted_images(root: Path, tmp_path: Path, out: Path) -> None:
    """Seven of forty images are planted copies; other generated images are near no image in particular."""
    deleted = save(tmp_path / "deleted", pictures(10, 8))
    planted = save(tmp_path / "planted", np.concatenate([pictures(33, 9), pictures(10, 8)[:7]]))
    sets = ("--images", planted, "--images", root / "narrow", "--reference", root / "real")
    card = works("evaluate", *sets, "--training", root / "training", "--deleted", deleted, *FEW, "--out", out)
    found = values(card)
    assert found["copies_share_planted"] == found["copies_yoon_share_planted"] == 7 / 40
    assert found["copies_share_narrow"] == found["copies_yoon_share_narrow"] == 0
    assert "7 of 10 deleted images are copied" in measured(card)["copies_share_planted"]["definition"]


def test_a_dry_run_writes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("--images", root / "good", "--images", root / "real", "--features", "random-conv")
    plan = works("evaluate", *sets, "--dry-run")
    assert plan["generated"] == {"good": 80}
    assert plan["reference"] == 90
    text = run_command("evaluate", *sets, "--dry-run").stdout
    assert "would compare 80 images of good as generated with 90" in text
    assert not list(tmp_path.iterdir())
    works("evaluate", *sets)
    assert (tmp_path / "gen-unlearn-evaluation" / "scorecard.json").exists()


def test_features_are_reused(root: Path, out: Path) -> None:
    sets = ("--images", root / "good", "--reference", root / "real", *FEW, "--out", out)
    first = works("evaluate", *sets)
    kept = tree(out / "features")
    assert len(kept) == 4, "a block and the statistics of each set"
    assert works("evaluate", *sets) == first
    assert tree(out / "features") == kept, "nothing was extracted again"
    works("evaluate", *sets, "--size", 9)
    assert len(tree(out / "features")) == 8, "other pixels have other features"


def test_an_interrupted_extraction_goes_on(
    root: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_sets, "BLOCK", 10)
    folder = save(tmp_path / "long", pictures(35, 5))
    sound = (folder / "0024.png").read_bytes()
    (folder / "0024.png").write_bytes(b"being copied")
    sets = ("--images", folder, "--reference", root / "real", *FEW)
    refused("evaluate", *sets, "--out", out)
    kept = tree(out / "features")
    assert len(kept) == 9 + 2, "nine blocks of the reference and two of the folder"
    (folder / "0024.png").write_bytes(sound)
    assert works("evaluate", *sets, "--out", out) == works("evaluate", *sets, "--out", tmp_path / "other")
    assert kept.items() <= tree(out / "features").items()


WRONG = {
    "RUN --reference {real}": "expected --reference without RUN only",
    "RUN --size 8 --out {out}": "expected --size, --out without RUN only",
    "RUN --detect -1": "above 0 to detect, got -1",
    "--images {good} --reference {real} --detect -1 --out {out}": "above 0 to detect, got -1",
    "--images {good} --reference {real} --oracle RUN": "expected RUN with --oracle",
    "--images {good} --reference {real} --oracles RUN": "expected RUN with --oracle",
    "--images {good} --reference {real} --deleted {narrow} --features random-conv": "training images beside",
    "--images {good} --reference {real} --set training.seed=1": "--set evaluation.comparison.KEY=VALUE",
    "--images {good} --reference {real} --set evaluation.features=digits": "evaluation.comparison.KEY",
    "--images {good} --reference {real} --set evaluation.comparison.neighbors=1": "neighbours",
    "--images {good} --reference {real} --size 0 --features random-conv": "size",
    "--images {good} --reference {real} --features fid": "inception-clean, inception-legacy-tensorflow",
    "--images {good} --reference {real} --features random-conv --weights {real}": "no weights for",
    "--images {good}": "--images GENERATED --reference REAL",
    "--reference {real}": "at least one set of generated images",
    "": "--images GENERATED --reference REAL",
    "--images {good} --reference {empty} --features random-conv": "images below {empty}, got none",
    "--images {good}/0000.jpg --reference {real} --features random-conv": "a folder, or a file that ends in",
    "--images {out} --reference {real} --features random-conv": "existing file or folder",
}


@pytest.mark.parametrize("words", WRONG)
def test_says_in_one_line_what_is_wrong(
    words: str, root: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {name: root / name for name in ("real", "good", "narrow")} | {"empty": tmp_path / "empty"}
    arguments = [word.format(out=out, **names) for word in words.split()]
    assert WRONG[words].format(**names) in refused("evaluate", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "nothing is written"


@pytest.mark.parametrize("count", [50, 200, 600])
def test_draws_of_one_distribution_lie_at_the_floor(count: int) -> None:
    """The floor is what equal distributions give at these numbers, neither half nor twice that."""
    spread = np.linspace(0.5, 1, 6)
    config = ComparisonConfig(permutations=1)
    found, floors = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = (rng.gamma(20, spread, (size, 6)) for size in (count, 200))
        generated, reference = (FeatureSet.of("draw", some, PROTOCOL) for some in rows)
        distance = measure_frechet(generated, reference, config).value
        manifold = manifold_metrics(real=reference.array(), generated=generated.array())
        floor = floor_from_halves(reference, count, config)
        found.append([distance, *(estimate.value for estimate in vars(manifold).values())])
        floors.append([floor.frechet, *(estimate.value for estimate in vars(floor.manifold).values())])
    assert np.mean(floors, axis=0) == pytest.approx(np.mean(found, axis=0), rel=0.15)
    assert np.std(floors, axis=0)[0] < 0.25 * np.mean(floors, axis=0)[0], "of several splits"


def test_the_floor_does_not_depend_on_the_order_of_the_files() -> None:
    """Images of two kinds in turn, as in a folder of pairs: both halves hold both kinds."""
    rows = np.random.default_rng(0).normal(size=(200, 4)) + 50 * (np.arange(200) % 2)[:, None]
    floor = floor_from_halves(FeatureSet.of("turns", rows, PROTOCOL), 200, ComparisonConfig())
    assert floor.manifold.precision.value > 0.8
    assert floor.manifold.coverage.value > 0.8
    assert floor.frechet < 50


def test_two_processes_find_what_one_finds(
    root: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 60 images: one process has none of the narrow set's, and the last of the others is short."""
    monkeypatch.setattr(feature_sets, "BLOCK", 60)
    sets = [word for name in ("narrow", "good", "real") for word in ("--images", root / name)]
    alone = works("evaluate", *sets, *FEW, "--out", tmp_path / "alone")

    def evaluate(rank: int) -> None:
        result = run_command("evaluate", *sets, *FEW, "--out", out)
        (tmp_path / f"{rank}.txt").write_text(result.output)

    as_two(evaluate)
    printed = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert "as generated" in printed[0], printed
    assert printed[1] == "", "one table"
    assert (out / "scorecard.json").read_text() == (tmp_path / "alone" / "scorecard.json").read_text()
    assert json.loads((out / "scorecard.json").read_text()) == alone
    assert tree(out).keys() == tree(tmp_path / "alone").keys(), "nothing unfinished"


def test_odd_images(tmp_path: Path, root: Path, out: Path) -> None:
    """Grey and colour, nested folders, a rotated photograph, transparency, and files that are no images."""
    odd = tmp_path / "odd"
    save(odd / "deep" / "deeper", pictures(10, 1))
    save(odd / "grey", pictures(10, 2)[..., 0])
    turned = Image.fromarray(pictures(1, 3)[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(odd / "turned.jpg", exif=exif)
    Image.fromarray(pictures(1, 4)[0]).convert("RGBA").save(odd / "clear.PNG")
    (odd / "notes.txt").write_text("no image")
    (odd / ".hidden.png").write_bytes(b"no image")
    file = io.BytesIO()
    turned.save(file, format="PNG")
    (odd / "wrong-suffix.jpg").write_bytes(file.getvalue())
    card = works("evaluate", "--images", odd, "--reference", root / "real", *FEW, "--out", out)
    assert card["protocol"]["generated"] == {"odd": 23}
