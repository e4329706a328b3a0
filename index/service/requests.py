"""Request models of the query service."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PrivateAttr,
    SkipValidation,
    model_validator,
)

from braid.modalities import MODALITIES, listed

from ..errors import BadQuery

MAX_K = 1000
MAX_TEXT = 1024 * 1024
MAX_WAIT_MS = 30_000
MAX_BATCH = 64
MAX_BATCH_HITS = 10_000  # of all queries of a batch together
MAX_NAMES = 64  # of one object, before each is checked
MAX_PARTITIONS = 1024
MAX_INPUTS = 2048  # to embed, as OpenAI's API

Kind = Literal["media", "id", "query"]
VectorName = Literal["fused", "text", "image", "audio", "video"]
"""Literals stand for themselves: a test compares them with `MODALITIES`."""


def _few(value: Any, limit: int) -> Any:
    """Reject an object with too many names at once: pydantic would report each name."""
    if isinstance(value, dict) and len(value) > limit:
        raise ValueError(f"has {len(value)} names, the limit is {limit}")
    return value


class _Bounded(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_names(cls, value: Any) -> Any:
        return _few(value, MAX_NAMES)


Offsets = Annotated[
    dict[str, int],
    Field(max_length=MAX_PARTITIONS),
    BeforeValidator(lambda value: _few(value, MAX_PARTITIONS)),
]


def from_base64(name: str, encoded: str) -> bytes:
    """The bytes of a field. Raises BadQuery."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadQuery(name, f"is not base64: {error}") from None


class RawVector(_Bounded):
    """A vector from the caller, with the name of its space."""

    values: Annotated[list[float], FailFast()] = Field(
        min_length=1, max_length=65_536, description="as many as the space has dimensions"
    )
    space: str = Field(min_length=1, max_length=200, description="as `/v1/status` names it")


