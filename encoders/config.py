"""Configuration: frozen dataclasses, presets as functions. Nothing is read or loaded on import."""

from __future__ import annotations

from dataclasses import dataclass

from encoders.errors import BadInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What `prepare` accepts. Beyond them a sample is `BadInput`, before anything is allocated.

    Attributes:
        text_bytes: utf-8 bytes of the text. (Cutting a shorter one to the encoder's longest
            sequence is normal and no error.)
        image_pixels: width times height of a picture, read from its header.
        audio_seconds: length of a sound, read from its header.
    """

    text_bytes: int = 1_000_000
    image_pixels: int = 64_000_000
    audio_seconds: float = 600.0

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
