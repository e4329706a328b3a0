"""Decodes some frames of a video file, within limits. Imports PyAV when a video comes.

Shapes: T frames that are decoded, S the side of each, or H and W.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import Limits
from ..errors import BadInput
from .pictures import Fit, fitted, on_white

if TYPE_CHECKING:
    from av import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Array = NDArray[Any]
Size = Fit | int | None
"""How a frame is brought to size; a number: whole, on white, of this side; None: not at all."""

PACKETS = 200_000
"""Compressed frames of a file: more than 600 s at 240 a second."""
REPEATED = 2
"""Times the file's size that its compressed frames have together: a table may name one often."""
WHOLE_BYTES = 8 * 9_437_184 * 3
"""Of frames of their own size together: 8 of the largest that `Limits.video_pixels` admits. A child
holds them twice."""
SAMPLED: Mapping[str, Callable[[int, int, int], int]] = {
    "middles": lambda part, parts, count: (2 * part + 1) * count // (2 * parts),
    "ends": lambda part, parts, count: part * (count - 1) // max(1, parts - 1),
}
"""The place of one of `parts` frames among `count`: the middles of as many equal parts of the film
(as X-CLIP is evaluated, arXiv 2208.02816), or from the first to the last frame."""
EXTRA = "decoding a video needs PyAV: pip install 'braid-stream[video]'"


def decode_video(data: bytes, frames: int, fit: Size, limits: Limits, of: str = "middles") -> Array:
    """Frames of a video file as uint8[T, 3, S, S], T = `frames`, upright.

    They are spread over the film by its number of frames; a shorter film repeats some. Only what
    comes after the last key frame before such a frame is decoded.

    Args:
        fit: how each frame is brought to size; with None the result is uint8[T, H, W, 3].
        of: which frames, see `SAMPLED`.

    Raises:
        BadInput: not MP4, QuickTime, Matroska, WebM, AVI or MPEG-TS, over a limit, or broken.
        ModuleNotFoundError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(EXTRA) from error

    kind = _format(data)
    if fit is None:
        most = min(limits.video_pixels, WHOLE_BYTES // (3 * frames))
        limits = replace(limits, video_pixels=most)
    try:
        with av.open(io.BytesIO(data), "r", format=kind, metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadInput("video", "holds no pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BadInput("video", "has a codec that this FFmpeg does not decode")
            _check_frame(stream.codec_context.width, stream.codec_context.height, limits)
            packets: list[Packet] = []
            size = 0
            for number, packet in enumerate(container.demux(stream)):
                size += packet.size
                if number > PACKETS or size > REPEATED * len(data):
                    raise BadInput("video", f"more than {PACKETS} frames, or frames named twice")
                if packet.size:
                    packets.append(packet)
            _check_length(packets, stream, limits)
            return np.stack(_chosen(packets, stream, frames, of, fit, limits))
    except (BadInput, MemoryError):  # FFmpeg's own MemoryError is an FFmpegError too
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise BadInput("video", f"does not decode: {str(error)[:200]}") from error


def _format(data: bytes) -> str:
    """The container by its magic bytes. FFmpeg would take playlists too, which name other files."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:1] == b"\x47" and data[188:189] == b"\x47":
        return "mpegts"
    raise BadInput(
        "video", "does not decode: none of MP4, QuickTime, Matroska, WebM, AVI and MPEG-TS"
    )


