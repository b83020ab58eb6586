"""Wrong use of the command line: one line on standard error, exit code 2, and nothing is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from command_line import Shop, refused, run_command, tiny, tree

from gen_unlearn.cli_base import reports_errors


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop.open(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def unchanged(shop: Shop, tmp_path: Path) -> Iterator[None]:
    """Hold that a test writes nothing at all."""
    root = shop.fresh.parent
    before = tree(root), tree(tmp_path)
    yield
    assert (tree(root), tree(tmp_path)) == before


WRONG = {
    "forget {fresh}": "nothing is asked for",
    "forget {fresh} --class eleven": "'eleven'",
    "forget {fresh} --id " + "0" * 32: "1 of 1 are not among the exemplars: 0000",
    "forget {fresh} --id xyz": "32 hexadecimal digits",
    "forget {fresh} --fraction 1.5": "1.5",
    "forget {fresh} --fraction lots": "'--fraction'",
    "forget {fresh} --image {tmp}/no.png": "no.png",
    "forget {fresh} --list {tmp}/no.txt": "no.txt",
    "forget {deleted} --class 3": "1 of 1 classes are deleted before: 3; nothing was deleted",
    "forget {plain} --class 3": "class-conditional",
    "forget {tmp}/nowhere --class 3": "nowhere holds no run",
    "forget": "RUN",
    "forgot {fresh}": "forgot",
    "sample {deleted} --class 3 --out {tmp}/images": "no exemplar is left of class 3",
    "sample {fresh} --class x --out {tmp}/images": "'x'",
    "sample {fresh} --count 0 --out {tmp}/images": "count",
    "sample {fresh} --out {fresh}": "not an empty folder",
    "sample {fresh} --out {tmp}/i --set training.images=1": "fixed once a run is trained",
    "evaluate {fresh} --oracle {oracle}": "has no oracle",
    "evaluate {deleted} --oracle {fresh}": "was not trained without exactly what was deleted",
    "evaluate {deleted} --oracle {plain}": "another recipe",
    "evaluate {tmp}": "holds no run",
    "report {fresh}": "was not evaluated yet",
    "report {deleted}": "was changed after its evaluation",
    "report {evaluated} --out {fresh}": "{fresh}",
    "train {tmp}/nowhere": "recipe.yaml",
    "train --out {tmp}/new": "--config",
    "train --config {tmp}/no.yaml --out {tmp}/new": "there is no recipe",
    "train {tiny} --out {tmp}/new --set training.imags=3": "did you mean images?",
    "train {tiny} --out {tmp}/new --set training.images=[1": "training.images",
    "train {tiny} --out {tmp}/new --set training.images": "section.key=value",
    "train {tiny} --out {tmp}/new --set training.mixed_precision=half": "mixed_precision",
    "train {tiny} --out {tmp}/new --set model.norm_num_groups=3": "num_groups",
    "train {tiny} --out {tmp}/new --set model.down_block_types=[A,B]": "A",
    "train {tiny} --out {tmp}/new --set training.gradient_accumulation_steps=7": "multiple",
    "train {tiny} --out {tmp}/new --set data.image_size=9": "divisible by 2",
    "train {tiny} --out {tmp}/new --set data.source={tmp}/gone --set data.image_size=8": "gone",
    "train {tiny} --out {fresh} --set seed=1": "holds another run",
    "train {tiny} --out {tmp}/new --without {fresh}": "nothing was deleted from",
    "train {tiny} --out {tmp}/new --without {fresh}/recipe.yaml": "holds no run",
    "train {tiny} --out {tmp}/new --without {deleted}/receipts/0009.json": "has no receipt 0009.json",
}


@pytest.mark.usefixtures("unchanged")
def test_a_receipt_that_is_in_no_run_is_named(tmp_path: Path) -> None:
    assert "holds no run" in refused(
        "train", *tiny(), "--out", tmp_path / "new", "--without", "/no-such-file"
    )


@pytest.mark.parametrize(("command", "expected"), WRONG.items(), ids=WRONG)
@pytest.mark.usefixtures("unchanged")
def test_wrong_use_is_one_line_and_changes_nothing(
    shop: Shop, tmp_path: Path, command: str, expected: str
) -> None:
    places = {**vars(shop), "tmp": tmp_path}
    words: list[object] = []
    for word in command.split():
        words += tiny() if word == "{tiny}" else [word.format(**places)]
    assert expected.format(**places) in refused(*words)


ALONE = {
    "demo": ("--out", "{tmp}/demo"),
    "forget": ("{fresh}", "--class", "3"),
    "add": ("{fresh}", "{tmp}"),
    "predict": ("{fresh}", "{tmp}"),
    "unlearn": ("{fresh}", "--method", "neggrad", "--class", "3", "--out", "{tmp}/new"),
    "report": ("{fresh}",),
}


@pytest.mark.parametrize("verb", ALONE)
@pytest.mark.usefixtures("unchanged")
def test_what_is_not_shared_is_refused_in_several_processes(
    shop: Shop, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [word.format(**vars(shop), tmp=tmp_path) for word in ALONE[verb]]
    assert f"expected one process for {verb}, got 2" in refused(verb, *words)
    monkeypatch.setenv("RANK", "1")
    assert run_command(verb, *words).stderr.startswith("process 1: error: expected one process")


@pytest.mark.parametrize("kind", [threading.Lock, threading.RLock])
def test_ctrl_c_within_a_lock_is_ctrl_c(
    kind: Callable[[], threading.Lock], capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def waits() -> None:
        lock = kind()
        with threading.Condition(lock):
            lock.release()
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as ended:
        waits()
    assert (ended.value.exit_code, capsys.readouterr().err) == (130, "interrupted\n")


def test_an_error_of_a_lock_without_ctrl_c_is_no_ctrl_c() -> None:
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        reports_errors(threading.Lock().release)()
