"""Decodes picture files to pixels, within limits. Imports Pillow and numpy only.

The cost of decoding is read from the header first: memory by format and mode, time by the scans of
a JPEG. No pixel is decoded twice; large pictures are converted and reduced in bands.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..config import Limits
from ..errors import BadInput
from .containers import StrippedPicture, first_picture, truncated, unpacked_bytes

Array = NDArray[Any]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow reads more formats, but some start a program or have no reliable header."""
LONGEST_SIDE = 65_535
"""The limit of JPEG and GIF. Pillow keeps a pointer to each line, and resizes by columns."""
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Bytes a pixel of each mode in Pillow; all others take 4."""
WEBP_BYTES = 14  # a pixel: canvases of the decoder, its result, Pillow's picture; measured 12.7
SCANS_AT_LIMIT = 32
"""Scans that a JPEG of `Limits.image_pixels` may have; smaller ones may have more."""
PYTHON_BYTES = 2_000_000
"""Of a file that Pillow decodes in Python, at up to 1.5 us a byte: PPM as text or with an odd
maximum, BMP with run lengths."""
BAND_PIXELS = 2_000_000
REDUCED_FROM = 16_000_000
"""Pixels from which a picture is reduced in bands: premultiplied and turned, its copies would
take three times its memory."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLES, _ROWS, _KIND = 258, 262, 277, 278, 339  # TIFF tags


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How the image processors of `transformers` bring a picture to size.

    Attributes:
        side: of the result, in pixels.
        shortest: the shorter side's length before the centre is cut out; None: both sides become
            `side`, whatever their ratio.
        resample: the filter, as Pillow numbers them.
    """

    side: int
    shortest: int | None
    resample: int


def decode_fitted(data: bytes, fit: Fit, limits: Limits) -> Array:
    """A picture file as uint8[3, side, side] as `transformers` makes it: EXIF rotation is applied,
    transparency dropped, of an animation the first frame is taken.

    Raises:
        BadInput: as `decode_image`.
    """
    with open_image(data, LONGEST_SIDE, limits, alpha=False) as picture:
        return fitted(picture, fit)


def decode_whole(data: bytes, limits: Limits) -> Array:
    """A picture file as uint8[H, W, 3] of its own size, as `decode_fitted` shows it.

    Raises:
        BadInput: as `decode_image`.
    """
    with open_image(data, LONGEST_SIDE, limits, alpha=False) as picture:
        pixels_HWC = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
        lines = max(1, BAND_PIXELS // picture.width)
        for top in range(0, picture.height, lines):  # Pillow would hold two more copies
            box = (0, top, picture.width, min(top + lines, picture.height))
            pixels_HWC[top : box[3]] = np.asarray(picture.crop(box))
        return pixels_HWC


def decode_image(data: bytes, side: int, limits: Limits) -> Array:
    """A picture file as uint8[3, side, side], scaled to fit and centred on white.

    The cost is read from the header and refused before any pixel is decoded. Transparency becomes
    white, EXIF rotation is applied, of an animation the first frame is taken.

    Raises:
        BadInput: not one of `FORMATS`, over a limit, truncated or broken.
    """
    with open_image(data, side, limits) as picture:
        return on_white(picture, side)


@contextmanager
def open_image(
    data: bytes, side: int, limits: Limits, *, alpha: bool = True
) -> Iterator[Image.Image]:
    """A picture file, upright, as RGB or RGBA with 8 bits, at least about `side` pixels wide or
    high, or as large as it is.

    Args:
        alpha: whether transparency is kept; False: always RGB.

    What goes wrong inside the block becomes BadInput too.

    Raises:
        BadInput: as `decode_image`.
    """
    limit = limits.image_pixels
    try:
        contained = first_picture(data)
        with Image.open(io.BytesIO(contained.data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limit:
                raise BadInput("image", f"{width}x{height} pixels, the limit is {limit} pixels")
            if max(width, height) > LONGEST_SIDE:
                raise BadInput(
                    "image", f"{width}x{height} pixels, a side has {LONGEST_SIDE} at most"
                )
            picture.draft("RGB", (2 * side, 2 * side))  # lets a JPEG be decoded at a smaller scale
            _check_cost(picture, contained, limits)
            tags = getattr(picture, "tag_v2", {})
            numbers = {tag: _number(tags, tag) for tag in (_BITS, _PHOTOMETRIC, _KIND)}
            picture.load()
            _check_whole(picture, contained)
            plain = _plain(picture, contained, numbers)
            yield _upright(plain, contained.orientation, side, alpha=alpha)
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput("image", f"more pixels than the limit of {limit}: {error}") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise BadInput("image", f"does not decode: none of {known}, or a broken one") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput("image", f"does not decode: {type(error).__name__}: {error}") from error


def _check_cost(picture: Image.Image, contained: StrippedPicture, limits: Limits) -> None:
    """Refuse a picture that takes too much memory or time; `picture` is not decoded yet."""
    pixels = picture.width * picture.height
    need = pixels * PIXEL_BYTES.get(picture.mode, 4)
    if contained.scans > 1:  # libjpeg keeps all coefficients, of 16 bits
        planes = sum(width * height for width, height in contained.planes)
        need += 2 * planes
        allowed = SCANS_AT_LIMIT * limits.image_pixels
        stored = max(width * height for width, height in contained.planes)
        if contained.scans * stored > allowed:
            raise BadInput(
                "image",
                f"{contained.scans} scans of {stored} pixels, the limit is {allowed} pixels in all",
            )
    if picture.format == "WEBP":
        need = pixels * WEBP_BYTES
    if picture.format == "TIFF":
        need += _strip_bytes(picture)
    if need > limits.image_bytes:
        raise BadInput(
            "image",
            f"{picture.width}x{picture.height} pixels of {picture.format} {picture.mode} take "
            f"{need} bytes to decode, the limit is {limits.image_bytes}",
        )
    tiles = getattr(picture, "tile", [])
    if any(tile[0] in Image.DECODERS for tile in tiles) and len(contained.data) > PYTHON_BYTES:
        raise BadInput(
            "image",
            f"{len(contained.data)} bytes of {picture.format} in a slow encoding, the limit is "
            f"{PYTHON_BYTES}",
        )
    height = getattr(picture, "_tile_size", picture.size)[1]  # a TIFF's before it is turned
    covered = max((tile[1][3] for tile in tiles if tile[1]), default=height)
    if covered < height and picture.format != "GIF":  # whose first frame may be smaller
        raise truncated()


def _strip_bytes(picture: Image.Image) -> int:
    """The bytes that libtiff unpacks at once."""
    tags: Any = getattr(picture, "tag_v2", {})
    bits, samples = _number(tags, _BITS) or 1, _number(tags, _SAMPLES) or 1
    rows = min(_number(tags, _ROWS) or picture.height, picture.height)
    return picture.width * rows * bits * samples // 8


def _number(tags: Any, tag: int) -> int:
    value = tags.get(tag, 0)
    if isinstance(value, tuple):
        value = value[0] if value else 0
    return int(value) if isinstance(value, int) else 0


def _check_whole(picture: Image.Image, contained: StrippedPicture) -> None:
    """Refuse a PNG whose compressed data end before its last line, which Pillow accepts.

    Pillow's buffer starts with zeros: a last line with another value was decoded.
    """
    if not contained.lines:
        return
    last = picture.crop((0, picture.height - 1, picture.width, picture.height))
    interlaced = bool(picture.info.get("interlace"))
    if (interlaced or not any(last.tobytes())) and unpacked_bytes(contained) < contained.lines:
        raise truncated()


# From any mode to 8 bits


def _plain(picture: Image.Image, contained: StrippedPicture, tags: dict[int, int]) -> Image.Image:
    """`picture` with 8 bits a channel, and its transparent colour as `convert` takes it."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _scaled(picture, tags, clear if isinstance(clear, int) else None)
    if contained.depth == 16 and isinstance(clear, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    elif contained.depth < 8 and isinstance(clear, int) and picture.mode in ("1", "L"):
        picture.info["transparency"] = clear * 255 // ((1 << contained.depth) - 1)
    return picture


def _scaled(picture: Image.Image, tags: dict[int, int], clear: int | None) -> Image.Image:
    """16 or 32 bits a pixel as 8, between the values that are black and white.

    Args:
        clear: the value that is transparent.
    """
    unsigned = tags[_BITS] == 32 and tags[_KIND] in (0, 1) and picture.mode == "I"
    low, high = _span(picture, tags, unsigned)
    grey = Image.new("L", picture.size)
    alpha = None if clear is None else Image.new("L", picture.size, 255)
    for top, values_HW in _bands(picture, unsigned):
        share_HW = np.nan_to_num((values_HW - low) * (255.0 / (high - low)), posinf=255, neginf=0)
        if tags[_PHOTOMETRIC] == 0 and picture.format == "TIFF":
            share_HW = 255.0 - share_HW
        shades_HW = np.clip(share_HW, 0.0, 255.0).astype(np.uint8)
        grey.paste(Image.fromarray(shades_HW), (0, top))
        if alpha is not None:
            shown_HW = np.where(values_HW == clear, 0, 255).astype(np.uint8)
            alpha.paste(Image.fromarray(shown_HW), (0, top))
    return grey if alpha is None else Image.merge("LA", (grey, alpha))


def _bands(picture: Image.Image, unsigned: bool) -> Iterator[tuple[int, Array]]:
    """The lines of `picture` a few at a time, as float64, and the place of the first."""
    lines = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, lines):
        below = min(top + lines, picture.height)
        yield top, _values(picture.crop((0, top, picture.width, below)), unsigned)


