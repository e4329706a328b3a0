"""Blocking and asyncio clients of the query service.

with Client("http://127.0.0.1:8077") as client:
    for hit in client.search(text="a red bird", k=5).hits:
        print(hit.score, hit.id, hit.text)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

import httpx
from pydantic import BaseModel

from . import calls
from .calls import Call, Query
from .errors import BraidIndexError, ServiceError
from .redact import redacted
from .responses import (
    BatchAnswer,
    DeleteAnswer,
    EmbeddingsAnswer,
    GenerationsAnswer,
    RecordAnswer,
    SearchAnswer,
    StatusAnswer,
)
from .thumbnails import Thumbnails

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How often a call is repeated after 429 or 503, and how long to wait.

    Attributes:
        times: repetitions; 0 for none.
        longest_s: if the wait would be longer, the refusal is raised at once.
    """

    times: int = 2
    longest_s: float = 5.0

    def wait_s(self, answer: httpx.Response, *, tried: int) -> float | None:
        """Seconds until the next attempt, or None if there is none."""
        if tried > self.times:
            return None
        after = calls.wait_s(answer.status_code, answer.headers.get("retry-after"), tried=tried)
        return after if after is not None and after <= self.longest_s else None


class Options(TypedDict, total=False):
    """Options of both clients; see `_Common`."""

    timeout: float
    api_key: str | None
    gzip: bool
    retry: Retry


class _Common:
    """Options and errors common to both clients.

    Args:
        url: address of the service, for example http://127.0.0.1:8077.
        timeout: seconds for one call.
        api_key: sent with every call; needed where the service requires keys.
        gzip: compress large JSON bodies; answers are compressed in any case.
        retry: what to do after 429 or 503.

    Raises (every call):
        BadQuery: the service refused the query; the error names field and reason.
        ServiceError: the service does not answer, failed, or is overloaded.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        api_key: str | None = None,
        gzip: bool = False,
        retry: Retry = Retry(),
    ) -> None:
        self._options: dict[str, Any] = {
            "base_url": url,
            "timeout": timeout,
            "headers": calls.headers(api_key),
        }
        self._url, self._pack, self._retry = url, gzip, retry
        self._thumbnails = Thumbnails(url, self._options["headers"])

    def _showing(self, answer: SearchAnswer) -> SearchAnswer:
        """The answer, able to show its hits' pictures in a notebook."""
        answer._thumbnail = self._thumbnails
        return answer

    def _in_order(self, batches: Sequence[BatchAnswer]) -> list[SearchAnswer | BraidIndexError]:
        return [
            self._showing(one) if isinstance(one, SearchAnswer) else one
            for batch in batches
            for one in calls.answers(batch)
        ]

    def _unreachable(self, error: Exception) -> ServiceError:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        return ServiceError(f"no answer from {redacted(self._url)}: {redacted(reason)}")

    def _no_address(self, error: Exception) -> ServiceError:
        return ServiceError(f"{redacted(self._url)!r} is no address: {redacted(error)}")


def _request(call: Call[Any]) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "content": call.content,
        "headers": dict(call.headers),
        "files": None if call.files is None else dict(call.files),
    }


