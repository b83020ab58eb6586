"""Adapter ensembles that generate, on the command line: trained, sampled, changed and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run_command, works
from lora_runs import SEMI_PARAMETRIC, tiny_ensemble
from PIL import Image
from run_factory import snapshot, unchanged
from safetensors.numpy import load_file

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import count_members
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.judging.states import sample_states
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble on a plain backbone, which tests change copies of only."""
    out = tmp_path_factory.mktemp("generators") / "fresh"
    works("train", *tiny_ensemble(), "--out", out)
    return out


@pytest.fixture
def run(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "run"))


def stores(run: Path) -> dict[str, bytes]:
    """Return every file of what deletions change."""
    model = snapshot(run / "model")
    return {name: content for name, content in model.items() if name.startswith(("adapters", "exemplars"))}


def checks(run: Path, *options: str) -> dict[str, str]:
    return {check["name"]: check["said"] for check in works("verify", run, *options)["checks"]}


# --- training


def test_the_same_recipe_gives_the_same_bytes(fresh: Path, tmp_path: Path) -> None:
    works("train", *tiny_ensemble(), "--out", tmp_path / "again")
    assert snapshot(tmp_path / "again" / "model") == snapshot(fresh / "model")
    parts = {path.name for path in (fresh / "model").iterdir()}
    assert parts == {"model_index.json", "unet", "scheduler", "router", "adapters", "exemplars"}
    assert not (fresh / "checkpoints").exists()


def test_adapters_are_files_that_peft_names(fresh: Path) -> None:
    folder = AdapterFolder.open(fresh / "model" / "adapters")
    assert len(folder.files) > 6
    for file in folder.files.values():
        arrays = load_file(folder.path / file.name)
        layers = {name.removesuffix(".lora_A.weight") for name in arrays if name.endswith(".lora_A.weight")}
        assert arrays.keys() == {f"{layer}.lora_{factor}.weight" for layer in layers for factor in "AB"}
        assert any(np.abs(array).max() > 0 for name, array in arrays.items() if "lora_B" in name)