def _check_frame(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.video_pixels:
        raise BadInput(
            "video", f"{width}x{height} pixels a frame, the limit is {limits.video_pixels}"
        )


def _check_length(packets: Sequence[Packet], stream: VideoStream, limits: Limits) -> None:
    if not packets:
        raise BadInput("video", "holds no frames")
    times = [packet.pts for packet in packets if packet.pts is not None]
    if times and stream.time_base is not None:
        seconds = float((max(times) - min(times)) * stream.time_base)
        if seconds > limits.video_seconds:
            raise BadInput("video", f"{seconds:.1f} s, the limit is {limits.video_seconds:g} s")


class _Decoder:
    """Decodes packets, and counts what that takes."""

    def __init__(self, stream: VideoStream, limits: Limits) -> None:
        self._codec, self._limits = stream.codec_context, limits
        self._codec.thread_count = 1
        self._until = time.thread_time() + limits.video_decode_s
        self._left = limits.video_bytes

    def frames(self, packets: Sequence[Packet]) -> Iterator[VideoFrame]:
        """In the order in which they are shown. Raises BadInput, or what PyAV raises."""
        for packet in [*packets, None]:
            for frame in self._codec.decode(packet):
                _check_frame(frame.width, frame.height, self._limits)
                self._left -= frame.width * frame.height * 3
                if self._left < 0:
                    raise BadInput(
                        "video", f"more than {self._limits.video_bytes} bytes of decoded frames"
                    )
                yield frame
            if time.thread_time() > self._until:
                raise BadInput("video", f"takes more than {self._limits.video_decode_s:g} s")
        self._codec.flush_buffers()  # the end was reached; another part may follow

    def restart(self) -> None:
        self._codec.flush_buffers()


def _chosen(
    packets: Sequence[Packet], stream: VideoStream, count: int, of: str, fit: Size, limits: Limits
) -> list[Array]:
    """`count` frames of the film. An edit list leaves frames out, of which the others may be made:
    they are decoded, and not shown."""
    shown = [packet for packet in packets if not packet.is_discard] or packets
    places = [SAMPLED[of](part, count, len(shown)) for part in range(count)]
    decoder = _Decoder(stream, limits)
    times = [packet.pts for packet in shown]
    if None not in times and len(set(times)) == len(shown):
        order = sorted(time for time in times if time is not None)
        wanted = [order[place] for place in places]
        found = _at(decoder, packets, wanted, fit)
        if len(found) == len(set(wanted)):
            return [found[time] for time in wanted]
        decoder.restart()
    return _counted(decoder, packets, places, fit)


def _at(
    decoder: _Decoder, packets: Sequence[Packet], wanted: Sequence[int], fit: Size
) -> dict[int, Array]:
    """The frames shown at times; each is decoded from the key frame before it."""
    keys = [(place, one.pts) for place, one in enumerate(packets) if one.is_keyframe]
    starts: dict[int, list[int]] = {}
    for moment in sorted(set(wanted)):
        start = max((place for place, pts in keys if pts is not None and pts <= moment), default=0)
        starts.setdefault(start, []).append(moment)
    found: dict[int, Array] = {}
    for start, moments in starts.items():
        for frame in decoder.frames(packets[start:]):
            if frame.pts in moments:
                found[frame.pts] = _brought(frame, fit)
            if frame.pts is not None and frame.pts >= moments[-1]:
                break
        decoder.restart()
    return found


def _counted(
    decoder: _Decoder, packets: Sequence[Packet], places: Sequence[int], fit: Size
) -> list[Array]:
    """The frames at places, where no times tell them; the last one for those that never come."""
    found: dict[int, Array] = {}
    last: VideoFrame | None = None
    for place, frame in enumerate(decoder.frames(packets)):
        last = frame
        if place in places:
            found[place] = _brought(frame, fit)
        if place >= places[-1]:
            break
    if last is None:
        raise BadInput("video", "does not decode: no frame comes of it")
    end = _brought(last, fit)
    return [found.get(place, end) for place in places]


def _brought(frame: VideoFrame, fit: Size) -> Array:
    """A frame in RGB and of the side of `fit`, turned as its display matrix has it: by quarters,
    counterclockwise. At once: many whole frames of a large film take more memory than a child has.
    """
    picture: Image.Image = frame.to_image()
    turns = {90: 2, -270: 2, 180: 3, -180: 3, -90: 4, 270: 4}  # Image.Transpose.ROTATE_*
    turn = turns.get(round(frame.rotation))
    if turn is not None:
        picture = picture.transpose(Image.Transpose(turn))
    if fit is None:
        return np.asarray(picture)
    return on_white(picture, fit) if isinstance(fit, int) else fitted(picture, fit)


def decode_described(data: bytes, size: Mapping[str, Any], limits: Limits) -> Array:
    """`decode_video` by a description that JSON can hold: `frames`, `of`, and `fit`, the fields of
    a `Fit`, a side or None."""
    fit = Fit(**size["fit"]) if isinstance(size["fit"], Mapping) else size["fit"]
    return decode_video(data, int(size["frames"]), fit, limits, size["of"])
