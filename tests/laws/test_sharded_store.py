"""Laws of the sharded store: files depend on the exemplars alone, and no byte can be changed unseen."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from gen_unlearn import shards
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_changes import StoreChange, save_store, stage_addition, stage_deletion
from gen_unlearn.exemplar_folder import ExemplarFolder, OvertakenError
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import ids_to_hex, image_ids
from gen_unlearn.shards import CONFIG, SUMS, Piece, Rows, digest_of_rows, first_words, sums_text

SHAPE = (2, 2, 1)
NAMES = ("a", "b", "c")
CONFIG_TEXT = b'{"channels": 1, "class_names": ["a", "b", "c"], "height": 2, "width": 2}'
LIMIT = 4
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put at most four images of `SHAPE` in a shard."""
    set_limit(monkeypatch, LIMIT)


def set_limit(monkeypatch: pytest.MonkeyPatch, limit: int, shape: tuple[int, ...] = SHAPE) -> None:
    monkeypatch.setattr(shards, "_TARGET_BYTES", limit * (int(np.prod(shape)) + 8 + 16))
    assert shards.shard_limit(shape) == limit


def rows_of(bits: list[str], seed: int = 0, labels: np.ndarray | None = None) -> Rows:
    """Return sorted exemplars with random pixels, whose ids start with the given bits and go on at random."""
    random = np.random.default_rng([seed, 1])
    rest = random.integers(0, 2, (len(bits), 128))
    text = ["".join(map(str, row.tolist())) for row in rest]
    whole = [start + end[len(start) :] for start, end in zip(bits, text, strict=True)]
    ids = np.array([list(int(one, 2).to_bytes(16)) for one in whole], np.uint8).reshape(-1, 16)
    if labels is None:
        labels = random.integers(0, len(NAMES), len(bits))
    pixels = random.integers(0, 256, (len(bits), *SHAPE), dtype=np.uint8)
    return in_order(Rows(pixels, labels.astype(np.int64), ids))


def in_order(rows: Rows) -> Rows:
    keys = [(name, label) for name, label in zip(ids_to_hex(rows.ids), rows.labels.tolist(), strict=True)]
    return rows.select(np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64))


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(rows: Rows, path: Path) -> Files:
    """Save exemplars to a new folder, and return every file."""
    shutil.rmtree(path, ignore_errors=True)
    save_store(rows, CONFIG_TEXT, path)
    return contents(path)


def apply(change: StoreChange, staging: Path, store: Path) -> None:
    """Bring a change into force, as `gen_unlearn.changes` does."""
    for name in change.new:
        (staging / name).rename(store / name)
    (store / SUMS).write_text(change.sums)
    for name in change.obsolete:
        (store / name).unlink()


