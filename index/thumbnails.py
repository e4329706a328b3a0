"""Thumbnails of hits as data URIs, for notebooks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from . import calls
from .errors import ServiceError

TIMEOUT_S = 5.0
TYPES = ("image/webp", "image/jpeg", "image/png")


@dataclass(frozen=True, repr=False)
class Thumbnails:
    """Asks the query service, on connections of its own: the client may be closed by then.

    A copy by pickle is without the API key.
    """

    url: str
    headers: Mapping[str, str]

    def __call__(self, id: str) -> str | None:
        """The picture of a record as a data URI; None if there is none.

        Raises:
            ServiceError: the service does not answer.
        """
        try:
            answer = httpx.get(
                self.url.rstrip("/") + calls.thumbnail(id),
                headers=dict(self.headers),
                timeout=TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            raise ServiceError(f"no thumbnail: {type(error).__name__}") from error
        kind = answer.headers.get("content-type", "")
        if answer.status_code != 200 or kind not in TYPES:
            return None
        return f"data:{kind};base64,{base64.b64encode(answer.content).decode()}"

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, str]]]:
        return Thumbnails, (self.url, {})
