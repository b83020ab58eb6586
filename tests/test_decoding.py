"""Laws of the one image conversion: every mode and format, and every way a file can be broken."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_unlearn.decoding import IMAGE_SUFFIXES, STRICT_WARNINGS, ImageDecodeError, decode_image, image_files

SIZE = (6, 8)
"""Height and width of the test pictures."""


def colours(seed: int = 0) -> np.ndarray:
    """Return random pixels, uint8 ``(6, 8, 3)``."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def decode(source: Path | bytes | Image.Image, channels: int = 3) -> np.ndarray:
    return decode_image(source, size=SIZE, channels=channels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".tga"])
def test_image_of_the_target_size_keeps_its_bytes_in_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(colours()).save(path)
    np.testing.assert_array_equal(decode(path), colours())
    np.testing.assert_array_equal(decode(path.read_bytes()), colours())
    assert suffix in IMAGE_SUFFIXES


def test_lossless_webp_keeps_its_bytes(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "picture.webp", lossless=True)
    np.testing.assert_array_equal(decode(tmp_path / "picture.webp"), colours())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_eight_bit_mode_of_an_opaque_grey_image_gives_the_same_pixels(mode: str, channels: int) -> None:
    black_and_white = Image.fromarray((colours()[..., 0] > 127).astype(np.uint8) * 255)
    expected = np.repeat(np.asarray(black_and_white)[..., None], channels, axis=2)
    middle = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, mode)
    image = black_and_white.convert(middle).convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(decode(image, channels), expected)
    assert image.mode == mode


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_spaces_convert_to_rgb(mode: str) -> None:
    white = {"CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128), "HSV": (0, 0, 255), "LAB": (255, 128, 128)}
    decoded = decode(Image.new(mode, SIZE[::-1], white[mode]))
    assert decoded.shape == (*SIZE, 3)
    assert decoded.min() >= 254


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", SIZE[::-1], (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    red, green, blue = decode(tmp_path / "red.jpg")[0, 0]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path: Path, mode: str) -> None:
    clear, half, solid = 0, 51, 255
    image = Image.new(mode, SIZE[::-1], 0)
    image.putalpha(
        Image.fromarray(np.repeat([[clear, half, solid, 0, 0, 0, 0, 0]], 6, axis=0).astype(np.uint8))
    )
    image.save(tmp_path / "picture.png")
    np.testing.assert_array_equal(decode(tmp_path / "picture.png")[0, :3, 0], [255, 204, 0])


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])], ids=["index", "table"])
def test_palette_transparency_is_composited_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    indices = np.zeros(SIZE, dtype=np.uint8)
    indices[0, 1] = 1
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "picture.png", transparency=transparency)
    decoded = decode(tmp_path / "picture.png")
    np.testing.assert_array_equal(decoded[0, :2], [[255, 255, 255], [0, 0, 255]])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_is_composited_on_white(tmp_path: Path, mode: str) -> None:
    key = 7 if mode == "L" else (7, 7, 7)
    Image.new(mode, SIZE[::-1], key).save(tmp_path / "picture.png", transparency=key)
    assert (decode(tmp_path / "picture.png") == 255).all()


@pytest.mark.parametrize(("mode", "suffix"), [("<u2", ".png"), ("<u2", ".tiff"), (">u2", ".tiff")])
def test_sixteen_bit_grey_is_divided_by_257_and_rounded(tmp_path: Path, mode: str, suffix: str) -> None:
    values = np.array([0, 128, 129, 257, 385, 386, 40000, 65535])
    raw = np.tile(values.astype(mode), (6, 1))
    image = Image.frombytes("I;16B" if mode == ">u2" else "I;16", SIZE[::-1], raw.tobytes())
    image.save(tmp_path / f"picture{suffix}")
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode(tmp_path / f"picture{suffix}", 1)[3, :, 0], expected)
    np.testing.assert_array_equal(decode(image, 3)[3, :, 2], expected)


def test_mode_i_is_eight_bit_unless_a_value_exceeds_255() -> None:
    values = np.tile(np.array([-5, 0, 1, 2, 100, 200, 254, 255], dtype=np.int32), (6, 1))
    np.testing.assert_array_equal(
        decode(Image.fromarray(values), 1)[0, :, 0], [0, 0, 1, 2, 100, 200, 254, 255]
    )
    values[:, -1] = 70000
    np.testing.assert_array_equal(decode(Image.fromarray(values), 1)[0, :, 0], [0, 0, 0, 0, 0, 1, 1, 255])


def test_float_grey_is_unit_range_unless_a_value_exceeds_one() -> None:
    values = np.tile(np.array([-1, 0, 0.5, 0.999, 1, np.nan, -np.inf, 0], dtype=np.float32), (6, 1))
    np.testing.assert_array_equal(decode(Image.fromarray(values), 1)[0, :, 0], [0, 0, 128, 255, 255, 0, 0, 0])
    values[:, -1] = np.inf
    np.testing.assert_array_equal(decode(Image.fromarray(values), 1)[0, :, 0], [0, 0, 0, 1, 1, 0, 0, 255])


