"""Residue of deleted images is found in every kind of file, and retained images raise no alarm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from plants import NEED_PIXELS_OR_NAMES, PLANTS, Case, Subset, colours, digits, plant_all

from gen_unlearn.residue.search import Finding, ResidueReport

NAMES = [name for name, _, _ in PLANTS]


@dataclass(frozen=True, eq=False)
class Audit:
    """A folder in which residue of some images was planted, and what the two ways to search it find."""

    case: Case
    with_everything: ResidueReport
    by_tombstones: ResidueReport


@pytest.fixture(params=[digits, colours], scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def audit(case: Case, planted: Subset, folder: Path) -> Audit:
    plant_all(folder, planted)
    return Audit(case, case.search(folder), case.search_by_tombstones(folder))


@pytest.fixture(scope="module")
def deleted(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit(case, case.deleted, tmp_path_factory.mktemp("deleted"))


@pytest.fixture(scope="module")
def retained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit(case, case.retained, tmp_path_factory.mktemp("retained"))


def found_in(report: ResidueReport, name: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.path == Path(name)]


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in PLANTS], ids=NAMES)
def test_finds(deleted: Audit, name: str, kind: str) -> None:
    findings = found_in(deleted.with_everything, name)
    assert kind in {finding.kind for finding in findings}
    assert all(finding.count >= 1 for finding in findings)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kind, _ in PLANTS if name not in NEED_PIXELS_OR_NAMES]
)
def test_finds_what_is_only_recognised(deleted: Audit, name: str, kind: str) -> None:
    assert kind in {finding.kind for finding in found_in(deleted.by_tombstones, name)}


@pytest.mark.parametrize("name", NAMES)
def test_is_silent_about_retained_images(retained: Audit, name: str) -> None:
    assert not found_in(retained.with_everything, name)
    assert not found_in(retained.by_tombstones, name)


def test_reads_every_planted_file(deleted: Audit, retained: Audit) -> None:
    for planted in (deleted, retained):
        for report in (planted.with_everything, planted.by_tombstones):
            assert report.files_searched == len(PLANTS)
            assert report.not_searched == ()
            assert report.bytes_searched > 0
    assert not deleted.with_everything.clean
    assert retained.with_everything.clean


def test_counts_and_places(deleted: Audit) -> None:
    images = len(deleted.case.deleted.images)
    report = deleted.with_everything
    (store,) = found_in(report, "planar.safetensors")
    assert store.count == images
    assert store.detail == f"tensor 'pixels', row 0, 1, 2, 3, 4 and {images - 5} more"
    (table,) = found_in(report, "data.parquet")
    assert (table.count, table.detail) == (5, "column 'img', field 'bytes', row 0, 1, 2, 3, 4")
    (tile,) = found_in(report, "figure.png")
    assert (tile.count, tile.detail) == (1, "tile near x=18 y=34 enlarged 2 times")
    (sheet,) = found_in(report, "large_sheet.png")
    assert sheet.count == 7


def test_a_report_is_no_residue_itself(deleted: Audit, tmp_path: Path) -> None:
    (tmp_path / "residue.json").write_text(json.dumps(deleted.with_everything.to_dict()))
    assert deleted.case.search(tmp_path).clean


def test_generated_look_alikes_are_no_residue(case: Case, tmp_path: Path) -> None:
    changed = case.deleted.images.copy()
    changed[:, 3, 4] ^= 1
    near = Subset(changed, case.retained.names, case.retained.tokens)
    lossy = {"thumbnail.jpg", "large.jpg", "thumbnail.webp", "jpeg.html"}
    for name, kind, plant in PLANTS:
        if kind in ("pixels", "picture") and name not in lossy:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            plant(tmp_path / name, near)
    assert case.search(tmp_path).clean
