import hashlib
from pathlib import Path

import pytest

from gen_unlearn.metrics.weights import (
    INCEPTION_PYTORCH,
    INCEPTION_TORCH_FIDELITY,
    INCEPTION_TORCHSCRIPT,
    SSCD_DISC_MIXUP,
    WeightsFile,
    find_weights,
)

CONTENT = b"weights"
FILE = WeightsFile("net.pt", "https://example.org/net.pt", hashlib.sha256(CONTENT).hexdigest(), "a network")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Point the environment's folder and the home folder to empty ones."""
    named, home = tmp_path / "named", tmp_path / "home"
    cache = home / ".cache" / "gen_unlearn" / "weights"
    for folder in (named, cache):
        folder.mkdir(parents=True)
    monkeypatch.setenv("GEN_UNLEARN_WEIGHTS", str(named))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    return named, cache


def test_looks_at_the_named_file_then_the_named_folder_then_the_cache(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    own, places = tmp_path / "renamed.bin", [folder / FILE.name for folder in folders]
    places[1].write_bytes(CONTENT)
    assert find_weights(FILE) == places[1]
    places[0].write_bytes(CONTENT)
    assert find_weights(FILE) == places[0]
    own.write_bytes(CONTENT)
    assert find_weights(FILE, own) == own


def test_the_cache_is_enough(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEN_UNLEARN_WEIGHTS")
    (folders[1] / FILE.name).write_bytes(CONTENT)
    assert find_weights(FILE) == folders[1] / FILE.name


def test_missing_weights_name_places_source_and_option(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"net\.pt") as caught:
        find_weights(FILE)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*(str(folder / FILE.name) for folder in folders), FILE.url, FILE.what, "--weights FILE"):
        assert part in message


def test_a_named_file_that_is_missing_is_not_replaced(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / FILE.name).write_bytes(CONTENT)
    for wrong in (tmp_path / "elsewhere.pt", tmp_path):
        with pytest.raises(ValueError, match="no file") as caught:
            find_weights(FILE, wrong)
        assert str(wrong) in str(caught.value)
        assert str(folders[0]) not in str(caught.value)


def test_another_digest_is_refused_with_both(tmp_path: Path) -> None:
    path = tmp_path / FILE.name
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(ValueError, match=FILE.sha256) as caught:
        find_weights(FILE, path)
    assert hashlib.sha256(CONTENT + b"!").hexdigest() in str(caught.value)
    assert FILE.url in str(caught.value)


@pytest.mark.parametrize(
    "file", [INCEPTION_TORCHSCRIPT, INCEPTION_PYTORCH, INCEPTION_TORCH_FIDELITY, SSCD_DISC_MIXUP]
)
def test_published_files_are_named_as_their_address(file: WeightsFile) -> None:
    assert file.url.startswith("https://")
    assert file.url.endswith("/" + file.name)
    assert len(bytes.fromhex(file.sha256)) == 32
    if "-6726825d" in file.name:
        assert file.sha256.startswith("6726825d")
