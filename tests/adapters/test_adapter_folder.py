"""Adapters on disk: the list is the whole state, and what waits does not answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gen_unlearn.adapters.adapter_folder import (
    AdapterFile,
    AdapterFolder,
    save_adapters,
    stage_adapters,
)
from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.generations import OvertakenError
from gen_unlearn.shards import SUMS, sha256, sums_text

SIZES = {0: 3, 2: 5, 7: 1, 9: 0}


def state(seed: int, complete: bool = True) -> AdapterState:
    sums = {
        "gram": np.random.default_rng(seed).integers(-99, 99, (3, 3)),
        "cross": np.arange(6).reshape(3, 2),
    }
    return sums | ({"weights": np.full((3, 2), float(seed))} if complete else {})


def states() -> dict[int, AdapterState]:
    return {adapter: state(adapter) for adapter, members in SIZES.items() if members}


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    save_adapters(states(), SIZES, tmp_path / "adapters")
    return AdapterFolder.open(tmp_path / "adapters")


def change(folder: AdapterFolder, changed: dict[int, tuple[int, AdapterState | None]]) -> AdapterFolder:
    """Bring a change into force, as a run does."""
    staging = folder.path.parent / "staging"
    staging.mkdir()
    staged = stage_adapters(folder, changed, staging)
    assert {path.name for path in staging.iterdir()} == set(staged.new)
    for name in staged.new:
        (staging / name).rename(folder.path / name)
    (folder.path / SUMS).write_text(staged.sums)
    for name in staged.obsolete:
        (folder.path / name).unlink()
    staging.rmdir()
    after = AdapterFolder.open(folder.path)
    assert after.digest == staged.digest
    return after


def list_again(path: Path) -> AdapterFolder:
    files = [file for file in path.iterdir() if file.name != SUMS]
    (path / SUMS).write_text(sums_text({file.name: sha256(file.read_bytes()) for file in files}))
    return AdapterFolder.open(path)


def test_what_is_saved_is_loaded(folder: AdapterFolder) -> None:
    assert folder.sizes == {0: 3, 2: 5, 7: 1}
    assert folder.waiting == frozenset()
    folder.verify()
    for adapter, expected in states().items():
        loaded = folder.state(adapter)
        assert loaded is not None
        assert loaded.keys() == expected.keys()
        assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="has no adapter 9: it has no members"):
        folder.state(9)


def test_the_folder_is_a_function_of_the_adapters(folder: AdapterFolder, tmp_path: Path) -> None:
    swapped = dict(reversed(list(state(2).items())))
    save_adapters(dict(reversed([*states().items(), (2, swapped)])), SIZES, tmp_path / "again")
    again = AdapterFolder.open(tmp_path / "again")
    assert again.sums == folder.sums
    assert again.digest == folder.digest
    save_adapters(states() | {2: state(3)}, SIZES, tmp_path / "other")
    assert AdapterFolder.open(tmp_path / "other").digest != folder.digest
    save_adapters(states(), SIZES | {2: 6}, tmp_path / "sizes")
    assert AdapterFolder.open(tmp_path / "sizes").digest != folder.digest


def test_saving_replaces_adapters_and_refuses_anything_else(folder: AdapterFolder) -> None:
    save_adapters({4: state(4)}, {4: 2}, folder.path)
    AdapterFolder.open(folder.path).verify()
    assert AdapterFolder.open(folder.path).sizes == {4: 2}
    (folder.path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"files of something else: notes\.txt"):
        save_adapters(states(), SIZES, folder.path)
    with pytest.raises(ValueError, match="expected states of 2 adapters with members, got 3"):
        save_adapters(states(), {0: 1, 2: 1}, folder.path / "new")


@pytest.mark.parametrize(
    "file",
    [
        AdapterFile(0, 1, waiting=False, digest="ab" * 16),
        AdapterFile(32766, 123456, waiting=True, digest="01" * 16),
        AdapterFile(17, 3, waiting=True, digest=""),
    ],
)
def test_names_tell_what_is_in_a_file(file: AdapterFile) -> None:
    assert AdapterFile.from_name(file.name) == file


@pytest.mark.parametrize(
    "name",
    [
        "7.1.waiting.safetensors",
        "00007.0.waiting.safetensors",
        "00007.01.waiting.safetensors",
        "00007.1.waiting-.safetensors",
        "00007.1.waiting-ab.safetensors",
        "00007.1..safetensors",
        f"00007.1.{'AB' * 16}.safetensors",
        f"00007.1.{'ab' * 16}.sums",
        "SHA256SUMS",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file of an adapter"):
        AdapterFile.from_name(name)


def test_what_waits_does_not_answer(folder: AdapterFolder) -> None:
    after = change(folder, {0: (2, state(0, complete=False)), 7: (1, None), 2: (0, None)})
    after.verify()
    assert after.sizes == {0: 2, 7: 1}
    assert after.waiting == {0, 7}
    assert after.serving() == {}
    kept = after.state(0)
    assert kept is not None
    assert sorted(kept) == ["cross", "gram"]
    assert after.state(7) is None
    assert after.files[7].name == "00007.1.waiting.safetensors"
    back = change(after, {0: (3, state(0)), 7: (1, state(7)), 2: (5, state(2))})
    assert back.sums == folder.sums


def test_a_file_that_stays_the_same_is_not_written_again(folder: AdapterFolder) -> None:
    staging = folder.path.parent / "staging"
    staging.mkdir()
    staged = stage_adapters(folder, {0: (3, state(0)), 2: (5, state(8))}, staging)
    assert [name[:5] for name in staged.new] == ["00002"]
    assert [name[:5] for name in staged.obsolete] == ["00002"]
    assert len(list(staging.iterdir())) == 1


def test_only_what_answers_need_is_read(folder: AdapterFolder) -> None:
    served = folder.serving(("weights",))
    assert sorted(served) == [0, 2, 7]
    assert all(sorted(arrays) == ["weights"] for arrays in served.values())
    assert np.array_equal(served[7]["weights"], np.full((3, 2), 7.0))
    assert sorted(folder.serving()[2]) == ["cross", "gram", "weights"]


def test_a_waiting_file_with_a_serving_name_is_noticed(folder: AdapterFolder) -> None:
    after = change(folder, {0: (2, state(0, complete=False))})
    name = after.files[0].name
    (after.path / name).rename(after.path / name.replace("waiting-", ""))
    forged = list_again(after.path)
    assert 0 in forged.sizes.keys() - forged.waiting
    with pytest.raises(ValueError, match="does not hold what its name says"):
        forged.verify()
    with pytest.raises(ValueError, match="no adapter that can answer"):
        forged.serving(("weights",))


def test_damage_is_noticed(folder: AdapterFolder) -> None:
    path = folder.path / folder.files[2].name
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="its SHA-256 is not the one listed"):
            folder.verify()
        with pytest.raises(ValueError, match=r"does not hold what its name says|is no adapter"):
            list_again(folder.path).verify()
    path.write_bytes(content)
    list_again(folder.path).verify()
    (folder.path / "00003.1.waiting.safetensors.old").write_text("")
    with pytest.raises(ValueError, match="files that do not belong to it"):
        folder.verify()


def test_an_adapter_is_listed_once(folder: AdapterFolder) -> None:
    (folder.path / "00002.4.waiting.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="lists an adapter twice"):
        list_again(folder.path).verify()


def test_a_reader_that_is_overtaken_starts_over(folder: AdapterFolder) -> None:
    seen = []

    def work(present: AdapterFolder) -> list[int]:
        seen.append(present)
        if len(seen) == 1:
            change(present, {2: (4, None), 7: (1, state(5))})
        return sorted(present.serving())

    assert AdapterFolder.read(folder.path, work) == [0, 7]
    assert len(seen) == 2
    next(folder.path.glob("00007*")).unlink()
    with pytest.raises(OvertakenError, match="is missing"):
        AdapterFolder.read(folder.path, AdapterFolder.serving)


def test_a_folder_without_a_list_holds_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder of adapters"):
        AdapterFolder.open(tmp_path)