def change_store(store: Path, stage: Callable[[ExemplarFolder, Path], StoreChange]) -> StoreChange:
    """Stage a change and bring it into force; hold that it rewrote no file, and says what it wrote."""
    staging = store.with_name("staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    before = stamps(store)
    change = stage(ExemplarFolder.open(store), staging)
    assert stamps(store) == before, "staging leaves the store alone"
    written = contents(staging)
    assert written.keys() == set(change.new)
    assert change.bytes_written == sum(map(len, written.values())) + len(change.sums)
    apply(change, staging, store)
    now = stamps(store)
    assert now.keys() == before.keys() - set(change.obsolete) | set(change.new)
    kept = now.keys() & before.keys() - {SUMS}
    assert [name for name in kept if now[name] != before[name]] == [], "what stays is not rewritten"
    return change


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def deleted(rows: Rows, gone: np.ndarray) -> Rows:
    names = set(ids_to_hex(gone))
    return rows.select(np.array([name not in names for name in ids_to_hex(rows.ids)], dtype=bool))


def assert_canonical(files: Files, rows: Rows) -> None:
    """Hold that files are what the documentation says: the shortest prefixes with few enough exemplars."""
    words = [format(word, "064b") for word in first_words(rows.ids).tolist()]
    pieces = [Piece.from_name(name) for name in files if name.endswith(".safetensors")]
    assert sum(piece.exemplars for piece in pieces) == len(rows.ids)
    for piece in pieces:
        under = [word.startswith(piece.prefix) for word in words]
        assert piece.exemplars == sum(under) > 0
        assert piece.exemplars <= LIMIT or len(piece.prefix) == 64
        assert not piece.prefix or sum(word.startswith(piece.prefix[:-1]) for word in words) > LIMIT
        assert files[piece.name] == rows.select(np.array(under)).to_bytes()
    groups = {piece.prefix[:10] for piece in pieces if len(piece.prefix) > 10}
    assert groups == {Piece.from_name(name).prefix for name in files if name.endswith(".sums")}
    listed = {line.split("  ")[1] for line in files[SUMS].decode().splitlines()}
    assert listed == {name for name in files if name != SUMS and not is_grouped(name)}


def is_grouped(name: str) -> bool:
    return name.endswith(".safetensors") and len(name.partition(".")[0]) > 10


def population(seed: int) -> Rows:
    """Return exemplars of all kinds: spread evenly, crowded at several depths, and with two labels."""
    random = np.random.default_rng(seed)
    crowds = ["", "1", "0110", "0110111010", "01101110101", "01101110111000011", "1" * 30, "0" * 64]
    bits = [crowds[kind] for kind in random.integers(0, len(crowds), 130)]
    rows = rows_of(bits, seed)
    twice = rows.select(np.sort(random.choice(len(rows.ids), 15, replace=False)))
    return in_order(Rows.joined([rows, Rows(twice.pixels, (twice.labels + 1) % 3, twice.ids)]))


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_changes_leaves_what_a_fresh_save_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """225 changes in all, of one image or of many, up to everything."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # Durability is not the question, and takes its time.
    everything, random = population(seed), np.random.default_rng([seed, 2])
    store = tmp_path / "store"
    present = everything.select(np.arange(0, len(everything.ids), 2))
    saved(present, store)
    grouped = 0
    for step in range(45):
        count = int(random.choice([1, 1, 2, 5, 20, 50, 200], p=[0.2, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05]))
        if len(present.ids) and random.random() < 0.5:
            chosen = random.permutation(len(present.ids))[:count]
            gone = present.ids[chosen]
            change = change_store(
                store, lambda folder, staging, gone=gone: stage_deletion(folder, gone, staging)
            )
            left = deleted(present, gone)
            differing = deleted_labels(present, gone)
        else:
            new = everything.select(random.permutation(len(everything.ids))[:count])
            change = change_store(
                store, lambda folder, staging, new=new: stage_addition(folder, new, staging)
            )
            left = united(present, new)
            differing = np.bincount(left.labels, minlength=3) - np.bincount(present.labels, minlength=3)
        present = left
        found = contents(store)
        assert found == saved(present, tmp_path / "fresh"), step
        assert change.digest == ExemplarFolder.open(store).digest == digest_of_rows(present, SHAPE, NAMES)
        assert change.count == len(ExemplarFolder.open(store)) == len(present.ids)
        counts = [change.changed_per_label.get(label, 0) for label in range(3)]
        assert counts == differing.tolist()
        assert_canonical(found, present)
        grouped += any(name.endswith(".sums") for name in found)
    assert grouped > 10, "some shards lie in groups"


def deleted_labels(rows: Rows, gone: np.ndarray) -> np.ndarray:
    kept = np.bincount(deleted(rows, gone).labels, minlength=3)
    return np.bincount(rows.labels, minlength=3) - kept


def united(rows: Rows, new: Rows) -> Rows:
    both = Rows.joined([rows, new])
    keys = [(name, label) for name, label in zip(ids_to_hex(both.ids), both.labels.tolist(), strict=True)]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return both.select(np.array([first[key] for key in sorted(first)], dtype=np.int64))


@pytest.mark.parametrize("order", range(3))
def test_the_order_of_deletions_does_not_matter(tmp_path: Path, order: int) -> None:
    rows = population(7)
    gone = np.unique(rows.ids, axis=0)[::3]
    saved(rows, tmp_path / "store")
    for part in np.array_split(np.random.default_rng(order).permutation(gone), 1 + 3 * order):
        change_store(
            tmp_path / "store", lambda folder, staging, part=part: stage_deletion(folder, part, staging)
        )
    assert contents(tmp_path / "store") == saved(deleted(rows, gone), tmp_path / "fresh")


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_both_ways_to_delete_equal_never_having_held(
    few_images: IndexedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, on_disk: bool
) -> None:
    set_limit(monkeypatch, limit, few_images.image_shape)
    request = ForgetSet(few_images.ids[[0, 3, 4, 5, 17, 29]], "test")
    store = ExemplarStore.from_images(few_images)
    store.save_pretrained(tmp_path / "store")
    if on_disk:
        change_store(tmp_path / "store", lambda folder, staging: stage_deletion(folder, request.ids, staging))
    else:
        store.delete(request)
        store.save_pretrained(tmp_path / "store")
    never = ExemplarStore.from_images(few_images.without(request))
    never.save_pretrained(tmp_path / "never")
    assert contents(tmp_path / "store") == contents(tmp_path / "never")
    folder = ExemplarFolder.open(tmp_path / "store")
    folder.verify()
    assert folder.digest == never.digest
    loaded = ExemplarStore.from_pretrained(tmp_path / "store")
    assert loaded.digest == never.digest
    assert np.array_equal(loaded.images, never.images)
    assert np.array_equal(folder.ids, never.ids)
    assert np.array_equal(folder.labels, never.labels)


@pytest.mark.parametrize("bits", ["", "0" * 10, "1" * 11, "01" * 20, "1" * 64])
@pytest.mark.parametrize("count", [1, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_ids_that_start_alike(tmp_path: Path, bits: str, count: int) -> None:
    """Ids that agree in all 64 bits that shards go by share one shard, however many they are."""
    rows = rows_of([bits] * count, seed=count)
    files = saved(rows, tmp_path / "store")
    assert_canonical(files, rows)
    gone = rows.ids[[0]]
    change_store(tmp_path / "store", lambda folder, staging: stage_deletion(folder, gone, staging))
    assert contents(tmp_path / "store") == saved(deleted(rows, gone), tmp_path / "fresh")
    one = rows.select(np.array([0]))
    change_store(tmp_path / "store", lambda folder, staging: stage_addition(folder, one, staging))
    assert contents(tmp_path / "store") == files


def test_everything_can_be_deleted_and_an_empty_store_can_be_filled(tmp_path: Path) -> None:
    rows, store = population(3), tmp_path / "store"
    files = saved(rows, store)
    change = change_store(store, lambda folder, staging: stage_deletion(folder, rows.ids, staging))
    assert (change.count, change.new) == (0, ())
    assert contents(store).keys() == {SUMS, CONFIG}
    assert contents(store) == saved(Rows.none(SHAPE), tmp_path / "fresh")
    folder = ExemplarFolder.open(store)
    folder.verify()
    assert (len(folder), len(folder.ids), len(folder.all_rows().pixels)) == (0, 0, 0)
    assert not folder.holds(rows.ids).any()
    change_store(store, lambda folder, staging: stage_addition(folder, rows, staging))
    assert contents(store) == files


def test_one_id_under_two_labels_leaves_and_comes_label_by_label(tmp_path: Path) -> None:
    one = rows_of(["01", "10"], labels=np.array([0, 0]))
    both = in_order(Rows.joined([one, one.select(np.array([0]))._replace(labels=np.array([2]))]))
    store = tmp_path / "store"
    saved(one, store)
    change = change_store(store, lambda folder, staging: stage_addition(folder, both, staging))
    assert change.changed_per_label == {2: 1}
    assert contents(store) == saved(both, tmp_path / "fresh")
    again = change_store(store, lambda folder, staging: stage_addition(folder, both, staging))
    assert (again.new, again.obsolete, again.changed_per_label) == ((), (), {})
    gone = one.ids[:1]
    change = change_store(store, lambda folder, staging: stage_deletion(folder, gone, staging))
    assert change.changed_per_label == {0: 1, 2: 1}
    assert len(ExemplarFolder.open(store)) == 1


def test_neighbours_that_became_small_are_merged_and_split_again(tmp_path: Path) -> None:
    rows, store = rows_of(["00", "01", "01", "10", "11"]), tmp_path / "store"
    files = saved(rows, store)
    assert sorted(name.partition(".")[0] for name in files) == ["0", "1", SUMS, "config"]
    gone = rows.select(np.array([4]))
    change = change_store(store, lambda folder, staging: stage_deletion(folder, gone.ids, staging))
    assert len(change.new) == 1
    assert change.new[0].startswith("all.4.")
    assert sorted(name.partition(".")[0] for name in change.obsolete) == ["0", "1"]
    change_store(store, lambda folder, staging: stage_addition(folder, gone, staging))
    assert contents(store) == files


@pytest.mark.parametrize("row", [0, 40, 100])
def test_a_deletion_touches_the_shard_of_its_image_alone(tmp_path: Path, row: int) -> None:
    """One image out of five times three shards: one of them is written anew, and the list it is in."""
    starts = [*(format(number, "04b") for number in range(16)), *("1" * 8 + end for end in ("0", "1"))]
    deep = ["0101010101" + end for end in ("00", "01", "10", "11")]
    rows = rows_of([start for start in (*starts, *deep) for _ in range(6)])
    saved(rows, tmp_path / "store")
    gone = rows.ids[[row]]
    (holder,) = ExemplarFolder.open(tmp_path / "store").holders(gone)
    change = change_store(tmp_path / "store", lambda folder, staging: stage_deletion(folder, gone, staging))
    pieces = [Piece.from_name(name) for name in (*change.new, *change.obsolete)]
    old = [piece for piece in pieces if piece.name in change.obsolete and piece.suffix == "safetensors"]
    assert holder in old
    region = min((piece.prefix for piece in pieces if piece.suffix == "safetensors"), key=len)
    assert all(piece.prefix.startswith(region[:-1]) for piece in old)
    assert len(old) <= 2
    assert len([piece for piece in pieces if piece.suffix == "sums"]) in (0, 2)


@pytest.mark.parametrize("known", [0, 3])
def test_unknown_ids_are_named_and_nothing_is_written(tmp_path: Path, known: int) -> None:
    rows = population(5)
    before = saved(rows, tmp_path / "store")
    strangers = rows_of(["", "0110111010", "1" * 30, "01101110111000011"], seed=99).ids
    (tmp_path / "staging").mkdir()
    asked = np.concatenate([rows.ids[:known], strangers])
    distinct = len(np.unique(asked, axis=0))
    with pytest.raises(
        ValueError, match=rf"^4 of {distinct} ids are not in the store: \w{{32}}, .*nothing was"
    ):
        stage_deletion(ExemplarFolder.open(tmp_path / "store"), asked, tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    assert contents(tmp_path / "store") == before


def test_only_the_shards_that_may_hold_an_id_are_read(tmp_path: Path) -> None:
    """Remove every other shard: a question, and a deletion, do not notice."""
    rows, store = population(11), tmp_path / "store"
    saved(rows, store)
    asked = rows.ids[[3, 60]]
    needed = {shard.name for shard in ExemplarFolder.open(store).holders(asked)}
    for path in store.glob("*.safetensors"):
        if path.name not in needed:
            path.unlink()
    folder = ExemplarFolder.open(store)
    assert folder.holds(asked).all()
    assert {row.tobytes() for row in folder.select(asked).ids} == {row.tobytes() for row in asked}
    with pytest.raises(OvertakenError, match="is missing"):
        folder.all_rows()


def test_a_store_is_not_saved_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files of something else: thesis\.txt"):
        save_store(population(1), CONFIG_TEXT, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


# --- nothing can be changed unseen


def real_rows(limit_bits: int = 12) -> Rows:
    """Return six images under their own ids, two of which agree in so many bits that they are grouped."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, *SHAPE), dtype=np.uint8)
    ids = image_ids(pixels)
    words = first_words(ids) >> np.uint64(64 - limit_bits)
    _, where, counts = np.unique(words, return_inverse=True, return_counts=True)
    pair = np.flatnonzero(where == int(np.argmax(counts == 2)))
    chosen = np.unique(np.concatenate([pair, [0, 1, 2, 3]]))
    return in_order(Rows(pixels[chosen], (chosen % 3).astype(np.int64), ids[chosen]))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of single images, two of them in a group, that passes."""
    set_limit(monkeypatch, 1)
    save_store(real_rows(), CONFIG_TEXT, tmp_path / "store")
    ExemplarFolder.open(tmp_path / "store").verify()
    assert any(name.endswith(".sums") for name in contents(tmp_path / "store"))
    return tmp_path / "store"


def problem(store: Path) -> str:
    """Return what is wrong with a store; empty if nothing is found."""
    try:
        ExemplarFolder.open(store).verify()
    except ValueError as error:
        return str(error)
    return ""


def places(content: bytes) -> Iterator[int]:
    yield from sorted({*range(0, len(content), max(1, len(content) // 12)), 1, len(content) - 1})


@pytest.mark.parametrize("kind", ["config", "shard", "grouped shard", "group", "sums"])
@pytest.mark.parametrize("flip", [1, 2, 0x20, 0x80])
def test_a_changed_byte_is_noticed(store: Path, kind: str, flip: int) -> None:
    files = contents(store)
    kinds = {CONFIG: "config", SUMS: "sums"}
    for name, content in files.items():
        of = kinds.get(name, "group" if name.endswith(".sums") else "shard")
        if ("grouped shard" if is_grouped(name) else of) != kind:
            continue
        for place in places(content):
            changed = bytearray(content)
            changed[place] ^= flip
            (store / name).write_bytes(changed)
            assert problem(store), (name, place)
        (store / name).write_bytes(content)
    assert not problem(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text.replace("\n", "\x0b", 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(reversed(text.splitlines(keepends=True))),
        lambda text: text + text,
    ],
    ids=["no end", "vertical tab", "carriage returns", "another order", "twice"],
)
def test_a_list_of_sums_that_is_not_written_so_is_noticed(store: Path, change: Callable[[str], str]) -> None:
    (store / SUMS).write_bytes(change((store / SUMS).read_text()).encode())
    assert problem(store)


@pytest.mark.parametrize("cut", [2, 8, 10**6])
def test_a_shortened_file_is_noticed(store: Path, cut: int) -> None:
    for name, content in contents(store).items():
        (store / name).write_bytes(content[:-cut])
        assert problem(store), name
        (store / name).write_bytes(content)
    assert not problem(store)


def test_a_missing_or_additional_file_is_noticed(store: Path) -> None:
    for name, content in contents(store).items():
        (store / name).unlink()
        assert problem(store), name
        (store / name).write_bytes(content)
    (shard, *_) = store.glob("*.safetensors")
    for extra in ("note.txt", ".hidden", shard.name.replace(shard.name[:3], "all", 1)):
        shutil.copy(shard, store / extra)
        assert f"do not belong to it: {extra}" in problem(store)
        (store / extra).unlink()
    assert not problem(store)


def test_swapped_shards_are_noticed(store: Path) -> None:
    first, second, *_ = sorted(store.glob("*.safetensors"))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert "was changed" in problem(store)
    relist(store)
    assert "does not hold what its name says" in problem(store)


def relist(store: Path) -> None:
    """Write the sums anew, as somebody would who wants a change to go unnoticed."""
    for path in (*store.glob("*.sums"), store / SUMS):
        names = [line.split("  ")[1] for line in path.read_text().splitlines()]
        sums = {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in names}
        path.write_text(sums_text(sums))


def write_by_hand(path: Path, parts: list[tuple[str, bytes, Rows]]) -> Path:
    """Write a store of given shards and correct sums, none of them in a group."""
    path.mkdir()
    files = {CONFIG: CONFIG_TEXT}
    files |= {Piece.of_rows(prefix, rows).name: content for prefix, content, rows in parts}
    for name, content in files.items():
        (path / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (path / SUMS).write_text(sums_text(sums))
    return path


def parts_of(rows: Rows, *prefixes: str) -> list[tuple[str, bytes, Rows]]:
    words = np.array([format(word, "064b") for word in first_words(rows.ids).tolist()])
    chosen = [(prefix, rows.select(np.char.startswith(words, prefix))) for prefix in prefixes]
    return [(prefix, part.to_bytes(), part) for prefix, part in chosen]


def test_a_store_by_hand_passes_if_it_is_as_the_program_writes_it(tmp_path: Path) -> None:
    rows = real_rows().select(np.arange(3))
    assert not problem(write_by_hand(tmp_path / "store", parts_of(rows, "")))
    assert contents(tmp_path / "store") == saved(rows, tmp_path / "fresh")


def test_shards_of_other_images_are_noticed(tmp_path: Path) -> None:
    rows = real_rows().select(np.arange(3))
    stranger = rows.pixels.copy()
    stranger[1, 0, 0, 0] ^= 1
    changed = rows._replace(pixels=stranger)
    found = problem(write_by_hand(tmp_path / "pixels", [("", changed.to_bytes(), rows)]))
    assert "1 of 3 images" in found
    assert ids_to_hex(rows.ids)[1] in found
    relabelled = rows._replace(labels=(rows.labels + 1) % 3)
    found = problem(write_by_hand(tmp_path / "labels", [("", relabelled.to_bytes(), rows)]))
    assert "does not hold what its name says" in found


def test_a_layout_that_is_not_canonical_is_noticed(tmp_path: Path) -> None:
    rows = real_rows().select(np.arange(3))
    finer = parts_of(rows, "0", "1")
    assert "not divided into shards as its ids require" in problem(write_by_hand(tmp_path / "finer", finer))
    narrow = parts_of(rows, "")
    narrow = [("1", narrow[0][1], narrow[0][2])]
    assert "not divided" in problem(write_by_hand(tmp_path / "elsewhere", narrow))


def test_rows_out_of_order_are_noticed(tmp_path: Path) -> None:
    rows = real_rows().select(np.array([1, 0, 2]))
    assert problem(write_by_hand(tmp_path / "store", parts_of(rows, "")))


def test_something_hidden_in_a_shard_is_noticed(tmp_path: Path) -> None:
    rows = real_rows().select(np.arange(3))
    tensors = {"pixels": rows.pixels, "labels": rows.labels, "ids": rows.ids}
    hiding = save(tensors, metadata={"deleted": real_rows().pixels.tobytes().hex()})
    assert problem(write_by_hand(tmp_path / "store", [("", hiding, rows)]))


def test_a_group_that_lists_other_shards_is_noticed(store: Path) -> None:
    digest = ExemplarFolder.open(store).digest
    (group,) = store.glob("*.sums")
    member = Piece.from_name(group.read_text().splitlines()[0].split("  ")[1])
    rows = Rows.from_bytes((store / member.name).read_bytes(), member.name)
    other = rows._replace(labels=(rows.labels + 1) % 3)
    renamed = Piece.of_rows(member.prefix, other).name
    (store / renamed).write_bytes(other.to_bytes())
    (store / member.name).unlink()
    group.write_text(group.read_text().replace(member.name, renamed))
    relist(store)
    assert ExemplarFolder.open(store).digest == digest, "so the ledger does not notice either"
    assert problem(store)


def rename(store: Path, old: str, new: str) -> None:
    (store / old).rename(store / new)
    for path in (store / SUMS, *store.glob("*.sums")):
        lines = path.read_text().replace(f"  {old}\n", f"  {new}\n").splitlines(keepends=True)
        path.write_text("".join(sorted(lines, key=lambda line: line.split("  ")[1])))
    relist(store)


@pytest.mark.parametrize(("part", "other"), [(1, "9"), (2, "0" * 32)], ids=["count", "digest"])
def test_a_group_under_another_name_is_noticed(store: Path, part: int, other: str) -> None:
    (group,) = store.glob("*.sums")
    parts = group.name.split(".")
    parts[part] = other
    rename(store, group.name, ".".join(parts))
    assert problem(store)


def test_a_group_that_was_taken_apart_is_noticed(store: Path) -> None:
    (group,) = store.glob("*.sums")
    members = group.read_text()
    group.unlink()
    kept = [line for line in (store / SUMS).read_text().splitlines(keepends=True) if group.name not in line]
    lines = sorted([*kept, *members.splitlines(keepends=True)], key=lambda line: line.split("  ")[1])
    (store / SUMS).write_text("".join(lines))
    assert problem(store)


@pytest.mark.parametrize("change", [lambda parts: [parts[0], "0" + parts[1]], lambda parts: ["", parts[1]]])
def test_a_shard_under_an_unusual_name_is_refused(
    store: Path, change: Callable[[list[str]], list[str]]
) -> None:
    shard = next(path for path in store.glob("*.safetensors") if not is_grouped(path.name))
    parts = shard.name.split(".")
    rename(store, shard.name, ".".join([*change(parts), *parts[2:]]))
    with pytest.raises(ValueError, match=r"not the name of a file|is missing"):
        ExemplarFolder.open(store).all_rows()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_agrees(store: Path) -> None:
    def check(*lists: str) -> int:
        command = ["sha256sum", "--check", "--strict", "--quiet", *lists]
        return subprocess.run(command, cwd=store, capture_output=True, check=False).returncode

    (group,) = (path.name for path in store.glob("*.sums"))
    assert check(SUMS) == 0
    assert check(group) == 0
    for path in store.glob("*.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert check(group if is_grouped(path.name) else SUMS) != 0
        path.write_bytes(content)
    (store / group).write_text("")
    assert check(SUMS) != 0
