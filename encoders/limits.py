"""The limits of what is decoded and embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .errors import BadInput

_FIRST_LIMITS = ("text_bytes", "image_pixels", "image_bytes", "audio_seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of `prepare`. A sample beyond them raises `BadInput` before anything is allocated.

    Attributes:
        text_bytes: utf-8 bytes of the text. (Cutting a shorter one to the encoder's longest
            sequence is normal and no error.)
        image_pixels: width times height of a picture, read from its header.
        image_bytes: memory that decoding a picture takes, from its format and mode in its header;
            beside it a picture takes 64 MiB at most. 64 megapixels in colour take 244 MiB, as a
            progressive JPEG up to 366 MiB; WebP takes 14 bytes a pixel.
        audio_seconds: length of a sound, read from its header.
        video_seconds: length of a video, by the times of its frames.
        video_pixels: width times height of a frame: 4096x2304 at most.
        video_bytes: decoded frames together, at 3 bytes a pixel; see `decode_video` on how few are
            decoded.
        video_decode_s: CPU seconds of decoding one video.
    """

    text_bytes: int = 1_000_000
    image_pixels: int = 64_000_000
    image_bytes: int = 402_653_184
    audio_seconds: float = 600.0
    video_seconds: float = 600.0
    video_pixels: int = 9_437_184
    video_bytes: int = 64 << 30
    video_decode_s: float = 30.0

    def hashed(self, modalities: Sequence[str]) -> dict[str, float]:
        """What a version's preprocessing depends on; of videos only where it has them, so that
        versions from before have the spaces that they had."""
        known = asdict(self)
        return known if "video" in modalities else {k: known[k] for k in _FIRST_LIMITS}

    def check_text(self, text: str) -> bytes:
        """`text` as utf-8.

        Raises:
            BadInput: longer than `text_bytes`, or lone surrogates that utf-8 cannot hold.
        """
        if len(text) > self.text_bytes:  # a character is at least one byte: no need to encode it
            raise BadInput("text", f"{len(text)} characters, the limit is {self.text_bytes} bytes")
        try:
            encoded = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput("text", f"is not valid unicode: {error}") from error
        if len(encoded) > self.text_bytes:
            raise BadInput("text", f"{len(encoded)} bytes, the limit is {self.text_bytes} bytes")
        return encoded