def test_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.full(SIZE, 0.2, dtype=np.float32)).save(tmp_path / "picture.tiff")
    assert (decode(tmp_path / "picture.tiff", 1) == 51).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.kron(np.arange(4).reshape(2, 2) * 60, np.ones((8, 8))).astype(np.uint8))
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # The transposition that a viewer undoes.
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=100)
    decoded = decode_image(tmp_path / "photo.jpg", size=(16, 16), channels=1)[..., 0]
    np.testing.assert_allclose(decoded.astype(int), np.asarray(upright).astype(int), atol=3)


def test_damaged_metadata_does_not_matter() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"):
        buffer = io.BytesIO()
        Image.new("RGB", SIZE[::-1], "white").save(buffer, "JPEG", exif=exif)
        assert (decode(buffer.getvalue()) == 255).all()


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", SIZE[::-1], colour) for colour in ("red", "blue")]
    for name in ("film.gif", "film.webp", "film.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(decode(tmp_path / name)[0, 0], [255, 0, 0])


def test_other_sizes_are_cropped_in_the_centre_and_resized() -> None:
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200
    np.testing.assert_array_equal(decode_image(Image.fromarray(wide), size=(4, 4), channels=3), wide[:, 4:8])
    assert (decode_image(Image.fromarray(wide[:, 4:8]), size=(9, 9), channels=1) == 200).all()
    assert decode_image(Image.new("L", (1, 500)), size=(5, 3), channels=3).shape == (5, 3, 3)


def test_reducing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    reduced = decode_image(Image.fromarray(stripes), size=(8, 8), channels=1).astype(int)
    assert abs(reduced - 127).max() <= 8


def test_the_source_image_is_left_unchanged() -> None:
    image = Image.fromarray(colours()).convert("RGBA")
    before = image.tobytes()
    decode_image(image, size=(3, 3), channels=1)[:] = 0
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", SIZE[::-1], before)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(colours(), (20, 20, 1))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_truncated_files_are_refused_by_name(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(kind)
    path = tmp_path / "broken image.png"
    path.write_bytes(whole[: max(4, int(len(whole) * share))])
    with pytest.raises(ImageDecodeError, match=r"cannot decode .*broken image\.png: ."):
        decode(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "known format"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "text.png").write_bytes(data)
    with pytest.raises(ImageDecodeError, match=rf"text\.png: .*{reason}") as caught:
        decode(tmp_path / "text.png")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageDecodeError, match="image bytes"):
        decode(data)


def test_corrupt_png_and_missing_file(tmp_path: Path) -> None:
    whole = bytearray(encoded("PNG"))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(ImageDecodeError, match="image bytes"):
        decode(bytes(whole))
    with pytest.raises(ImageDecodeError, match=r"nowhere\.png: No such file"):
        decode(tmp_path / "nowhere.png")


@pytest.mark.parametrize("limit", [120 * 160 - 1, 100], ids=["warning", "error"])
def test_decompression_bombs(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    whole = encoded("PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageDecodeError, match="decompression bomb"):
        decode(whole)


def test_threads_refuse_bombs_and_leave_the_filters_of_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 160 - 1)
    bomb, small, before = encoded("PNG"), io.BytesIO(), list(warnings.filters)
    Image.fromarray(colours()).save(small, "PNG")

    def refuses(number: int) -> bool:
        try:
            decode(bomb if number % 2 else small.getvalue())
        except ImageDecodeError as error:
            return "decompression bomb" in str(error)
        return False

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(refuses, range(64))) == [False, True] * 32
    assert warnings.filters == before


def test_a_bomb_is_refused_whatever_others_do_to_the_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 160 - 1)
    with STRICT_WARNINGS:  # As while another thread decodes.
        warnings.simplefilter("ignore")
        with pytest.raises(ImageDecodeError, match="decompression bomb"):
            decode(encoded("PNG"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageDecodeError, match="it is no plain file"):
        decode(tmp_path / "pipe.png")


def test_wrong_targets_and_pickling() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got size"):
        decode_image(Image.new("L", (4, 4)), size=(4, 4), channels=2)
    with pytest.raises(ValueError, match="positive size"):
        decode_image(Image.new("L", (4, 4)), size=(0, 4), channels=1)
    error = pickle.loads(pickle.dumps(ImageDecodeError("a.png", "it is empty")))
    assert str(error) == "cannot decode a.png: it is empty"


def test_image_files_are_sorted_and_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b/2.PNG", "b/1.jpg", "a é/ü.webp", ".hidden/3.png", "b/.4.png", "b/notes.txt", "b/5"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = [str(path.relative_to(root)) for path in image_files(root)]
    assert found == ["a é/ü.webp", "b/1.jpg", "b/2.PNG"]

    (root / "b" / "link.png").symlink_to(root / "b" / "1.jpg")
    assert len(image_files(root)) == 4
    (tmp_path / "secret.png").touch()
    (root / "b" / "way out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"way out\.png, a link"):
        image_files(root)
