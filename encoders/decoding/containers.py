"""Picture files before decoding: checks their structure and removes metadata.

Pillow reads all metadata of a file in Python, and some of it without a limit: repeated compressed
chunks, tags that share their bytes, long comments. So only the data of the first picture are passed
on; the EXIF orientation is read here. A truncated file is refused here or by
`braid.encoders.decoding.pictures`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import BadInput

PARTS = 50_000
"""Chunks, segments or blocks of one file; a picture of 16 MiB in chunks of 8 kB has 2,000."""
SCANS = 1_000
"""Scans of one JPEG whatever its size; encoders write 1 to 20."""
TAGS = 4_096
"""Entries of one directory of a TIFF."""
TEXT_BYTES = 262_144
"""Of a PNG's text chunk that holds an EXIF profile, unpacked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrippedPicture:
    """The first picture of a file.

    Attributes:
        data: the file without its metadata and later pictures.
        orientation: EXIF's, 1 to 8.
        scans: of a JPEG, at least 2 where libjpeg stores all coefficients; 1 for all others.
        planes: width and height of each component as a JPEG stores it.
        depth: bits a channel of a PNG; 8 for all others.
        lines: bytes that the lines of a PNG take unpacked, filters included; 0 for all others.
        packed: the compressed lines of a PNG.
    """

    data: bytes
    orientation: int = 1
    scans: int = 1
    planes: tuple[tuple[int, int], ...] = ()
    depth: int = 8
    lines: int = 0
    packed: tuple[bytes, ...] = field(default=(), repr=False)


def first_picture(data: bytes) -> StrippedPicture:
    """The first picture of the file; formats whose metadata Pillow does not read pass unchanged.

    Raises:
        BadInput: it is truncated, inconsistent, or has too many parts.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            _check_tiff(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError) as error:
        raise truncated() from error
    return StrippedPicture(data=data)


def truncated() -> BadInput:
    return BadInput("image", "does not decode: the file is truncated")


def _count(parts: int, limit: int = PARTS, what: str = "parts") -> None:
    if parts > limit:
        raise BadInput("image", f"does not decode: more than {limit} {what}")


# JPEG (ITU-T T.81, Annex B)

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # no stuffed byte, no restart marker
_SOI, _EOI, _SOS, _EXIF, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE1, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_KEPT_APPS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # both say how colours are stored
_PADDING = bytes(8)


def _jpeg(data: bytes) -> StrippedPicture:
    kept, parts, scans, position = [data[:2]], 0, 0, 2
    exif, frame, size, start = b"", 0, (0, 0), -1
    components: dict[int, int] = {}  # id -> sampling factors
    seen: set[int] = set()  # components whose lowest frequency has a scan
    interleaved = False
    while (match := _MARKER.search(data, position)) is not None:
        parts += 1
        _count(parts)
        marker, begin, position = match[1][0], match.end() - 2, match.end()
        if marker == _EOI:
            break
        if marker in (0x01, _SOI):
            continue
        (length,) = struct.unpack_from(">H", data, position)
        segment = data[position + 2 : position + length]
        position += length
        if marker == _SOS:
            scans += 1
            _count(scans, SCANS, "scans of a JPEG")
            start = begin if start < 0 else start
            if segment[1 + 2 * segment[0]] == 0:
                seen |= set(segment[1 : 1 + 2 * segment[0] : 2])
            interleaved = segment[0] == len(components)
        elif marker in _FRAMES and not components:
            frame, size = marker, (int.from_bytes(segment[3:5]), int.from_bytes(segment[1:3]))
            components = {segment[i]: segment[i + 1] for i in range(6, 6 + 3 * segment[5], 3)}
        elif marker == _EXIF and not exif and segment.startswith(b"Exif\0\0"):
            exif = segment[6:]
        if start < 0 and _keeps(marker, segment):
            kept.append(data[begin:position])
    else:
        raise truncated()
    factors = [(pair >> 4, pair & 15) for pair in components.values()]
    if start < 0 or not factors or min(min(pair) for pair in factors) < 1:
        raise BadInput("image", "does not decode: a JPEG without a frame or a scan")
    if seen < set(components):
        raise truncated()
    # libjpeg fills the rest with grey where a marker ends a scan early. Without the end marker it
    # asks for more bytes and fails instead. Several scans need the marker.
    single = scans == 1 and interleaved and frame in _SEQUENTIAL
    end = _PADDING if single else b"\xff\xd9"
    widest, tallest = (max(pair[axis] for pair in factors) for axis in (0, 1))
    planes = tuple((-(-size[0] * h // widest), -(-size[1] * v // tallest)) for h, v in factors)
    return StrippedPicture(
        data=b"".join([*kept, data[start:begin], end]),
        orientation=orientation(exif),
        scans=1 if single else max(2, scans),
        planes=planes,
    )


def _keeps(marker: int, segment: bytes) -> bool:
    if 0xE0 <= marker <= 0xEF:
        return marker in _KEPT_APPS and segment.startswith(_KEPT_APPS[marker])
    return marker not in (_COMMENT, _SOS)


# PNG (W3C, Portable Network Graphics)

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = (  # Adam7: the first column and line of each pass, and the steps to the next
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _png(data: bytes) -> StrippedPicture:
    kept, packed, parts, position = [data[:8]], list[bytes](), 0, 8
    exif, header = b"", b""
    while True:
        parts += 1
        _count(parts)
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        body = data[position + 8 : end - 4]
        if end > len(data):
            raise truncated()
        if kind == b"IEND":
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            if zlib.crc32(kind + body) != struct.unpack_from(">I", data, end - 4)[0]:
                raise BadInput("image", f"does not decode: bad checksum of {kind.decode()}")
            kept.append(data[position:end])
            header = body if kind == b"IHDR" and not header else header
            if kind == b"IDAT":
                packed.append(body)
        elif kind == b"eXIf" and not exif:
            exif = body
        elif kind == b"zTXt" and not exif and body.startswith(b"Raw profile type exif\0\0"):
            exif = _profile(_unpacked(body[23:]))
        elif kind == b"tEXt" and not exif and body.startswith(b"Raw profile type exif\0"):
            exif = _profile(body[22:])
        position = end
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    if colour not in _CHANNELS:
        raise BadInput("image", f"does not decode: colour type {colour} of a PNG")
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if header[12] else ((0, 0, 1, 1),)
    lines = 0
    for column, line, across, down in passes:
        wide, tall = -(-(width - column) // across), -(-(height - line) // down)
        lines += (1 + (wide * bits + 7) // 8) * tall if wide > 0 and tall > 0 else 0
    return StrippedPicture(
        data=b"".join([*kept, data[position:end]]),
        orientation=orientation(exif),
        depth=depth,
        lines=lines,
        packed=tuple(packed),
    )


def unpacked_bytes(picture: StrippedPicture) -> int:
    """The unpacked size of the compressed lines of a PNG, counted up to the expected size."""
    inflater, count = zlib.decompressobj(), 0
    try:
        for part in picture.packed:
            while part and count < picture.lines and not inflater.eof:
                count += len(inflater.decompress(part, 1 << 20))
                part = inflater.unconsumed_tail
    except zlib.error:
        return count
    return count


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, TEXT_BYTES)
    except zlib.error:
        return b""


def _profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text chunk: a name, a length and hexadecimal digits."""
    try:
        digits = b"".join(text[:TEXT_BYTES].split()[2:])
        return bytes.fromhex(digits.decode("ascii")).removeprefix(b"Exif\0\0")
    except ValueError:
        return b""


