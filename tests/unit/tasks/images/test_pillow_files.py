"""One file for each row of the rules of images, and what its pixels come out as; docs/reference/tasks.md has them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.images import pillow_files
from fl_queue.tasks.images.decoding import decode, read
from fl_queue.tasks.images.picture import in_channels
from fl_queue.tasks.images.pillow_files import opaque
from fl_queue.tasks.images.settings import ImageSettings

GREY = ImageSettings(channels=1)
COLOUR = ImageSettings(channels=3)
#: 0 to 65,535 in steps of 257: the values that 8 bits have, in 16.
RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def written(folder: Path, content: bytes, name: str) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def png(depth: int, kind: int, width: int, row: bytes, more: bytes = b"") -> bytes:
    """A PNG of one row, of any depth; Pillow writes few of them."""
    head = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    parts = _chunk(b"IHDR", head) + more + _chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + parts + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    content = name + data
    return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


def tiff(values: NDArray[Any], bits: int = 16, white_is_zero: bool = False) -> bytes:
    """An uncompressed TIFF of grey values, of 12 bits (packed) or of 16, 32 (whole numbers or floats)."""
    height, width = values.shape
    if bits == 12:
        low, high = values.reshape(-1, 2).astype(np.uint32).T
        triples = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], axis=1)
        data = triples.astype(np.uint8).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    start = 8 + 2 + 12 * 10 + 4
    tags += [(273, start), (277, 1), (278, height), (279, len(data)), (339, form)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def grey(path: Path, settings: ImageSettings = GREY) -> NDArray[np.float32]:
    pixels = decode(path, settings)
    assert pixels.dtype == torch.float32
    assert pixels.shape[0] == settings.channels
    return pixels.numpy()[0]


# Grey of 1 to 16 bits


@pytest.mark.parametrize(
    ("depth", "row", "wanted"),
    [
        (1, b"\xaa", [1, 0, 1, 0]),
        (2, b"\x1b", [0, 1 / 3, 2 / 3, 1]),
        (4, b"\x05\xaf", [0, 5 / 15, 10 / 15, 1]),
        (8, b"\x00\x01\x80\xff", [0, 1 / 255, 128 / 255, 1]),
    ],
)
def test_grey_of_up_to_eight_bits_is_a_scale_from_black_to_white(
    tmp_path: Path, depth: int, row: bytes, wanted: list[float]
) -> None:
    path = written(tmp_path, png(depth, 0, 4, row), "a.png")
    np.testing.assert_allclose(grey(path)[0], wanted, atol=1e-7)


@pytest.mark.parametrize("form", ["png", "tiff", "tiff-big-endian", "pgm"])
def test_grey_of_sixteen_bits_is_divided_by_its_largest_value(tmp_path: Path, form: str) -> None:
    if form == "png":
        path = written(tmp_path, png(16, 0, 256, RAMP.astype(">u2").tobytes()), "a.png")
    elif form == "pgm":
        path = written(tmp_path, b"P5 256 1 65535\n" + RAMP.astype(">u2").tobytes(), "a.pgm")
    elif form == "tiff":
        path = written(tmp_path, tiff(RAMP), "a.tif")
    else:
        image = Image.frombytes("I;16B", (256, 1), RAMP.astype(">u2").tobytes())
        path = saved(tmp_path, image, "a.tif")
    assert np.array_equal(grey(path).reshape(-1), np.arange(256, dtype=np.float32) / 255)


def test_a_tiff_of_twelve_bits_is_divided_by_4095(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2048, 4095]], dtype=np.uint16)
    path = written(tmp_path, tiff(values, bits=12), "a.tif")
    np.testing.assert_allclose(grey(path), values / 4095, atol=1e-7)


@pytest.mark.parametrize("bits", [12, 14])
def test_fewer_bits_in_sixteen_are_named_by_the_config(tmp_path: Path, bits: int) -> None:
    values = np.array([[0, 100, 2**bits - 1, 2**bits - 1]], dtype=np.uint16)
    path = written(tmp_path, png(16, 0, 4, values.astype(">u2").tobytes()), "a.png")
    np.testing.assert_allclose(
        grey(path, ImageSettings(1, bits=bits)), values / (2**bits - 1), atol=1e-7
    )
    with pytest.raises(
        DataError, match=rf"a\.png.*more than the {2 ** (bits - 1) - 1} of"
    ) as caught:
        grey(path, ImageSettings(1, bits=bits - 1))
    assert "a.png" not in caught.value.public
    assert "task.bits" in caught.value.public


def test_a_pgm_is_scaled_by_its_own_largest_value(tmp_path: Path) -> None:
    values = np.array([0, 1000, 4095], dtype=">u2")
    path = written(tmp_path, b"P5 3 1 4095\n" + values.tobytes(), "a.pgm")
    # Pillow rounds to 16 bits. task.bits is about files without a largest value of their own.
    for settings in (GREY, ImageSettings(1, bits=12)):
        np.testing.assert_allclose(grey(path, settings)[0], values / 4095, atol=1e-5)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path: Path, bits: int) -> None:
    values = RAMP if bits == 16 else (RAMP / 65535).astype(np.float32)
    path = written(tmp_path, tiff(values, bits, white_is_zero=True), "a.tif")
    np.testing.assert_allclose(grey(path), 1 - RAMP / 65535, atol=1e-6)


def test_a_transparent_value_of_sixteen_bits_shows_the_background(tmp_path: Path) -> None:
    row = np.array([0, 4095, 65535], ">u2").tobytes()
    path = written(tmp_path, png(16, 0, 3, row, _chunk(b"tRNS", struct.pack(">H", 4095))), "a.png")
    assert np.array_equal(grey(path), [[0, 0, 1]])
    assert np.array_equal(grey(path, ImageSettings(1, background=(255,))), [[0, 1, 1]])
    pixels = decode(path, ImageSettings(3, background=(255, 0, 51)))
    assert torch.allclose(pixels[:, 0, 1], torch.tensor([1.0, 0.0, 0.2]))


# Numbers without a scale


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_scale_need_one_from_the_config(tmp_path: Path, kind: type) -> None:
    values = np.array([[-1000, 0, 500, 3000]], dtype=kind)
    path = written(tmp_path, tiff(values, 32), "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*task\.range"):
        grey(path)
    settings = ImageSettings(1, range=(-1000.0, 1000.0))
    assert np.array_equal(grey(path, settings), [[0, 0.5, 0.75, 1]])
    assert read(path, settings).clipped == 1
    inverted = ImageSettings(1, range=(1000.0, -1000.0))
    assert np.array_equal(grey(path, inverted), [[1, 0.5, 0.25, 0]])


def test_a_range_does_not_hide_what_is_not_finite(tmp_path: Path) -> None:
    path = written(tmp_path, tiff(np.array([[0, np.nan]], np.float32), 32), "a.tif")
    with pytest.raises(DataError, match="not finite"):
        grey(path, ImageSettings(1, range=(0.0, 1.0)))


def test_sixteen_bits_with_a_sign_need_a_range(tmp_path: Path) -> None:
    values = np.array([[-1000, 0, 1000, 32767]], dtype=np.int16)
    path = written(tmp_path, tiff(values), "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*task\.range"):
        grey(path)
    assert np.array_equal(grey(path, ImageSettings(1, range=(-1000.0, 1000.0))), [[0, 0.5, 1, 1]])


# Colour


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", "png", 0.01),
        ("CMYK", "tif", 0.08),
        ("CMYK", "jpg", 0.08),
        ("LAB", "tif", 0.01),
        # Pillow takes the lightness that the file has; of drawn numbers it is another one than the colours'.
        ("YCbCr", "tif", 1.0),
    ],
)
def test_colours_become_red_green_and_blue_as_pillow_has_them(
    tmp_path: Path, mode: str, suffix: str, tolerance: float
) -> None:
    drawn = np.random.default_rng(3).integers(0, 256, (4, 5, 4 if mode == "CMYK" else 3), np.uint8)
    path = saved(tmp_path, Image.frombytes(mode, (5, 4), drawn.tobytes()), f"a.{suffix}")
    with Image.open(path) as again:
        # Pillow 10 opens such a TIFF as RGB.
        assert again.mode in (mode, "RGB" if mode == "YCbCr" else mode)
        wanted = np.asarray(again.convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(decode(path, COLOUR).numpy(), wanted)
    lightness = np.tensordot([0.299, 0.587, 0.114], wanted, axes=1)
    np.testing.assert_allclose(grey(path), lightness, atol=tolerance)


def test_hue_saturation_and_value_become_colours() -> None:
    # No format that is read here has it.
    red = Image.new("HSV", (1, 1), (0, 255, 255))
    assert in_channels(opaque(red), 3).getpixel((0, 0)) == (255, 0, 0)


def test_a_mode_without_a_rule_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, Image.new("L", (4, 4)))
    monkeypatch.setattr(pillow_files, "_EIGHT", frozenset())
    with pytest.raises(DataError, match=r"a\.png.*no rule here \(mode L\)"):
        grey(path)


def test_grey_is_repeated_for_a_model_of_colours(tmp_path: Path) -> None:
    for path in (
        written(tmp_path, tiff(RAMP), "deep.tif"),
        saved(tmp_path, Image.fromarray((RAMP // 257).astype(np.uint8)), "a.png"),
    ):
        pixels = decode(path, COLOUR).numpy()
        assert all(np.array_equal(channel, pixels[0]) for channel in pixels)
        np.testing.assert_allclose(pixels[0], RAMP / 65535, atol=1e-7)


@pytest.mark.parametrize(("kind", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_sixteen_bits_are_read_as_eight_and_counted(
    tmp_path: Path, kind: int, samples: int
) -> None:
    row = np.full(samples, 0xFFFF, ">u2")
    row[0] = 0x1234
    path = written(tmp_path, png(16, kind, 1, row.tobytes()), "a.png")
    picture = read(path, COLOUR)
    assert picture.is_reduced
    assert float(picture.tensor(COLOUR)[0, 0, 0]) == np.float32(0x12) / np.float32(255)
    eight = written(tmp_path, png(8, kind, 1, row.astype(np.uint8).tobytes()), "b.png")
    assert not read(eight, COLOUR).is_reduced


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("background", [(0,), (255,), (10, 20, 30)])
def test_what_is_transparent_shows_the_background(
    tmp_path: Path, mode: str, background: tuple[int, ...]
) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 200, 200, alpha))
    if mode == "PA":
        values = Image.new("P", (3, 1), 1)
        values.putpalette([0, 0, 0, 200, 200, 200])
        image = values.convert("PA")
        image.putalpha(Image.frombytes("L", (3, 1), bytes([0, 128, 255])))
    path = saved(tmp_path, image.convert(mode), f"a.{'tif' if mode == 'PA' else 'png'}")
    pixels = decode(path, ImageSettings(3, background=background)).numpy() * 255
    behind = np.array(background * 3 if len(background) == 1 else background)
    for x, alpha in enumerate((0, 128, 255)):
        wanted = behind + (200 - behind) * alpha / 255
        np.testing.assert_allclose(pixels[:, 0, x], wanted, atol=1)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_multiplied_by_alpha_are_divided_first(mode: str) -> None:
    whole = Image.new("RGBA", (1, 1), (200, 200, 200, 100))
    if mode == "La":
        whole = whole.convert("LA")
    found = opaque(whole.convert(mode)).convert("L").getpixel((0, 0))
    assert found == pytest.approx(200 * 100 / 255, abs=2)


@pytest.mark.parametrize("kind", ["palette", "palette with transparency", "grey value"])
def test_palettes_and_transparent_values(tmp_path: Path, kind: str) -> None:
    image = Image.new("P" if "palette" in kind else "L", (2, 1), 0)
    image.putpixel((1, 0), 1)
    if "palette" in kind:
        image.putpalette([255, 0, 51, 10, 20, 30])
    options = {} if kind == "palette" else {"transparency": 0}
    path = saved(tmp_path, image, **options)
    pixels = decode(path, ImageSettings(3, background=(255, 255, 255))).numpy()[:, 0] * 255
    first = [255, 0, 51] if kind == "palette" else [255] * 3
    np.testing.assert_allclose(pixels[:, 0], first, atol=1e-4)
    np.testing.assert_allclose(
        pixels[:, 1], [10, 20, 30] if "palette" in kind else [1] * 3, atol=1e-4
    )


# Orientation, frames, what no rule names


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_by_its_exif_orientation(
    tmp_path: Path, depth: int, orientation: int
) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * (10000 if depth == 16 else 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(values if depth == 16 else values.astype(np.uint8))
    upright = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].T,
        8: np.rot90(values),
    }[orientation]
    found = grey(saved(tmp_path, image, exif=exif))
    np.testing.assert_allclose(found, upright / (2**depth - 1), atol=1e-7)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp"])
def test_a_frame_of_several_is_chosen_by_the_config(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("L", (16, 16), value) for value in (10, 200, 90)]
    path = saved(tmp_path, pages[0], f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"holds 3 pictures; .* task\.frame"):
        grey(path)
    for number, value in enumerate((10, 200, 90)):
        found = grey(path, ImageSettings(1, frame=number))
        np.testing.assert_allclose(found, value / 255, atol=0.02)
    with pytest.raises(DataError, match=r"no.* task\.frame = 3"):
        grey(path, ImageSettings(1, frame=3))
    with pytest.raises(DataError, match=r"holds 1 pictures"):
        grey(saved(tmp_path, pages[0], f"b.{suffix}"), ImageSettings(1, frame=1))


def test_damaged_files_are_unreadable_and_other_files_are_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(RAMP).save(whole, "PNG")
    for content in (b"", b"no image", whole.getvalue()[:60], whole.getvalue()[:-40]):
        with pytest.raises(DataError, match="not a readable image"):
            grey(written(tmp_path, content, "a.png"))


@pytest.mark.parametrize("side", [5, 16, 40])
def test_numbers_are_resized_as_bytes_are(tmp_path: Path, side: int) -> None:
    eight = np.random.default_rng(1).integers(0, 256, (16, 16), np.uint8)
    small = grey(saved(tmp_path, Image.fromarray(eight)), ImageSettings(1, side))
    deep = grey(
        saved(tmp_path, Image.fromarray(eight.astype(np.uint16) * 257), "deep.png"),
        ImageSettings(1, side),
    )
    assert small.shape == (side, side)
    np.testing.assert_allclose(deep, small, atol=1.5 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize(("channels", "as_mode"), [(1, "L"), (3, "RGB")])
def test_images_of_eight_bits_keep_the_bits_that_they_had(
    tmp_path: Path, mode: str, channels: int, as_mode: str
) -> None:
    drawn = np.random.default_rng(7).integers(0, 256, (11, 17, 4), np.uint8)
    layered = Image.fromarray(drawn, "RGBA")
    image = layered.convert("RGB").convert(mode) if mode in "1 P CMYK" else layered.convert(mode)
    path = saved(tmp_path, image, "a.tif")
    flat = image
    if mode in ("LA", "RGBA"):
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, image.convert("RGBA"))
    small = flat.convert(as_mode).resize((8, 8), Image.Resampling.BILINEAR)
    wanted = np.asarray(small, np.uint8).reshape(8, 8, channels).transpose(2, 0, 1)
    found = decode(path, ImageSettings(channels, 8))
    assert torch.equal(found, torch.from_numpy(wanted.copy()).to(torch.float32) / 255)


# The config


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("range", [1.0, 1.0], "two different numbers"),
        ("range", [1.0], "two different numbers"),
        ("background", [1, 2], "neither one number"),
        ("background", [256], "at most 255"),
        ("bits", 17, "at most 16"),
        ("frame", -2, "at least -1"),
    ],
)
def test_values_that_cannot_be_used_are_refused_when_the_config_is_read(
    option: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {option: value}})
    assert caught.value.field == f"task.{option}"


def test_the_record_of_a_config_without_newer_options_is_as_it_was() -> None:
    plain = RunConfig.from_dict({"run": {"task": "image-folder"}, "task": {"classes": "a,b"}})
    assert plain.record()["task"] == {
        "model": "resnet18",
        "classes": "a,b",
        "image_size": 64,
        "channels": 3,
    }
    assert RunConfig.from_dict(plain.record()) == plain
    changed = RunConfig.from_dict(
        {"run": {"task": "image-folder"}, "task": {"classes": "a,b", "bits": 12}}
    )
    assert changed.record()["task"]["bits"] == 12
    assert RunConfig.from_dict(changed.record()) == changed