class SearchBody(_Bounded):
    """A query: any of the modalities together, or id, or query."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = Field(
        None, description="words to look for"
    )
    image: str | None = Field(None, description="a picture file, base64")
    audio: str | None = Field(None, description="a sound file, base64")
    video: str | None = Field(None, description="a video file, base64")
    id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="a record, whose vector is the query"
    )
    query: RawVector | None = Field(None, description="a vector of the caller's own")
    k: int = Field(10, ge=1, le=MAX_K, description="how many hits at most")
    vector: VectorName = Field("fused", description="which vector of the records is searched")
    filter: dict[str, Any] | None = Field(
        None,
        description="on the records' meta: `{field: value}`, operators gt, gte, lt, lte, in, "
        "exists, and `and`, `or`, `not`",
    )
    min_offsets: Offsets | None = Field(
        None,
        description="partition of `records` -> the next offset: all before must be reflected; for "
        "a record of one's own, the offset that producing returned plus one",
    )
    timeout_ms: int = Field(
        2000, ge=0, le=MAX_WAIT_MS, description="how long to wait for min_offsets"
    )
    generation: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="the generation to search; without it the serving one"
    )
    explain: bool = Field(False, description="adds `scores` to each hit and `cutoff` to the answer")

    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    def attach(self, name: str, data: bytes) -> None:
        """Set one of `MEDIA` as bytes, which an upload carries."""
        self._files[name] = data

    def kind(self) -> Kind:
        """The kind of the query. Raises BadQuery unless it is exactly one of the three."""
        asked: dict[Kind, Any] = {
            "media": self._given() or None,
            "id": self.id,
            "query": self.query,
        }
        kinds = [kind for kind, value in asked.items() if value is not None]
        if len(kinds) != 1:
            what = "none of them" if not kinds else " and ".join(kinds)
            raise BadQuery(
                "body",
                f"must hold {listed(MODALITIES, 'or')}, or id, or query: exactly one; got {what}",
            )
        return kinds[0]

    def label(self) -> str:
        """The label for metrics: one of `braid.index.metrics.KINDS`."""
        kind = self.kind()
        if kind != "media":
            return kind
        modalities = self._given()
        return modalities[0] if len(modalities) == 1 else "composed"

    def offsets(self) -> dict[int, int]:
        """min_offsets with numbers as keys. Raises BadQuery."""
        offsets = {}
        for number, next_ in (self.min_offsets or {}).items():
            if not re.fullmatch("[0-9]{1,9}", number) or next_ < 0:
                raise BadQuery(
                    "min_offsets",
                    f"maps partitions to offsets, got {number[:60]!r}: {str(next_)[:60]}",
                )
            offsets[int(number)] = next_
        return offsets

    def media(self, name: str) -> bytes | None:
        """The bytes of one of `MEDIA`. Raises BadQuery."""
        encoded = getattr(self, name)
        data = self._files.get(name)
        if data is None and encoded is not None:
            data = from_base64(name, encoded)
        if data == b"":
            raise BadQuery(name, "is empty")
        return data

    def values(self) -> list[float]:
        """The raw vector. Raises BadQuery if a value is not finite."""
        assert self.query is not None
        for position, value in enumerate(self.query.values):
            if not math.isfinite(value):
                raise BadQuery(f"query.values[{position}]", f"must be finite, got {value}")
        return self.query.values

    def _given(self) -> list[str]:
        """The modalities of the query."""
        return [
            name for name in MODALITIES if name in self._files or getattr(self, name) is not None
        ]


class BatchBody(_Bounded):
    """Several queries; each is checked and answered by itself."""

    # Each is a SearchBody, validated later, so that one bad query does not reject the others.
    queries: list[Any] = Field(
        min_length=1, max_length=MAX_BATCH, description="the queries, each as for /v1/search"
    )


class TextPart(_Bounded):
    """Words."""

    type: Literal["text"] = Field(description="says what the part is")
    text: str = Field(min_length=1, max_length=MAX_TEXT, description="words")


class ImageUrl(_Bounded):
    """A picture file in a data URI."""

    url: str = Field(description="`data:image/png;base64,...`; links are not fetched")
    detail: str | None = Field(None, description="ignored")


class ImagePart(_Bounded):
    """A picture."""

    type: Literal["image_url"] = Field(description="says what the part is")
    image_url: ImageUrl = Field(description="the picture")


class InputAudio(_Bounded):
    """A sound file."""

    data: str = Field(description="a sound file, base64")
    format: str | None = Field(None, description="ignored: the file says it")


class AudioPart(_Bounded):
    """A sound."""

    type: Literal["input_audio"] = Field(description="says what the part is")
    input_audio: InputAudio = Field(description="the sound")


class VideoUrl(_Bounded):
    """A video file in a data URI."""

    url: str = Field(description="`data:video/mp4;base64,...`; links are not fetched")


class VideoPart(_Bounded):
    """A video, in the form that vLLM's API has for it: OpenAI's has none."""

    type: Literal["video_url"] = Field(description="says what the part is")
    video_url: VideoUrl = Field(description="the video")


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]


Together = Annotated[list[Part], Field(min_length=1, max_length=len(MODALITIES))]
Input = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | Part | Together


class Parts(_Bounded):
    """Parts that make one vector together, each type at most once."""

    parts: Together = Field(description="content parts")


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _or_text(schema: dict[str, Any]) -> None:
    """Describe what `_listed` takes."""
    listed = {name: schema.pop(name) for name in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [listed, {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}]


class EmbeddingsBody(_Bounded):
    """Texts and files to embed."""

    model: str = Field(
        min_length=1, max_length=200, description="a model, a generation, or `champion`"
    )
    # Each is validated later, with its place in the reason.
    input: Annotated[list[SkipValidation[Input]], BeforeValidator(_listed)] = Field(
        min_length=1,
        max_length=MAX_INPUTS,
        description="a text, or a list of texts, content parts and lists of parts",
        json_schema_extra=_or_text,
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: of the float32 values, little-endian"
    )
    dimensions: int | None = Field(None, description="if given, the width of the space")
    user: str | None = Field(None, description="ignored")
