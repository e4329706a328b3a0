"""Writers of PNG, TIFF and JPEG files that no library writes: odd types, lies and bombs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of a PNG
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    lines: bytes | None = None,
    *,
    depth: int = 8,
    colour: int = GREY,
    interlaced: bool = False,
    before: bytes = b"",
    end: bytes = chunk(b"IEND", b""),
) -> bytes:
    """A PNG of `size` pixels whose compressed part is `lines`, filter bytes included.

    Args:
        lines: one black picture without interlacing if None.
        before: chunks in front of the pixels.
    """
    width, height = size
    if lines is None:
        lines = bytes((1 + line_bytes(width, depth, colour)) * height)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    packed = chunk(b"IDAT", zlib.compress(lines, 9))
    return MAGIC + chunk(b"IHDR", header) + before + packed + end


def line_bytes(width: int, depth: int, colour: int) -> int:
    """Bytes of one line of a PNG without its filter byte."""
    return (width * CHANNELS[colour] * depth + 7) // 8


def png_lines(pixels_HW: np.ndarray, depth: int = 8) -> bytes:
    """Rows of a PNG, unfiltered; pixels of 16 bits are written high byte first."""
    rows_HW = pixels_HW.astype(">u2" if depth == 16 else np.uint8).reshape(len(pixels_HW), -1)
    return b"".join(b"\0" + row.tobytes() for row in rows_HW)


Value = Sequence[int]


def tiff(
    tags: Mapping[int, Value], pixels: bytes, *, loop: bool = False, overlap: bool = False
) -> bytes:
    """A little-endian TIFF of one strip: `tags` beside the strip's own (273, 279).

    Args:
        tags: numbers of 32 bits (type LONG).
        loop: the first directory names itself as the next.
        overlap: the values of all tags are the same bytes, those of the pixels.
    """
    start = 8 + len(pixels)
    fields = {278: [1 << 30], **tags}
    fields.setdefault(273, [8])
    fields.setdefault(279, [len(pixels)])
    more = start + 2 + 12 * len(fields) + 4
    entries, tail = b"", b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        inside = len(values) == 1
        place = packed if inside else struct.pack("<I", 8 if overlap else more + len(tail))
        tail += b"" if inside or overlap else packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    after = struct.pack("<I", start if loop else 0)
    directory = struct.pack("<H", len(fields)) + entries + after
    return struct.pack("<2sHI", b"II", 42, start) + pixels + directory + tail


def grey_tiff(pixels_HW: np.ndarray, *, white_is_zero: bool = False) -> bytes:
    """One channel of any numpy type: unsigned, signed or floating."""
    kind = {"u": 1, "i": 2, "f": 3}[pixels_HW.dtype.kind]
    height, width = pixels_HW.shape
    tags = {
        256: [width],
        257: [height],
        258: [8 * pixels_HW.dtype.itemsize],
        259: [1],
        262: [int(not white_is_zero)],
        277: [1],
        339: [kind],
    }
    return tiff(tags, pixels_HW.astype(pixels_HW.dtype.newbyteorder("<")).tobytes())


def jpeg(picture: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", **options)
    return out.getvalue()


def sized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """`data` with another size in its frame header."""
    place = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def scans_jpeg(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG of one channel that refines nothing, `scans` times."""
    small = jpeg(Image.new("L", (16, 16), 90), progressive=True)
    start = small.index(b"\xff\xda")
    refine = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x10) + b"\0"
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x01) + b"\0"
    return sized_jpeg(small[:start], *size) + first + refine * scans + b"\xff\xd9"
