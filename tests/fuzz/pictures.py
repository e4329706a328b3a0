"""Pictures of every format, mode and depth, and broken and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

from tests.fuzz.files import (
    CHANNELS,
    GREY,
    PALETTE,
    RGB,
    chunk,
    grey_tiff,
    jpeg,
    line_bytes,
    png,
    png_lines,
    scans_jpeg,
    sized_jpeg,
    tiff,
)

SIZE = (64, 48)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
COMPRESSIONS = {
    "1": ("group3", "group4", "packbits", "tiff_lzw"),
    "L": ("jpeg", "lzma", "tiff_adobe_deflate"),
    "RGB": ("jpeg", "lzma", "packbits", "tiff_lzw", "zstd", "tiff_adobe_deflate"),
    "I;16": ("tiff_lzw", "tiff_adobe_deflate", "zstd"),
}
OTHERS = ("ICO", "TGA", "PCX", "EPS", "SGI", "IM", "MSP", "DDS", "JPEG2000", "AVIF", "PDF", "QOI")


@lru_cache(maxsize=16)
def scene(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth picture, lighter from left to right, with a dark square."""
    width, height = size
    ramp_HW = np.linspace(20, 235, width)[None].repeat(height, 0)
    ramp_HW[height // 4 : height // 2, width // 4 : width // 2] = 10
    colours_HWC = np.stack([ramp_HW, ramp_HW[::-1], np.full_like(ramp_HW, 90)], 2).astype(np.uint8)
    if mode in ("I;16", "I"):
        return Image.fromarray((ramp_HW * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "F":
        return Image.fromarray((ramp_HW / 255).astype(np.float32))
    return Image.fromarray(colours_HWC).convert(mode)


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def _try(name: str, mode: str, format: str, **options: object) -> Iterator[tuple[str, bytes]]:
    try:
        if mode == "LAB" and format != "TIFF":
            return
        picture = Image.merge("LAB", [scene("L")] * 3) if mode == "LAB" else scene(mode)
        yield name, saved(picture, format, **options)
    except (OSError, ValueError, KeyError):
        return  # this format has no such mode


def every_format() -> Iterator[tuple[str, bytes]]:
    """The scene in every format, mode and compression that Pillow writes."""
    for format in FORMATS:
        for mode in MODES:
            yield from _try(f"{format}-{mode}", mode, format)
    for mode, compressions in COMPRESSIONS.items():
        for compression in compressions:
            yield from _try(f"TIFF-{compression}-{mode}", mode, "TIFF", compression=compression)
    for format in OTHERS:
        yield from _try(f"{format}", "RGB", format)
    frames = [scene(), scene().rotate(90), scene().rotate(180)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        more = {"save_all": True, "append_images": frames[1:]}
        yield f"{format}-frames", saved(frames[0], format, **more)
    yield "WEBP-lossless", saved(scene("RGBA"), "WEBP", lossless=True)
    yield "GIF-interlaced", saved(scene("P"), "GIF", interlace=1)
    for options in (
        {"progressive": True},
        {"subsampling": 0},
        {"quality": 100},
        {"restart_marker_rows": 1},
    ):
        yield f"JPEG-{next(iter(options))}", jpeg(scene(), **options)
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield f"{format}-rotated", saved(scene(), format, exif=exif)
    for depth in (1, 2, 4, 8, 16):
        lines = bytes((1 + line_bytes(8, depth, GREY)) * 8)
        yield f"PNG-grey-{depth}", png((8, 8), lines, depth=depth)
        clear = chunk(b"tRNS", struct.pack(">H", (1 << depth) - 1))
        ones = (b"\0" + b"\xff" * line_bytes(8, depth, GREY)) * 8
        yield f"PNG-grey-{depth}-clear", png((8, 8), ones, depth=depth, before=clear)
    clear = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    yield "PNG-RGB-16-clear", png((8, 8), depth=16, colour=RGB, before=clear)


def types_of_tiff() -> Iterator[tuple[str, bytes]]:
    """One channel in types that few programs write, and floats that are not finite."""
    base_HW = np.asarray(scene("L"))
    for kind in ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"):
        scale = {"u2": 257, "u4": 257 << 16, "i2": 128, "i4": 1 << 23}.get(kind, 1)
        for inverse in (False, True):
            pixels_HW = (base_HW.astype(np.float64) * scale).astype(kind)
            name = f"TIFF-{kind}{'-white-is-zero' if inverse else ''}"
            yield name, grey_tiff(pixels_HW, white_is_zero=inverse)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("-inf", -np.inf), ("outlier", 3e38)):
        pixels_HW = (base_HW / 255).astype(np.float32)
        pixels_HW[3, 3] = value
        yield f"TIFF-float-{name}", grey_tiff(pixels_HW)
    yield "TIFF-float-all-nan", grey_tiff(np.full(base_HW.shape, np.nan, np.float32))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that ask for much: pixels, scans, text, strips, frames."""
    yield "png-16-bits-64MP", png((8000, 8000), depth=16)
    yield "png-RGB-64MP", png((8000, 8000), colour=RGB)
    yield "png-RGBA-64MP", png((8000, 8000), colour=6)
    yield "png-palette-64MP", png((8000, 8000), colour=PALETTE, before=chunk(b"PLTE", bytes(768)))
    yield "png-1-bit-64MP", png((8000, 8000), depth=1)
    yield "png-wide", png((64_000_000, 1))
    yield "png-tall", png((1, 64_000_000))
    yield "png-huge-claim", png((2**31 - 1, 2**31 - 1), b"\0" * 64)
    yield "png-over", png((9000, 9000), b"\0" * 64)
    big = zlib.compress(bytes(1_000_000), 9)
    yield "png-ztxt", png(SIZE, before=chunk(b"zTXt", b"k\0\0" + big) * 40)
    yield (
        "png-ztxt-large",
        png(SIZE, before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))),
    )
    yield "png-iccp", png(SIZE, before=chunk(b"iCCP", b"k\0\0" + big) * 2000)
    broken = chunk(b"zTXt", b"k\0\0" + big[:-6] + b"\1\2\3\4\5\6")
    yield "png-ztxt-broken", png(SIZE, before=broken * 2000)
    yield (
        "png-itxt-late",
        png(SIZE, end=chunk(b"iTXt", b"k\0\1\0\0\0" + big) * 100 + chunk(b"IEND", b"")),
    )
    yield "png-many-chunks", png(SIZE, before=chunk(b"tIME", b"") * 200_000)
    yield "png-many-idat", png(SIZE, before=chunk(b"IDAT", b"") * 200_000)
    yield "png-trailing-idat", png(SIZE, end=chunk(b"IDAT", bytes(60_000)) * 20)
    yield "png-interlaced-64MP", png((8000, 8000), interlaced=True)
    yield "jpeg-scans", scans_jpeg((4000, 4000), 3000)
    yield "jpeg-scans-at-limit", scans_jpeg((8000, 8000), 31)
    yield "jpeg-scans-1000", scans_jpeg((1400, 1400), 998)
    yield "jpeg-scans-1MB", scans_jpeg((2000, 2000), 80_000)
    yield (
        "jpeg-progressive-64MP",
        sized_jpeg(jpeg(scene(), progressive=True, subsampling=0), 8000, 8000),
    )
    yield "jpeg-64MP", sized_jpeg(jpeg(scene()), 8000, 8000)
    yield "jpeg-65500", sized_jpeg(jpeg(scene("L")), 65_500, 900)
    yield "jpeg-many-markers", b"\xff\xd8" + b"\xff\xfe\0\x02" * 200_000 + jpeg(scene())[2:]
    yield (
        "jpeg-many-exif",
        b"\xff\xd8" + b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8) + jpeg(scene())[2:],
    )
    flat_HW = np.zeros((8000, 8000), np.uint8)
    yield (
        "tiff-deflate-64MP",
        saved(Image.fromarray(flat_HW), "TIFF", compression="tiff_adobe_deflate"),
    )
    yield "tiff-lzma-64MP", saved(Image.fromarray(flat_HW), "TIFF", compression="lzma")
    floats = zlib.compress(bytes(4 * 8000 * 8000), 9)
    tags = {256: [8000], 257: [8000], 258: [32], 259: [8], 262: [1], 277: [1]}
    for name, kind in (("float", 3), ("int32", 2), ("uint32", 1)):
        yield f"tiff-{name}-64MP", tiff({**tags, 339: [kind]}, floats)
    wide = {**tags, 258: [16, 16, 16], 262: [2], 277: [3]}
    yield "tiff-RGB-16-64MP", tiff(wide, zlib.compress(bytes(6 * 8000 * 8000), 9))
    strips = {256: [8], 257: [200_000], 258: [8], 259: [1], 262: [1], 277: [1], 278: [1]}
    places = {273: [8] * 200_000, 279: [8] * 200_000}
    yield "tiff-many-strips", tiff({**strips, **places}, bytes(64))
    yield "tiff-loop", tiff({**strips, 257: [8], 278: [8]}, bytes(64), loop=True)
    yield (
        "tiff-many-tags",
        tiff({tag: [1] for tag in range(300, 60_000)} | {**strips, 257: [8], 278: [8]}, bytes(64)),
    )
    yield "tiff-tag-long", tiff({**strips, 257: [8], 278: [8], 40_000: [0] * 500_000}, bytes(64))
    shared = struct.pack("<I", 1) * 500_000
    fields = {tag: [0] * 2000 for tag in range(40_000, 44_000)}
    yield "tiff-tags-overlap", tiff({**strips, 257: [8], 278: [8], **fields}, shared, overlap=True)
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    plain = saved(scene("P"), "GIF")
    place = 13 + (3 << ((plain[10] & 7) + 1))
    yield "gif-comment", plain[:place] + comment + plain[place:]
    ends = b"\x08" + b"\x02\x00\x03" + b"\x02\x01\x02" + b"\0"  # clears, one pixel, ends
    yield "gif-ends-early", plain[:place] + b"\x2c" + struct.pack("<HHHHB", 0, 0, 64, 48, 0) + ends
    few = [scene("P", (500, 500))] * 400
    yield "gif-frames", saved(few[0], "GIF", save_all=True, append_images=few[1:])
    gif = bytearray(saved(scene("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 900)
    yield "gif-large-screen", bytes(gif)
    flat = Image.new("RGBA", (8000, 8000), (1, 2, 3, 4))
    yield "webp-64MP", saved(flat, "WEBP", lossless=True, quality=0, method=0)
    yield "bmp-64MP-claim", _bmp(8000, 8000, 24, 0, b"\0" * 64)
    yield "bmp-rle", _bmp(8000, 8000, 8, 1, b"\xff\x07" * 255_000)
    yield "bmp-rle-short-runs", _bmp(8000, 8000, 8, 1, b"\x01\x07" * 4_000_000)
    yield "ppm-plain", b"P3 1400 1400 255\n" + b"7 " * (3 * 1400 * 1400)
    yield "ppm-plain-bits", b"P1 2500 2500\n" + b"1" * (2500 * 2500)
    yield "ppm-odd-maxval", b"P6 1800 1800 77\n" + b"\x07" * (3 * 1800 * 1800)
    yield "pgm-odd-maxval", b"P5 2500 2500 777\n" + b"\0\x07" * (2500 * 2500)
    yield "ppm-claim", b"P6 8000 8000 255\n" + bytes(64)
    yield "pfm-64MP-claim", b"Pf 8000 8000 -1.0\n" + bytes(64)


def half_written() -> Iterator[tuple[str, bytes]]:
    """Files that are whole by their structure and end after half of their lines."""
    for colour in CHANNELS:
        bits = 16 if colour == GREY else 8
        palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == PALETTE else b""
        width = 64 * CHANNELS[colour] * bits // 8
        lines = (b"\0" + b"\xb4" * width) * 24
        yield f"png-half-{colour}", png(SIZE, lines, colour=colour, depth=bits, before=palette)
    yield "png-half-interlaced", png(SIZE, b"\0\xb4" * 30, interlaced=True)
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        name = next(iter(options), "plain")
        yield f"jpeg-half-{name}", sized_jpeg(jpeg(scene(), **options), 64, 96)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"):
        mode = "1" if compression == "group4" else "L"
        data = saved(scene(mode), "TIFF", compression=compression)
        yield (
            f"tiff-half-{compression}",
            data.replace(
                struct.pack("<HHIHH", 257, 3, 1, 48, 0), struct.pack("<HHIHH", 257, 3, 1, 96, 0)
            ),
        )
    gif = saved(scene("P"), "GIF")
    place = gif.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 64, 48))
    gif = (
        gif[:8]
        + b"\x60"
        + gif[9:place]
        + b"\x2c"
        + struct.pack("<HHHH", 0, 0, 64, 96)
        + gif[place + 9 :]
    )
    yield "gif-half", gif
    pixels = png_lines(np.full((24, 64), 180))
    yield "png-half-no-end", png(SIZE, pixels, end=b"")


def _bmp(width: int, height: int, bits: int, compression: int, pixels: bytes) -> bytes:
    palette = bytes(1024) if bits == 8 else b""
    offset = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 1, 1, 0, 0)
    return head + info + palette + pixels
