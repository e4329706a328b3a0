"""Thumbnails and snippets: small pictures and sounds for a browser.

Decoding has the encoders' limits: sizes in headers are checked before memory is allocated. A
thumbnail or snippet that cannot be made is None; the record is searchable without it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import soundfile
from PIL import Image

from braid.encoders.config import Limits
from braid.encoders.decoding.isolation import DecodePool, isolate, video
from braid.encoders.decoding.pictures import open_image
from braid.index.media_cache import Kind, Media
from braid.index.service.hit_details import KIND_OF

from ..errors import bad_record
from ..settings import Settings

log = logging.getLogger(__name__)

SIDE = 224  # pixels: the width of a card on a phone
LARGE_SIDE = 1024  # pixels: of one record's page
QUALITY = 78
SECONDS = 5.0
LONG_S = 60.0  # of one record's page
# MP3, because every browser plays it; older versions of Safari do not play Ogg.
RATE = 22_050
FORMAT, SUBTYPE = "MP3", "MPEG_LAYER_III"
COMPRESSION = 0.7  # from 0 to 1: about 40 kbit/s at this rate


@contextmanager
def isolated_decoding(settings: Settings) -> Iterator[None]:
    """Within the block this process decodes as `worker.prepare_isolation` says."""
    if settings.worker.prepare_isolation == "thread":
        yield
        return
    pool = DecodePool(settings.worker.prepare_threads)
    isolate(pool)
    try:
        yield
    finally:
        isolate(None)
        pool.close()


def thumb(data: bytes, limits: Limits, *, side: int = SIDE) -> Media | None:
    """A picture as WebP, its longer side `side` pixels or less; transparency stays."""
    try:
        with open_image(data, side, limits) as small:
            small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            file = io.BytesIO()
            small.save(file, "WEBP", quality=QUALITY, method=2)
    except Exception as error:  # noqa: BLE001 (a library may raise anything on one picture)
        log.debug("no thumbnail: %s", bad_record(error, stage="show", field="image"))
        return None
    return Media(data=file.getvalue(), type="image/webp")


def snippet(data: bytes, limits: Limits, *, seconds: float = SECONDS) -> Media | None:
    """The first seconds of a sound as one channel of MP3."""
    from braid.encoders.backbones.audio import decode_audio  # imports torch: 2 s

    try:
        wave_N = decode_audio(data, RATE, seconds, limits)
        file = io.BytesIO()
        soundfile.write(
            file, wave_N, RATE, format=FORMAT, subtype=SUBTYPE, compression_level=COMPRESSION
        )
    except Exception as error:  # noqa: BLE001 (as in thumb)
        log.debug("no snippet: %s", bad_record(error, stage="show", field="audio"))
        return None
    return Media(data=file.getvalue(), type="audio/mpeg")


def still(data: bytes, limits: Limits, *, side: int = SIDE) -> Media | None:
    """The frame in the middle of a video as WebP, whole on white, `side` pixels."""
    try:
        (frame_CHW,) = video(data, 1, side, limits)
        file = io.BytesIO()
        Image.fromarray(frame_CHW.transpose(1, 2, 0)).save(file, "WEBP", quality=QUALITY, method=2)
    except Exception as error:  # noqa: BLE001 (as in thumb)
        log.debug("no still: %s", bad_record(error, stage="show", field="video"))
        return None
    return Media(data=file.getvalue(), type="image/webp")


MAKERS: Mapping[str, Callable[[bytes, Limits], Media | None]] = {
    "image": thumb,
    "audio": snippet,
    "video": still,
}
"""What makes the medium of a card from a modality's bytes; its kind is in `KIND_OF`."""


def media_of(contents: Mapping[str, bytes | None], limits: Limits) -> dict[Kind, Media]:
    """The media of a card from a record's bytes by modality, as far as they can be made."""
    made: dict[Kind, Media] = {}
    for name, kind in KIND_OF.items():
        data = contents.get(name)
        if data is not None and kind not in made and (one := MAKERS[name](data, limits)):
            made[kind] = one
    return made
