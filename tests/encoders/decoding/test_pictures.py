"""Pictures look as a viewer shows them, or are refused: odd types, files that end early, costs."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from braid.encoders.config import Limits
from braid.encoders.decoding.containers import first_picture
from braid.encoders.decoding.pictures import decode_image
from braid.encoders.errors import BadInput
from tests.fuzz.files import (
    GREY,
    PALETTE,
    RGB,
    chunk,
    grey_tiff,
    jpeg,
    png,
    png_lines,
    scans_jpeg,
    tiff,
)
from tests.fuzz.pictures import half_written, saved, scene

LIMITS = Limits()
GREY_HW = np.asarray(scene("L"))
PLAIN = decode_image(saved(scene("L"), "PNG"), 64, LIMITS).astype(int)


def difference(data: bytes) -> float:
    """Of a picture from `scene("L")`: the mean difference of its pixels, of 255."""
    return float(np.abs(decode_image(data, 64, LIMITS).astype(int) - PLAIN).mean())


def refused(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        decode_image(data, 64, LIMITS)
    assert caught.value.field == "image"
    assert len(caught.value.reason) < 500
    assert " object at " not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("u2", 257),
        ("u4", 1),
        ("u4", 257),
        ("u4", 257 * 65_537),
        ("i2", 128),
        ("i4", 1),
        ("i4", 257),
        ("i4", 1 << 23),
        ("f4", 1 / 255),
        ("f4", 1),
        ("f4", 1000),
    ],
)
def test_a_tiff_of_any_type_looks_like_the_plain_picture(kind: str, scale: float) -> None:
    pixels_HW = (GREY_HW.astype(np.float64) * scale).astype(kind)
    assert difference(grey_tiff(pixels_HW)) < (
        16 if scale >= 1 else 1
    )  # white is the lightest, 235


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_a_tiff_whose_white_is_zero_is_turned_around(kind: str) -> None:
    scale = {"u1": 1.0, "u2": 257.0, "f4": 1 / 255}[kind]
    inverted_HW = ((255 - GREY_HW.astype(np.float64)) * scale).astype(kind)
    assert difference(grey_tiff(inverted_HW, white_is_zero=True)) < 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e6])
def test_one_odd_value_does_not_darken_a_picture_of_floats(value: float) -> None:
    pixels_HW = (GREY_HW / 255).astype(np.float32)
    pixels_HW[3, 3] = value
    assert difference(grey_tiff(pixels_HW)) < 1


def test_a_picture_without_a_finite_value_is_refused() -> None:
    assert refused(grey_tiff(np.full((8, 8), np.nan, np.float32))) == "holds no finite value"


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_white(depth: int) -> None:
    """A black picture whose black is transparent, and one whose black is not."""
    for value, white in ((0, True), ((1 << depth) - 1, False)):
        clear = chunk(b"tRNS", struct.pack(">H", value))
        pixels = decode_image(png((8, 8), depth=depth, colour=GREY, before=clear), 8, LIMITS)
        assert (pixels == (255 if white else 0)).all()


@pytest.mark.parametrize("depth", [2, 4])
def test_a_transparent_grey_of_few_bits_is_that_grey(depth: int) -> None:
    packed = {2: 0b01010101, 4: 0b00010001}[depth]  # every pixel is 1
    lines = (b"\0" + bytes([packed]) * depth) * 8
    clear = chunk(b"tRNS", struct.pack(">H", 1))
    assert (decode_image(png((8, 8), lines, depth=depth, before=clear), 8, LIMITS) == 255).all()


def test_a_transparent_colour_of_16_bits_becomes_white() -> None:
    pixels_HWC = np.full((8, 8, 3), (0x1234, 0x5678, 0x9ABC))
    clear = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    data = png((8, 8), png_lines(pixels_HWC, 16), depth=16, colour=RGB, before=clear)
    assert (decode_image(data, 8, LIMITS) == 255).all()


HALF = {name: data for name, data in half_written() if "progressive" not in name}


@pytest.mark.parametrize("name", [name for name in HALF if name != "tiff-half-raw"])
def test_a_file_that_ends_after_half_of_its_lines_is_refused(name: str) -> None:
    reason = refused(HALF[name])
    assert "truncated" in reason or "decoder error" in reason or "unrecognized data" in reason


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_without_its_last_bytes_is_refused(format: str, progressive: bool) -> None:
    options = {"progressive": progressive} if format == "JPEG" else {}
    data = saved(scene("RGB" if format != "GIF" else "P"), format, **options)
    for left in (len(data) - 3, len(data) // 2):
        refused(data[:left])


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_black_or_white_picture_is_whole(value: int, interlaced: bool) -> None:
    lines = png_lines(np.full((8, 8), value))
    if interlaced:  # seven passes of 1 to 4 lines of an 8 by 8 picture
        passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
        lines = b"".join((b"\0" + bytes([value]) * wide) * tall for wide, tall in passes)
    pixels = decode_image(png((8, 8), lines, interlaced=interlaced), 8, LIMITS)
    assert (pixels == value).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(scene("RGB", (64, 40)), format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as picture:
        upright = saved(ImageOps.exif_transpose(picture), "PNG")
    assert np.array_equal(decode_image(data, 64, LIMITS), decode_image(upright, 64, LIMITS))


def test_metadata_is_left_out_and_the_pixels_stay() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    data = jpeg(scene(), exif=exif, icc_profile=bytes(200_000), comment=b"c" * 60_000)
    contained = first_picture(data)
    assert len(contained.data) < len(data) - 300_000
    plain = decode_image(jpeg(scene()), 64, LIMITS)
    assert np.array_equal(decode_image(data, 64, LIMITS), plain)


def test_scans_are_bounded_by_their_pixels() -> None:
    assert decode_image(jpeg(scene(size=(640, 480)), progressive=True), 64, LIMITS).any()
    assert "more than 1000 scans" in refused(scans_jpeg((16, 16), 1001))
    reason = refused(scans_jpeg((4000, 4000), 200))
    assert "201 scans of 16000000 pixels, the limit is 2048000000" in reason


TAGS = {256: [8000], 257: [8000], 258: [32], 259: [8], 262: [1], 277: [1], 339: [3]}
SMALL = {**TAGS, 256: [8], 257: [8], 258: [8], 259: [1], 339: [1]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(TAGS, bytes(8)), "take 512000000 bytes to decode, the limit is 402653184"),
        (png((1, 65_536), b""), "1x65536 pixels, a side has 65535 at most"),
        (png((8, 8), before=chunk(b"tIME", b"") * 50_000), "more than 50000 parts"),
        (b"\xff\xd8" + b"\xff\xfe\0\x02" * 50_001 + jpeg(scene())[2:], "more than 50000 parts"),
        (tiff({**SMALL, 273: [8] * 101_000}, bytes(500_000)), "strips of a TIFF"),
        (tiff({**SMALL, **{tag: [1] for tag in range(40_000, 44_096)}}, bytes(64)), "4096 entries"),
        (tiff({**SMALL, 40_000: [0] * 50, 40_001: [0] * 50}, bytes(200), overlap=True), "overlap"),
        (b"P3 900 900 255\n" + b"7 " * (3 * 900 * 900), "in a slow encoding, the limit is 2000000"),
    ],
    ids=["memory", "side", "chunks", "segments", "strips", "tags", "shared", "text"],
)
def test_what_costs_too_much_is_refused_from_its_header(data: bytes, reason: str) -> None:
    assert reason in refused(data)


def test_what_webp_needs_is_refused_by_its_size() -> None:
    data = saved(scene(), "WEBP")
    need = 14 * 64 * 48
    assert decode_image(data, 8, Limits(image_bytes=need)).any()
    with pytest.raises(BadInput, match=f"take {need} bytes to decode, the limit is {need - 1}"):
        decode_image(data, 8, Limits(image_bytes=need - 1))


def test_a_large_picture_is_reduced_in_bands_to_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = scene("RGB", (1536, 768))
    for mode in ("RGB", "L", "P", "I;16"):
        data = saved(small.convert("L") if mode == "I;16" else small.convert(mode), "PNG")
        monkeypatch.undo()
        whole = decode_image(data, 64, LIMITS).astype(int)
        monkeypatch.setattr("braid.encoders.decoding.pictures.REDUCED_FROM", 1000)
        monkeypatch.setattr("braid.encoders.decoding.pictures.BAND_PIXELS", 100_000)
        assert np.abs(decode_image(data, 64, LIMITS).astype(int) - whole).max() <= 2


def test_a_palette_is_kept() -> None:
    palette = chunk(b"PLTE", b"\xff\0\0" * 256)
    pixels = decode_image(png((8, 8), colour=PALETTE, before=palette), 8, LIMITS)
    assert pixels[:, 4, 4].tolist() == [255, 0, 0]
