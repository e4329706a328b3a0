"""The query service's client.

with Client("http://127.0.0.1:8077") as client:
    for hit in client.search(text="a red bird", k=5)["hits"]:
        print(hit["score"], hit["id"], hit["text"])
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from .errors import BadQuery, ServiceError

Media = bytes | Path | None


class Client:
    """Calls a query service.

    Raises (every call):
        BadQuery: the service refused the query and says why.
        ServiceError: it does not answer, or failed.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        try:
            self._client = httpx.Client(base_url=url, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{url!r} is no address: {error}") from error

    def search(
        self,
        *,
        text: str | None = None,
        image: Media = None,
        audio: Media = None,
        id: str | None = None,
        values: Sequence[float] | None = None,
        space: str | None = None,
        k: int = 10,
        vector: str = "fused",
        filter: Mapping[str, Any] | None = None,
        min_offsets: Mapping[int, int] | None = None,
        timeout_ms: int | None = None,
    ) -> dict[str, Any]:
        """What is like this; give any of text, image and audio, or id, or values with space."""
        body: dict[str, Any] = {"k": k, "vector": vector}
        optional = {
            "text": text,
            "image": _encoded(image),
            "audio": _encoded(audio),
            "id": id,
            "filter": filter,
            "timeout_ms": timeout_ms,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        if values is not None:
            body["query"] = {"values": list(values), "space": space}
        if min_offsets is not None:
            body["min_offsets"] = {str(number): next_ for number, next_ in min_offsets.items()}
        return self._call("POST", "/v1/search", json=body)

    def get(self, id: str) -> dict[str, Any]:
        """One record: its meta, model, version and vectors."""
        return self._call("GET", _record(id))

    def delete(self, id: str) -> dict[str, Any]:
        """Ask for a record's deletion; the answer says at which offset of `records` it stands."""
        return self._call("DELETE", _record(id))

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def ready(self) -> bool:
        """Whether the node has caught up; false also when it does not answer."""
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(f"no answer from {self._client.base_url}: {error!r}") from error
        except (ValueError, TypeError) as error:  # NaN, say, or half a surrogate pair
            raise BadQuery("body", f"cannot be sent as JSON: {error}") from error
        try:
            body: dict[str, Any] = dict(answer.json())
        except (ValueError, TypeError) as error:
            raise ServiceError(
                f"{self._client.base_url}{path} answered {answer.status_code} without JSON",
                status=answer.status_code,
            ) from error
        if answer.is_success:
            return body
        problem = body.get("error") or {}
        field, reason = str(problem.get("field")), str(problem.get("reason"))
        if answer.status_code < 500:
            raise BadQuery(field, reason, status=answer.status_code)
        raise ServiceError(f"{path}: {field}: {reason}", status=answer.status_code)


def _record(id: str) -> str:
    # Dots too, or `..` would climb out of the collection.
    return "/v1/records/" + quote(id, safe="").replace(".", "%2E")


def _encoded(media: Media) -> str | None:
    if media is None:
        return None
    data = media.read_bytes() if isinstance(media, Path) else media
    return base64.b64encode(data).decode()
