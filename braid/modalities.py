"""The table of modalities, which every package reads. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """One modality.

    Attributes:
        noun: what a person calls one of it.
        endings: endings of its files to their media types; none: it is text, not a file.
        shown: what a card shows of it, a kind of `braid.index.media_cache`; None: nothing is made.
    """

    noun: str
    endings: Mapping[str, str] = field(default_factory=dict)
    shown: str | None = None


MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        "text": Modality(noun="text"),
        "image": Modality(
            noun="picture",
            endings={
                ".png": "image/png",
                ".jpg": "image/jpeg",
                ".jpeg": "image/jpeg",
                ".webp": "image/webp",
            },
            shown="thumb",
        ),
        "audio": Modality(
            noun="sound",
            endings={
                ".ogg": "audio/ogg",
                ".wav": "audio/wav",
                ".flac": "audio/flac",
                ".mp3": "audio/mpeg",
            },
            shown="snippet",
        ),
        "video": Modality(
            noun="video",
            endings={
                ".mp4": "video/mp4",
                ".m4v": "video/mp4",
                ".mov": "video/quicktime",
                ".webm": "video/webm",
                ".mkv": "video/x-matroska",
                ".avi": "video/x-msvideo",
            },
            shown="thumb",
        ),
    }
)
"""By name. Its order is that of a decision's weights: a new one goes to the end."""
MEDIA = tuple(name for name, modality in MODALITIES.items() if modality.endings)
"""Those that are files."""


def listed(names: Mapping[str, Modality] | tuple[str, ...], last: str = "and") -> str:
    """Names for a message: "text, image and audio"."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end
