"""Weights of published networks: found in local files, checked by their digest, never downloaded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

CACHE_FOLDER = Path("~/.cache/gen_unlearn/weights")
"""Where weights are looked for if no file is named; the folder `$GEN_UNLEARN_WEIGHTS` comes first."""


@dataclass(frozen=True)
class WeightsFile:
    """Name a published file of weights.

    Attributes:
        name: its file name.
        url: where it was published.
        sha256: its digest, 64 hexadecimal digits.
        what: the network, in a few words.
    """

    name: str
    url: str
    sha256: str
    what: str


INCEPTION_TORCHSCRIPT = WeightsFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    what="Inception-V3 as TorchScript, of clean-fid's modes clean and legacy_tensorflow",
)

INCEPTION_PYTORCH = WeightsFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    what="Inception-V3 of pytorch-fid, of clean-fid's mode legacy_pytorch",
)

INCEPTION_TORCH_FIDELITY = WeightsFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    sha256=INCEPTION_PYTORCH.sha256,  # the same bytes, published twice
    what="Inception-V3 of torch-fidelity, of torchmetrics",
)

SSCD_DISC_MIXUP = WeightsFile(
    name="sscd_disc_mixup.torchscript.pt",
    url="https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt",
    sha256="9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56",
    what="SSCD copy detector, ResNet-50 as TorchScript",
)


def find_weights(file: WeightsFile, path: Path | None = None) -> Path:
    """Return where a file of weights lies, once its digest has been checked.

    Args:
        file: what to look for.
        path: the file, under any name; without it, `file.name` in `$GEN_UNLEARN_WEIGHTS` and then in
            `CACHE_FOLDER`.

    Raises:
        ValueError: there is no such file, or it has another digest.
    """
    places = [path] if path is not None else [folder / file.name for folder in _folders()]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " or ".join(str(place) for place in places)
        raise ValueError(
            f"expected the weights {file.name} ({file.what}), found no file {looked}; get them from "
            f"{file.url} and put them there, or name a local copy with --weights FILE: nothing is downloaded"
        )
    actual = file_sha256(found)
    if actual != file.sha256:
        raise ValueError(
            f"expected {file.name} with SHA-256 {file.sha256}, got {actual} in {found}; "
            f"the file is damaged or another one, get it again from {file.url}"
        )
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders() -> list[Path]:
    """Return the folders that weights are looked for in, the first one first."""
    named = os.environ.get("GEN_UNLEARN_WEIGHTS")
    return [Path(folder).expanduser() for folder in ([named] if named else []) + [str(CACHE_FOLDER)]]