class Client(_Common):
    __doc__ = f"Calls a query service and waits for the answer.\n{_Common.__doc__}"

    def __init__(
        self, url: str, *, sleep: Callable[[float], None] = time.sleep, **options: Unpack[Options]
    ) -> None:
        super().__init__(url, **options)
        self._sleep = sleep
        try:
            self._client = httpx.Client(**self._options)
        except httpx.InvalidURL as error:
            raise self._no_address(error) from error

    def search(self, **query: Unpack[Query]) -> SearchAnswer:
        """Similar records; pass any of the modalities, or id, or values with space."""
        return self._showing(self._call(lambda: calls.search(query, pack=self._pack)))

    def search_many(self, queries: Sequence[Query]) -> list[SearchAnswer | BraidIndexError]:
        """An answer for each query, or the error that the query would have raised alone."""
        batches = [self._batch(part) for part in calls.batches(queries)]
        return self._in_order(batches)

    def get(
        self,
        id: str,
        *,
        generation: str | None = None,
        min_offsets: Mapping[int, int] | None = None,
        timeout_ms: int | None = None,
    ) -> RecordAnswer:
        """One record: its meta, model, version and vectors.

        Args:
            min_offsets: partition of `records` -> the next offset: all before it must be reflected.
            timeout_ms: how long to wait for the offsets.
        """
        return self._call(lambda: calls.get(id, generation, min_offsets, timeout_ms))

    def delete(
        self,
        id: str,
        *,
        min_offsets: Mapping[int, int] | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteAnswer:
        """Request a record's deletion; the answer holds its offset in `records`."""
        return self._call(lambda: calls.delete(id, min_offsets, timeout_ms))

    def embed(self, texts: Sequence[str], *, model: str = "champion") -> EmbeddingsAnswer:
        """Vectors of texts, in the schema of OpenAI's API: those that a search for each would use.

        Args:
            model: a version, a generation, or "champion".
        """
        return self._call(lambda: calls.embed(texts, model, pack=self._pack))

    def status(self) -> StatusAnswer:
        """Rows, offsets, model and space."""
        return self._call(lambda: calls.STATUS)

    def generations(self) -> GenerationsAnswer:
        """The generations that can be searched, and the serving one."""
        return self._call(lambda: calls.GENERATIONS)

    def ready(self) -> bool:
        """Whether the node has caught up; false if it does not answer."""
        try:
            return self._client.request(**_request(calls.READY)).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batch(self, queries: Sequence[Query]) -> BatchAnswer:
        return self._call(lambda: calls.search_batch(queries, pack=self._pack))

    def _call(self, make: Callable[[], Call[A]]) -> A:
        """The answer to the call that `make` returns; it is repeated as `retry` says."""
        call, tried = make(), 0
        while True:
            try:
                answer = self._client.request(**_request(call))
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            tried += 1
            wait_s = self._retry.wait_s(answer, tried=tried)
            if wait_s is None:
                return calls.read(call, answer.status_code, answer.content)
            self._sleep(wait_s)


class AsyncClient(_Common):
    __doc__ = f"Calls a query service from asyncio.\n{_Common.__doc__}"

    def __init__(
        self,
        url: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(url, **options)
        self._sleep = sleep
        try:
            self._client = httpx.AsyncClient(**self._options)
        except httpx.InvalidURL as error:
            raise self._no_address(error) from error

    async def search(self, **query: Unpack[Query]) -> SearchAnswer:
        """See Client.search."""
        return self._showing(await self._call(lambda: calls.search(query, pack=self._pack)))

    async def search_many(self, queries: Sequence[Query]) -> list[SearchAnswer | BraidIndexError]:
        """See Client.search_many."""
        batches = [await self._batch(part) for part in calls.batches(queries)]
        return self._in_order(batches)

    async def get(
        self,
        id: str,
        *,
        generation: str | None = None,
        min_offsets: Mapping[int, int] | None = None,
        timeout_ms: int | None = None,
    ) -> RecordAnswer:
        """See Client.get."""
        return await self._call(lambda: calls.get(id, generation, min_offsets, timeout_ms))

    async def delete(
        self,
        id: str,
        *,
        min_offsets: Mapping[int, int] | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteAnswer:
        """See Client.delete."""
        return await self._call(lambda: calls.delete(id, min_offsets, timeout_ms))

    async def embed(self, texts: Sequence[str], *, model: str = "champion") -> EmbeddingsAnswer:
        """See Client.embed."""
        return await self._call(lambda: calls.embed(texts, model, pack=self._pack))

    async def status(self) -> StatusAnswer:
        """See Client.status."""
        return await self._call(lambda: calls.STATUS)

    async def generations(self) -> GenerationsAnswer:
        """See Client.generations."""
        return await self._call(lambda: calls.GENERATIONS)

    async def ready(self) -> bool:
        """See Client.ready."""
        try:
            return (await self._client.request(**_request(calls.READY))).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _batch(self, queries: Sequence[Query]) -> BatchAnswer:
        return await self._call(lambda: calls.search_batch(queries, pack=self._pack))

    async def _call(self, make: Callable[[], Call[A]]) -> A:
        """See Client._call."""
        call, tried = make(), 0
        while True:
            try:
                answer = await self._client.request(**_request(call))
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            tried += 1
            wait_s = self._retry.wait_s(answer, tried=tried)
            if wait_s is None:
                return calls.read(call, answer.status_code, answer.content)
            await self._sleep(wait_s)