def test_an_interrupted_fit_of_adapters_goes_on(
    tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gen_unlearn.adapters import resumable

    written: list[Path] = []
    write = resumable.write_undated

    def interrupt_after_three(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(resumable, "write_undated", interrupt_after_three)
    out = tmp_path / "run"
    assert run_command("train", *tiny_ensemble(), "--out", out).exit_code == 130
    kept = sorted((out / "checkpoints" / "adapters").iterdir())
    assert kept == sorted(written)
    times = {path: path.stat().st_ctime_ns for path in kept}
    monkeypatch.setattr(resumable, "write_undated", write)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "complete_training", _stop)
        assert run_command("train", out).exit_code == 130
    assert {path: path.stat().st_ctime_ns for path in kept} == times
    works("train", out)
    assert snapshot(out / "model") == snapshot(fresh / "model")
    assert not (out / "checkpoints").exists()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("core.mode=joint", "needs core.mode public"),
        ("model.adapters.count=2000", "at least as many distinct images in the core"),
        ("model.adapters.lora.targets=[nothing]", "names that end in nothing"),
        ("model.weights=nowhere", "nowhere"),
        ("model.prompt=plain", "one {} for the class"),
        ("model.adapters.lora.rank=0", "rank of at least 1"),
    ],
)
def test_a_recipe_that_cannot_work_leaves_no_folder(override: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused("train", *tiny_ensemble(override), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- deletions equal training without the images


def single(run: Path) -> list[object]:
    return ["--id", ids_to_hex(RunFolder.open(run).exemplar_folder().ids[5:6])[0]]


def one_class(run: Path) -> list[object]:
    assert run.exists()
    return ["--class", "3"]


def a_tenth(run: Path) -> list[object]:
    assert run.exists()
    return ["--fraction", "0.1"]


@pytest.mark.parametrize("request_of", [single, one_class, a_tenth])
def test_a_deletion_equals_training_without_the_images(
    run: Path, request_of: Callable[[Path], list[object]], tmp_path: Path
) -> None:
    facts = works("forget", run, *request_of(run))
    assert facts["level"] == "bit-exact"
    works("train", *tiny_ensemble(), "--out", tmp_path / "oracle", "--without", run)
    assert snapshot(run / "model") == snapshot(tmp_path / "oracle" / "model")
    assert "files, SHA-256 equal" in checks(run, "--replay")["replay of the whole pipeline"]


def test_deletions_in_turn_equal_one_deletion(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    ids = ids_to_hex(RunFolder.open(run).exemplar_folder().ids[3:9:2])
    for name in reversed(ids):
        works("forget", run, "--id", name)
    works("forget", other, *(word for name in ids for word in ("--id", name)))
    assert stores(run) == stores(other)


def test_everything_can_be_deleted(run: Path) -> None:
    works("forget", run, "--fraction", "1.0")
    assert not AdapterFolder.open(run / "model" / "adapters").files
    assert all("FAILED" not in said for said in checks(run, "--replay").values())


def test_additions_are_fit_and_can_go_again(run: Path, tmp_path: Path) -> None:
    before = stores(run)
    Image.new("L", (8, 8), 77).save(tmp_path / "new.png")
    assert works("add", run, tmp_path / "new.png", "--class", "4")["added"] == 1
    assert stores(run) != before
    assert "SHA-256 equal" in checks(run, "--replay")["replay of the adapters"]
    works("forget", run, "--image", tmp_path / "new.png")
    assert stores(run) == before


# --- quarantine


def test_masked_adapters_do_not_generate_until_they_are_rebuilt(run: Path, tmp_path: Path) -> None:
    at_once = Path(shutil.copytree(run, tmp_path / "at once"))
    facts = works("forget", run, "--fraction", "0.02", "--defer")
    assert facts["level"] == "influence-free"
    waiting = AdapterFolder.open(run / "model" / "adapters").waiting
    assert waiting
    pipeline = RunFolder.open(run).load_pipeline()
    assert isinstance(pipeline, AdapterEnsembleDDPMPipeline)
    assert waiting.isdisjoint(pipeline.adapters.states)
    assert "SHA-256 equal" in checks(run, "--replay")["replay of the adapters"]
    works("forget", run, "--rebuild")
    works("forget", at_once, "--fraction", "0.02")
    assert stores(run) == stores(at_once)


def test_a_backbone_that_was_changed_rebuilds_nothing(run: Path) -> None:
    works("forget", run, "--fraction", "0.02", "--defer")
    path = run / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with unchanged(run):
        assert "was changed since the training" in refused("forget", run, "--rebuild")


# --- checks


def test_a_sample_of_adapters_is_replayed(run: Path) -> None:
    works("forget", run, "--fraction", "0.05")
    said = checks(run, "--replay", "--sample", "3")
    assert "3 of" in said["replay of a sample of 3"]
    file = next((run / "model" / "adapters").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run_command("verify", run, "--replay", "--json")
    failed = [check for check in json.loads(result.stdout.splitlines()[-1])["checks"] if not check["passed"]]
    assert {check["name"] for check in failed} == {"adapters"}


def test_info_tells_what_it_is(run: Path) -> None:
    facts = works("info", run)
    assert (facts["task"], facts["model"], facts["family"]) == ("generation", "adapter-ensemble", "lora")
    assert (facts["adapters"], facts["neighbours"], facts["level"]) == (12, 1, "bit-exact")
    works("forget", run, "--fraction", "0.02", "--defer")
    assert works("info", run)["level"] == "influence-free"


def test_settings_of_adapters_decide_the_recipe_and_the_rest_does_not(run: Path) -> None:
    opened = RunFolder.open(run)
    digest = recipe_of(opened).digest
    assert recipe_of(opened.with_overrides(["sampling.seed=1"])).digest == digest
    text = opened.recipe_path.read_text(encoding="utf-8")
    for before, after in (("epochs: 2", "epochs: 3"), ("rank: 2", "rank: 4"), ("seed: 0", "seed: 1")):
        assert before in text
        opened.recipe_path.write_text(text.replace(before, after), encoding="utf-8")
        assert recipe_of(RunFolder(run)).digest != digest, after


# --- images


def test_images_do_not_depend_on_their_number(run: Path, tmp_path: Path) -> None:
    works("sample", run, "--out", tmp_path / "few", "--count", "2")
    works("sample", run, "--out", tmp_path / "more", "--count", "3", "--set", "sampling.batch_size=4")
    names = sorted(path.name for path in (tmp_path / "few").glob("*-*.png"))
    assert len(names) == 2 * 10
    for name in names:
        first, second = (
            np.asarray(Image.open(tmp_path / folder / name), dtype=int) for folder in ("few", "more")
        )
        assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("composition", ["mean", "mixture"])
def test_other_compositions_give_other_images(run: Path, composition: str, tmp_path: Path) -> None:
    works("sample", run, "--out", tmp_path / "route", "--count", "1")
    works(
        "sample",
        run,
        "--out",
        tmp_path / "other",
        "--count",
        "1",
        "--set",
        f"sampling.composition={composition}",
    )
    images = [np.asarray(Image.open(tmp_path / name / "sheet.png")) for name in ("route", "other")]
    assert not np.array_equal(*images)


# --- read while it is changed


def change_between(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[str]:
    """Let something happen once, after the records were read and before the adapters are."""
    read, reads = AdapterFolder.read, []

    def late(path: Path, work: Callable[[AdapterFolder], object]) -> object:
        reads.append(path.name)
        if len(reads) == 1:
            change()
        return read(path, work)

    monkeypatch.setattr(AdapterFolder, "read", staticmethod(late))
    return reads


def members_of(run: Path) -> np.ndarray:
    """Count the records of each class at each adapter, as the run's files say."""
    opened = RunFolder.open(run)
    recipe, rows = recipe_of(opened), opened.exemplar_folder().all_rows()
    routes = Records.of_rows(rows, recipe.shape.features)[1]
    return count_members(rows.labels, routes, len(recipe.keys), recipe.shape.classes)


@pytest.mark.parametrize("backbone", [(), pytest.param(SEMI_PARAMETRIC, marks=pytest.mark.slow)])
def test_a_deletion_between_the_reads_of_a_load_is_seen_whole(
    backbone: tuple[str, ...], fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "changing"
    if backbone:
        works("train", *tiny_ensemble(*backbone), "--out", run)
    else:
        shutil.copytree(fresh, run)
    opened, before = RunFolder.open(run), members_of(run)
    reads = change_between(monkeypatch, lambda: works("forget", run, "--class", "3"))
    pipeline = opened.load_pipeline()
    assert reads == ["adapters", "adapters"]
    assert isinstance(pipeline, AdapterEnsembleDDPMPipeline)
    np.testing.assert_array_equal(pipeline.adapters.members, members_of(run))
    assert pipeline.adapters.members.sum() < before.sum()
    assert set(pipeline.adapters.states) == set(opened.adapter_folder().files)
    if backbone:
        np.testing.assert_array_equal(pipeline.exemplars.ids, opened.exemplar_folder().ids)


def test_samples_of_a_run_that_changes_are_not_filed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = RunFolder.open(run)
    change_between(monkeypatch, lambda: works("forget", run, "--class", "3"))
    with pytest.raises(ValueError, match="changed since; nothing was sampled; run the command again"):
        sample_states(opened, ())
    assert not opened.samples_path.exists()
    sampled = sample_states(opened, ())
    assert list(sampled.states) == ["after"]
    assert 3 not in SampleSet.from_file(sampled.states["after"]).labels


def test_stores_of_different_states_are_refused(run: Path, fresh: Path) -> None:
    works("forget", run, "--class", "3")
    shutil.rmtree(run / "model" / "exemplars")
    shutil.copytree(fresh / "model" / "exemplars", run / "model" / "exemplars")
    with pytest.raises(ValueError, match="not in the state that the ledger's last entry describes"):
        RunFolder.open(run).load_pipeline()
    assert "see: gen-unlearn verify" in refused("sample", run, "--out", run.with_name("images"))


# --- with exemplars besides


def test_an_ensemble_on_a_semi_parametric_backbone_deletes_from_both(tmp_path: Path) -> None:
    run, oracle = tmp_path / "run", tmp_path / "oracle"
    works("train", *tiny_ensemble(*SEMI_PARAMETRIC), "--out", run)
    before = RunFolder.open(run).load_pipeline()
    assert isinstance(before, AdapterEnsembleDDPMPipeline)
    assert len(before.exemplars) == len(RunFolder.open(run).exemplar_folder())
    works("sample", run, "--out", tmp_path / "images", "--count", "1")
    assert works("forget", run, "--fraction", "0.1")["level"] == "bit-exact"
    works("train", *tiny_ensemble(*SEMI_PARAMETRIC), "--out", oracle, "--without", run)
    assert snapshot(run / "model") == snapshot(oracle / "model")
    works("sample", run, "--out", tmp_path / "after", "--count", "1")
    works("sample", oracle, "--out", tmp_path / "never", "--count", "1")
    assert snapshot(tmp_path / "after") == snapshot(tmp_path / "never")
