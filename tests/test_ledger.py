"""The ledger: no line can be changed, taken out or put in, and it names no deleted image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_factory import make_run, random_images

from gen_unlearn.commands.add import add
from gen_unlearn.commands.forget import forget
from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.ledger import Ledger, LedgerEntry, append_line
from gen_unlearn.repro import digest_arrays, digest_bytes, ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import RunKey

DIGESTS = [character * 64 for character in "abcd"]


@pytest.fixture
def key() -> RunKey:
    return RunKey(bytes(range(32)))


@pytest.fixture
def path(key: RunKey, few_images: IndexedImages, tmp_path: Path) -> Path:
    """A ledger of a training, a deletion, an addition and another deletion."""
    path = tmp_path / "ledger.jsonl"
    Ledger.start(path, key, DIGESTS[0], 30, {"recipe.yaml": "0" * 64})
    for number, kind in enumerate(("deleted", "added", "deleted"), start=1):
        ledger = Ledger.read(path, key)
        marks = tuple(sorted(key.tombstones(few_images.ids[number : number + 2])))
        details = {} if kind == "added" else {"receipt": f"{number:04d}.json", "receipt_sum": "1" * 64}
        entry = ledger.following(
            kind, DIGESTS[number], 2, 28, tombstones=() if kind == "added" else marks, **details
        )
        append_line(path, ledger.size, entry.to_line())
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def problem(path: Path, key: RunKey) -> str:
    """Return what is wrong with a ledger; empty if nothing is found."""
    try:
        Ledger.read(path, key)
    except ValueError as error:
        return str(error)
    return ""


def test_a_ledger_says_what_happened(path: Path, key: RunKey, few_images: IndexedImages) -> None:
    ledger = Ledger.read(path, key)
    assert [entry.kind for entry in ledger.entries] == ["trained", "deleted", "added", "deleted"]
    assert [entry.sequence for entry in ledger.entries] == [0, 1, 2, 3]
    assert ledger.entries[0].files == {"recipe.yaml": "0" * 64}
    assert ledger.size == path.stat().st_size
    assert ledger.head == hashlib.sha256(lines_of(path)[-1]).hexdigest()
    assert np.flatnonzero(ledger.tombstones.mask(few_images.ids)).tolist() == [1, 2, 3, 4]
    (mark,) = key.tombstones(few_images.ids[3:4])
    found = ledger.deletion_of(mark)
    assert found is not None
    assert found.receipt == "0003.json"
    (stranger,) = key.tombstones(few_images.ids[9:10])
    assert ledger.deletion_of(stranger) is None


def test_an_entry_describes_its_state_and_no_other(path: Path, key: RunKey) -> None:
    for number, entry in enumerate(Ledger.read(path, key).entries):
        assert [entry.describes(digest, key) for digest in DIGESTS] == [n == number for n in range(4)]
        assert not entry.describes(DIGESTS[number], RunKey.fresh())


def test_equal_states_do_not_look_equal(path: Path, key: RunKey) -> None:
    ledger = Ledger.read(path, key)
    entries = [ledger.following("added", DIGESTS[0], 1, 30) for _ in range(10)]
    assert len({entry.state for entry in entries} | {ledger.entries[0].state}) == 11
    assert len({entry.salt for entry in entries}) == 10
    assert all(entry.describes(DIGESTS[0], key) for entry in entries)


@pytest.mark.parametrize("flip", [1, 0x20, 0x80])
@pytest.mark.parametrize("line", range(4))
def test_every_changed_byte_of_every_line_is_noticed(path: Path, key: RunKey, line: int, flip: int) -> None:
    content, lines = path.read_bytes(), lines_of(path)
    start = sum(map(len, lines[:line]))
    for place in range(start, start + len(lines[line])):
        if place == len(content) - 1:
            continue  # The end of the last line: then it is being written, see below.
        changed = bytearray(content)
        changed[place] ^= flip
        path.write_bytes(changed)
        found = problem(path, key)
        assert found.startswith(f"{path} is damaged: "), place
        assert len(found.splitlines()) == 1, place
    path.write_bytes(content)
    assert not problem(path, key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "line 1 does not follow|belongs to another key"),
        (lambda lines: [lines[0], *lines[2:]], "line 2 does not follow"),
        (lambda lines: lines[:2] + lines[3:], "line 3 does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2 does not follow"),
        (lambda lines: [*lines[:3], lines[2], lines[3]], "line 4 does not follow"),
        (lambda lines: [*lines, lines[-1]], "line 5 does not follow"),
        (lambda lines: [*lines, lines[0]], "line 5 does not follow"),
        (lambda lines: [*lines, b"\n"], "it is no entry"),
        (lambda lines: [b"{}\n", *lines], "it is no entry"),
        (lambda _: [], "it has no entry"),
        (lambda _: [b'{"sequence": 0}'], "it has no entry"),
        (lambda lines: [line.replace(b": ", b":") for line in lines], "not written as entries are"),
        (lambda _: [b"[1]\n"], "it is no entry"),
        (lambda _: [b"null\n"], "it is no entry"),
    ],
)
def test_lines_that_are_missing_moved_or_foreign_are_noticed(
    path: Path, key: RunKey, change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    path.write_bytes(b"".join(change(lines_of(path))))
    with pytest.raises(ValueError, match=said):
        Ledger.read(path, key)


@pytest.mark.parametrize(
    "altered",
    [
        {"kind": "added"},
        {"images": 3},
        {"remaining": 27},
        {"level": "distributional"},
        {"receipt": "0009.json"},
        {"receipt_sum": "2" * 64},
        {"tombstones": ("0" * 32,)},
        {"created": "2020-01-01T00:00:00+00:00"},
        {"salt": "0" * 32},
        {"state": "0" * 64},
        {"key": "0" * 16},
        {"files": {}},
        {"seal": ""},
    ],
    ids=lambda altered: next(iter(altered)),
)
@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_forged_entry_in_an_unbroken_chain_is_noticed(
    path: Path, key: RunKey, altered: dict[str, object], line: int
) -> None:
    """Somebody without the key changes an entry, and writes the hashes of all lines after it anew."""
    entries = [LedgerEntry.from_line(text) for text in lines_of(path)]
    forged = replace(entries[line], **altered)
    lines = [entry.to_line() for entry in entries[:line]] + [forged.to_line()]
    for entry in entries[line + 1 :]:
        lines.append(replace(entry, previous=hashlib.sha256(lines[-1]).hexdigest()).to_line())
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"line {line + 1} was changed|belongs to another key"):
        Ledger.read(path, key)


def test_lines_that_were_cut_off_at_the_end_show_by_a_head_that_was_noted(path: Path, key: RunKey) -> None:
    heads = []
    for count in (4, 3, 2, 1):
        path.write_bytes(b"".join(lines_of(path)[:count]))
        heads.append(Ledger.read(path, key).head)
    assert len(set(heads)) == 4


def test_the_key_of_another_run_is_noticed(path: Path) -> None:
    with pytest.raises(ValueError, match=r"ledger\.jsonl is damaged: it belongs to another key"):
        Ledger.read(path, RunKey.fresh())


def test_a_missing_ledger_is_named(tmp_path: Path, key: RunKey) -> None:
    with pytest.raises(ValueError, match=r"cannot read the ledger of the run: .*ledger\.jsonl"):
        Ledger.read(tmp_path / "ledger.jsonl", key)


def test_a_line_that_is_being_written_does_not_count(path: Path, key: RunKey) -> None:
    whole = Ledger.read(path, key)
    line = whole.following("added", DIGESTS[1], 1, 29).to_line()
    for length in range(len(line)):
        path.write_bytes(b"".join(whole.lines) + line[:length])
        assert Ledger.read(path, key).lines == whole.lines, length
    path.write_bytes(b"".join(whole.lines) + line)
    assert len(Ledger.read(path, key).lines) == 5
    path.write_bytes(b"".join(whole.lines)[:-1])
    assert len(Ledger.read(path, key).lines) == 3


def test_a_line_is_appended_once_however_often_it_is_asked_for(path: Path, key: RunKey) -> None:
    ledger = Ledger.read(path, key)
    line = ledger.following("added", DIGESTS[1], 1, 29).to_line()
    expected = b"".join(ledger.lines) + line
    for torn in (b"", line[:1], line[:-1], line, line + b"more", line[: len(line) // 2] + b"\0" * 500):
        path.write_bytes(b"".join(ledger.lines) + torn)
        for _ in range(3):
            append_line(path, ledger.size, line)
            assert path.read_bytes() == expected
    assert not problem(path, key)


# --- what a run keeps of deleted images


@pytest.fixture
def used(tmp_path: Path) -> tuple[RunFolder, IndexedImages]:
    """A run, and all images that were deleted from it: twelve, one after another was added."""
    data, more = random_images(30, seed=0), random_images(4, seed=1, start=30)
    run = make_run(tmp_path / "run", data)
    forget(run, ForgetSet(data.ids[:10], "first"))
    add(run, more)
    forget(run, ForgetSet(more.ids[:2], "second"))
    gone = IndexedImages(
        np.concatenate([data.images[:10], more.images[:2]]),
        np.concatenate([data.labels[:10], more.labels[:2]]),
        np.concatenate([data.ids[:10], more.ids[:2]]),
        data.class_names,
        data.names[:10] + more.names[:2],
    )
    return run, gone


def marks_of(data: IndexedImages) -> dict[str, bytes]:
    """Return what whoever has the images could search for: pixels, ids, and every plain digest of either."""
    marks: dict[str, bytes] = {}
    for image, id_, name in zip(data.images, data.ids, ids_to_hex(data.ids), strict=True):
        for what, plain in (("pixels", image.tobytes()), ("id", id_.tobytes()), ("name", name.encode())):
            marks[f"{what} of {name}"] = plain
            for kind in ("md5", "sha1", "sha256", "blake2b", "blake2s"):
                digest = hashlib.new(kind, plain).digest()
                marks[f"{kind} of {what} of {name}"] = digest
            marks[f"digest_bytes of {what} of {name}"] = bytes.fromhex(digest_bytes(plain))
            marks[f"id-sized digest of {what} of {name}"] = hashlib.blake2b(plain, digest_size=16).digest()
        marks[f"digest_arrays of {name}"] = bytes.fromhex(digest_arrays(image))
    forget_set = ForgetSet(data.ids, "test")
    marks["digest of all"] = bytes.fromhex(forget_set.digest)
    marks["digest of the first"] = bytes.fromhex(ForgetSet(data.ids[:10], "test").digest)
    return marks


def traces(files: dict[str, bytes], data: IndexedImages) -> list[str]:
    marks = marks_of(data)
    return [
        f"{mark} in {file}"
        for file, content in files.items()
        for mark, plain in marks.items()
        if plain in content or plain.hex().encode() in content.lower() or plain[:16].hex().encode() in content
    ]


def files_of(run: RunFolder) -> dict[str, bytes]:
    return {
        path.relative_to(run.path).as_posix(): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
    }


def test_nothing_of_deleted_images_is_left_in_any_file(used: tuple[RunFolder, IndexedImages]) -> None:
    run, gone = used
    files = files_of(run)
    assert {"ledger.jsonl", "receipts/0001.json", "receipts/0003.json"} <= files.keys()
    assert traces(files, gone) == []
    digests = [run.exemplar_folder().digest, *(digest_bytes(row.tobytes()) for row in gone.ids)]
    kept = files["ledger.jsonl"] + files["receipts/0001.json"] + files["receipts/0003.json"]
    assert not [digest for digest in digests if digest.encode() in kept], "states are sealed too"


def test_the_search_finds_what_is_still_there(used: tuple[RunFolder, IndexedImages]) -> None:
    run, _ = used
    held = random_images(30, seed=0).select(np.arange(10, 30))
    found = traces(files_of(run), held)
    assert len([mark for mark in found if mark.startswith("pixels of")]) == 20
    assert len([mark for mark in found if mark.startswith("id of")]) == 20


def test_with_its_key_a_run_recognises_what_was_deleted(used: tuple[RunFolder, IndexedImages]) -> None:
    run, gone = used
    assert run.forgotten().mask(gone.ids).all()
    assert not run.forgotten().mask(run.exemplar_folder().ids).any()
    sequences = [run.ledger.deletion_of(mark) for mark in run.key.tombstones(gone.ids)]
    assert [entry.sequence for entry in sequences if entry is not None] == [1] * 10 + [3] * 2
    texts = [json.loads(line) for line in run.ledger.lines]
    assert [len(text["tombstones"]) for text in texts] == [0, 10, 0, 2]
