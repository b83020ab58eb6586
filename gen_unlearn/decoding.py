"""Turn image files of any size, mode and depth into uint8 arrays, in the one way the package uses."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

_SUFFIXES_OF_FORMATS = {
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2",),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES_OF_FORMATS.values() for suffix in suffixes)
"""File suffixes, in lower case, that count as images when a folder is read."""

_FORMATS = tuple(_SUFFIXES_OF_FORMATS)  # Closed on purpose: Pillow hands EPS files to an external program.

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""How files are opened: without waiting for a pipe, bytes as they are. Systems lack one of both."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise on hostile or damaged bytes."""


class ImageDecodeError(ValueError):
    """Say which image cannot be decoded, and why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot decode {self.name}: {self.reason}"


def decode_image(
    source: Path | bytes | Image.Image, *, size: tuple[int, int] | None, channels: int | None
) -> np.ndarray:
    """Decode one image to a uint8 array of shape ``(height, width, channels)``.

    The conversion, in order:

    1. The first frame of an animated file (of a `PIL.Image.Image`: the frame it stands at).
    2. EXIF orientation is applied; other metadata is ignored, damaged or not.
    3. 16-bit grey becomes ``round(value / 257)``. Pillow's 32-bit mode "I" is clipped at 0 and counts
       as 8-bit if no value exceeds 255, otherwise as 16-bit clipped at 65535. Float grey (mode "F")
       counts as 0..1 if no value exceeds 1, otherwise as 0..255; it is clipped and rounded, and NaN is 0.
       (16-bit colour is reduced to 8 bits by Pillow itself.)
    4. Palette, CMYK, YCbCr, HSV and LAB become RGB, 1-bit becomes grey, and transparency is composited
       on white.
    5. Grey (ITU-R 601 luma) for one channel, RGB for three.
    6. Unless the size already fits, the centre is cropped to the target's aspect ratio and resized with
       Pillow's antialiased bicubic filter. An image of the target's size keeps its bytes.

    Args:
        source: an image file, the bytes of one, or an image object (left unchanged).
        size: target ``(height, width)``; `None` leaves the image as large as it is.
        channels: 1 (grey) or 3 (RGB); `None` takes 1 for an image without colour or transparency.

    Raises:
        ImageDecodeError: the source is missing, empty, corrupt, truncated, not an image of a known
            format, or larger than Pillow's decompression-bomb limit.
    """
    if (size is not None and min(size) < 1) or channels not in (None, 1, 3):
        raise ValueError(
            f"expected a positive size and 1 or 3 channels, got size {size}, channels {channels}"
        )
    name = "image object" if isinstance(source, Image.Image) else "image bytes"
    if isinstance(source, Path):
        name = str(source)
    try:
        with STRICT_WARNINGS:
            if isinstance(source, Image.Image):
                return _to_array(ImageOps.exif_transpose(source), size, channels)
            with Image.open(_encoded(source), formats=_FORMATS) as image:
                _refuse_bombs(image)
                ImageOps.exif_transpose(image, in_place=True)
                return _to_array(image, size, channels)
    except _DECODER_ERRORS as error:
        raise ImageDecodeError(name, _reason(error)) from error


def image_files(folder: Path) -> list[Path]:
    """List the image files below a folder, sorted by name level by level.

    Hidden entries and files without an image suffix are left out.

    Raises:
        ValueError: a link to a folder, or a link to a file outside `folder`.
    """
    return list(_walk(folder, folder.resolve()))


def _refuse_bombs(image: Image.Image) -> None:
    """Raise what Pillow only warns of, whatever other threads do to the filters of warnings."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels are more than the limit of {limit}, "
            "which decompression bombs exceed"
        )


class _StrictWarnings:
    """Have warnings ignored or raised as decoding needs it, while any thread decodes.

    The filters of warnings belong to the process: the first thread sets them, the last one puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._filters = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on damaged metadata.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._filters.close()


STRICT_WARNINGS = _StrictWarnings()
"""`decode_image` is within; who decodes many images is faster once more around all of them."""


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_symlink() and (entry.is_dir() or not path.resolve().is_relative_to(root)):
            raise ValueError(
                f"expected plain files and folders, got {path}, a link to a folder or out of {root}; "
                f"replace it with a copy of what it points to"
            )
        if entry.is_dir():
            yield from _walk(path, root)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def _encoded(source: Path | bytes) -> io.BytesIO:
    data = _content(source) if isinstance(source, Path) else source
    if not data:
        raise EOFError("it is empty (zero bytes)")
    return io.BytesIO(data)


def _content(path: Path) -> bytes:
    """Read a plain file by few calls of the system, which for small pictures take as long as decoding."""
    file = os.open(path, _READ)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no plain file")
        parts = []
        while part := os.read(file, found.st_size + 1):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image in a known format ({', '.join(_FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _to_array(image: Image.Image, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    image = _on_white(_eight_bits(image))
    if channels is None:
        channels = 1 if image.mode in ("1", "L") else 3
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size if size is None else size[::-1]
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return np.array(image).reshape(height, width, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Reduce the modes deeper than 8 bits (I;16 in any byte order, I, F) to "L"; leave others."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        values = np.rint(np.clip(values * (255.0 if values.max() <= 1 else 1.0), 0, 255))
    elif image.mode != "I" or values.max() > 255:
        values = (np.clip(values, 0, 65535).astype(np.int64) + 128) // 257  # No ties: 257 is odd.
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Convert LAB to RGB, and composite an image with transparency of any kind on white."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(*profiles, inMode="LAB", outMode="RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None, "only an in-place transform returns nothing"
        return converted
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
