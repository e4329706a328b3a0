"""The bodies that the query service takes, and how each becomes a checked query."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import BadQuery

MAX_K = 1000
MAX_TEXT = 1024 * 1024
MAX_WAIT_MS = 30_000


class RawVector(BaseModel):
    """A vector of the caller's own; it must say in which space it lives."""

    model_config = ConfigDict(extra="forbid", strict=True)

    values: list[float] = Field(min_length=1, max_length=65_536)
    space: str = Field(min_length=1, max_length=200)


class SearchBody(BaseModel):
    """`POST /v1/search`: any of text, image and audio together, or id, or query."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    image: Annotated[str, Field(description="a picture file, base64")] | None = None
    audio: Annotated[str, Field(description="a sound file, base64")] | None = None
    id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    query: RawVector | None = None
    k: int = Field(10, ge=1, le=MAX_K)
    vector: Literal["fused", "text", "image", "audio"] = "fused"
    filter: dict[str, Any] | None = None
    min_offsets: dict[str, int] | None = Field(
        None, description="partition of `records` -> offset that must be reflected"
    )
    timeout_ms: int = Field(2000, ge=0, le=MAX_WAIT_MS)

    def kind(self) -> Literal["media", "id", "query"]:
        """Which of the three kinds of query this is. Raises BadQuery unless it is exactly one."""
        media = any(part is not None for part in (self.text, self.image, self.audio))
        given = [
            name
            for name, there in (
                ("media", media),
                ("id", self.id is not None),
                ("query", self.query is not None),
            )
            if there
        ]
        if len(given) != 1:
            what = "none of them" if not given else " and ".join(given)
            raise BadQuery(
                "body", f"must hold text, image or audio, or id, or query: exactly one; got {what}"
            )
        return given[0]  # type: ignore[return-value]

    def offsets(self) -> dict[int, int]:
        """min_offsets with numbers as keys. Raises BadQuery."""
        offsets = {}
        for number, next_ in (self.min_offsets or {}).items():
            if not re.fullmatch("[0-9]{1,9}", number) or next_ < 0:
                raise BadQuery(
                    "min_offsets", f"maps partitions to offsets, got {number[:60]!r}: {next_}"
                )
            offsets[int(number)] = next_
        return offsets

    def media(self, name: Literal["image", "audio"]) -> bytes | None:
        """The decoded bytes of image or audio. Raises BadQuery."""
        given = self.image if name == "image" else self.audio
        if given is None:
            return None
        try:
            data = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadQuery(name, f"is not base64: {error}") from None
        if not data:
            raise BadQuery(name, "is empty")
        return data

    def values(self) -> list[float]:
        """The raw vector. Raises BadQuery if a value is not finite."""
        assert self.query is not None
        for position, value in enumerate(self.query.values):
            if not math.isfinite(value):
                raise BadQuery(f"query.values[{position}]", f"must be finite, got {value}")
        return self.query.values


class Answered(BaseModel):
    """One hit. `text` and `uri` are null when Redis does not have them."""

    id: str
    score: float
    text: str | None
    uri: dict[str, str] | None
    meta: dict[str, Any]
    model: str
    version: int
    partition: int


class SearchAnswer(BaseModel):
    """Which model and generation answered, and as of which offsets of `records`."""

    hits: list[Answered]
    model: str | None
    space: str
    generation: str
    as_of: dict[str, int]
    exact: bool
    payloads: Literal["ok", "unavailable"]
    took_ms: float