# GIF (GIF89a), WebP (RFC 9649)


def _gif(data: bytes) -> StrippedPicture:
    """Header and palette, the last control block before the first picture, and that picture."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    head, control, parts = data[:position], b"", 0
    while data[position] != 0x2C:
        parts += 1
        _count(parts)
        begin, position = position, position + 1  # readers skip what is no block
        if data[begin] == 0x3B:
            raise BadInput("image", "does not decode: a GIF without a picture")
        if data[begin] == 0x21:
            position = _skip_blocks(data, position + 1)
            control = data[begin:position] if data[begin + 1] == 0xF9 else control
    flags = data[position + 9]
    begin, position = position, position + 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    position = _skip_blocks(data, position + 1)
    return StrippedPicture(data=head + control + data[begin:position] + b"\x3b")


def _skip_blocks(data: bytes, position: int) -> int:
    """Behind the block of length 0 that ends a sequence of them."""
    while (length := data[position]) != 0:
        position += 1 + length
    return position + 1


def _webp(data: bytes) -> StrippedPicture:
    """WebP is read by C code alone; only its orientation is looked up."""
    picture, position, parts = StrippedPicture(data=data), 12, 0
    while position + 8 <= len(data):
        parts += 1
        _count(parts)
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            exif = data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
            return replace(picture, orientation=orientation(exif))
        position += 8 + length + (length & 1)
    return picture


# TIFF (revision 6.0), which EXIF is too

_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_ORIENTATION = 274
_PLACES = (273, 324)
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    nbytes: int
    number: int  # the first value where it is an integer of 16 or 32 bits in the entry itself


def _directory(data: bytes, offset: int, order: str, large: bool) -> Iterator[_Entry]:
    """The entries of one directory of a TIFF (`large`: of a BigTIFF)."""
    (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, offset)
    _count(count, TAGS, "entries of a TIFF")
    offset += 8 if large else 2
    layout, step = (order + "HHQ", 20) if large else (order + "HHI", 12)
    for _ in range(count):
        tag, kind, number = struct.unpack_from(layout, data, offset)
        place = offset + step - (8 if large else 4)
        (first,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place)
        yield _Entry(tag, _SIZES.get(kind, 1) * number, first)
        offset += step


def _order(data: bytes) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory is."""
    order = "<" if data[:2] == b"II" else ">"
    large = data[2:4] in (b"+\0", b"\0+")
    place = struct.unpack_from(order + ("Q" if large else "I"), data, 8 if large else 4)[0]
    return order, large, int(place)


def _check_tiff(data: bytes) -> None:
    """Refuse entries that share bytes: together they could be many times the size of the file."""
    order, large, place = _order(data)
    places, held = [place], 0
    for at in places:
        for entry in _directory(data, at, order, large):
            held += entry.nbytes
            if entry.tag in _PLACES:  # Pillow makes an object for each strip or tile
                _count(entry.nbytes // 2, 4 * PARTS, "strips of a TIFF")
            if entry.tag in _DIRECTORIES and len(places) <= len(_DIRECTORIES):
                places.append(entry.number)
            if held > len(data):
                raise BadInput("image", "does not decode: a TIFF whose tags overlap")


def orientation(exif: bytes) -> int:
    """The orientation that a block of EXIF names, 1 to 8; 1 where it names none."""
    try:
        if exif[:4] in (b"II*\0", b"MM\0*"):
            order, large, place = _order(exif)
            for entry in _directory(exif, place, order, large):
                if entry.tag == _ORIENTATION and 1 <= entry.number <= 8:
                    return entry.number
    except (struct.error, BadInput):
        pass
    return 1