def _values(picture: Image.Image, unsigned: bool) -> Array:
    values_HW = np.asarray(picture)
    if unsigned:
        values_HW = values_HW.astype(np.int32).view(np.uint32)
    return values_HW.astype(np.float64)


def _span(picture: Image.Image, tags: dict[int, int], unsigned: bool) -> tuple[float, float]:
    """The values that are black and white.

    A TIFF of floats or 32 bits does not name them. White is 1 for floats and 255 or 65,535 for
    integers where that covers the picture, else the largest value (as viewers do), but for single
    pixels far beyond all others. Black is 0, or the smallest value where that is clearly below.
    """
    if picture.mode.startswith("I;16"):
        return 0.0, 4095.0 if tags[_BITS] == 12 else 65535.0
    if picture.mode == "I" and picture.format != "TIFF":
        return 0.0, 65535.0
    size = (min(picture.width, 1024), min(picture.height, 1024))
    sample = _values(picture.resize(size, Image.Resampling.NEAREST), unsigned)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        raise BadInput("image", "holds no finite value")
    least, typical = np.percentile(sample, [0.1, 99.9])
    high = float(sample.max())
    if high > 4 * typical:
        high = float(typical)
    steps = (1.0,) if picture.mode == "F" else (32767.0,) if tags[_BITS] == 16 else (255.0, 65535.0)
    high = next((step for step in steps if high <= step), high)
    return (float(least) if least < -0.01 * high else 0.0), high


def _upright(picture: Image.Image, orientation: int, side: int, *, alpha: bool) -> Image.Image:
    """`picture` turned upright, as RGB or RGBA; a large one reduced to no less than 2 `side`."""
    clear = "A" in picture.getbands() or "transparency" in picture.info
    mode = "RGBA" if clear and alpha else "RGB"
    if picture.width * picture.height > REDUCED_FROM:
        picture = _reduced(picture, mode, max(1, max(picture.size) // (2 * side)))
    turn = _TURNS.get(orientation)
    if turn is not None:
        picture = picture.transpose(turn)
    return picture if picture.mode == mode else picture.convert(mode)


def _reduced(picture: Image.Image, mode: str, factor: int) -> Image.Image:
    """`picture` with each square of `factor` pixels averaged, a few lines at a time."""
    size = (-(-picture.width // factor), -(-picture.height // factor))
    small = Image.new(mode, size)
    lines = factor * max(1, BAND_PIXELS // (picture.width * factor))
    for top in range(0, picture.height, lines):
        band = picture.crop((0, top, picture.width, min(top + lines, picture.height)))
        small.paste(band.convert(mode).reduce(factor), (0, top // factor))
    return small


def fitted(picture: Image.Image, fit: Fit) -> Array:
    """Resized and cropped as in `image_processing_backends.py` of transformers, rows first, as
    torchvision does: Pillow takes the order that costs less, and rounds in between.

    Only what is seen is resized, with a margin for the filter: a narrow picture would become very
    long.
    """
    ratio = (fit.side if fit.shortest is None else fit.shortest) / min(picture.size)
    boxes: list[float] = []
    starts: list[tuple[int, int]] = []  # of what is resized, and of the result in it
    sizes: list[int] = []
    for length in picture.size:
        scaled = fit.side
        if fit.shortest is not None:
            scaled = int(fit.shortest * length / min(picture.size))
        start = (scaled - fit.side) // 2 if scaled >= fit.side else -((fit.side - scaled) // 2)
        margin = 1 + 3 * math.ceil(max(1.0, ratio))
        low, high = max(0, start - margin), min(scaled, start + fit.side + margin)
        boxes += [low * length / scaled, high * length / scaled]
        starts.append((low, start))
        sizes.append(high - low)
    (left, right, top, bottom), (columns, rows) = boxes, sizes
    resample = Image.Resampling(fit.resample)
    wide = picture.resize((columns, picture.height), resample, (left, 0, right, picture.height))
    small = wide.resize((columns, rows), resample, (0, top, columns, bottom))
    canvas = Image.new("RGB", (fit.side, fit.side))
    canvas.paste(small, tuple(low - start for low, start in starts))  # type: ignore[arg-type]
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))


def on_white(picture: Image.Image, side: int) -> Array:
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Pillow resizes RGBA with premultiplied alpha, so hidden colours do not bleed into the edge.
    small = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    corner = ((side - size[0]) // 2, (side - size[1]) // 2)
    canvas.paste(small, corner, small if small.mode == "RGBA" else None)
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))
