"""Limits on a request body's size and time; decompresses gzip within them.

A request passes `BodyLimit` (size, time) and then `Gunzip` (decompression); both refuse a body
before it is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body_budget import BodyBudget, Reservation
from .connections import ConnectionLimits

GZIP = 16 + zlib.MAX_WBITS
PIECE = 256 * 1024  # bytes decompressed at a time, off the event loop


class BodyLimit:
    """ASGI middleware: 413 for a body that is too large, 408 for a body that is too slow.

    Args:
        limit: bytes of an upload (`multipart/form-data`).
        json_limit: bytes of any other body, which is parsed into objects many times its size.
        limits: the time limits of a body.
        refused: called with the reason, to count it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: int,
        json_limit: int,
        limits: ConnectionLimits,
        refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._limit, self._json_limit = limit, json_limit
        self._limits, self._refused, self._clock = limits, refused, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        upload = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        limit = self._limit if upload else self._json_limit
        scope.setdefault("state", {})["body_limit"] = limit
        timed = self._timed(receive)
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            self._refused("size")
            await drain(timed, self._limit)
            body = too_large(f"is {announced[:40].decode(errors='replace')} bytes", limit)
            answer = JSONResponse(body, status_code=413, headers={"connection": "close"})
            await answer(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await timed()
            seen += len(message.get("body", b""))
            if seen > limit:
                # An HTTPException: FastAPI turns any other exception into a 400.
                raise BodyTooLarge(limit)
            return message

        await self._app(scope, limited, send)

    def _timed(self, receive: Receive) -> Receive:
        """`receive` with the body's deadline; raises BodyTooSlow."""
        began, seen, more = self._clock(), 0, True

        async def timed() -> Message:
            nonlocal seen, more
            if not more:
                return await receive()  # waits for the disconnect
            left_s = began + self._limits.body_deadline_s(seen) - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    message = await receive()
            except TimeoutError:
                self._refused("slow")
                raise BodyTooSlow(seen, self._clock() - began, self._limits) from None
            seen += len(message.get("body", b""))
            more = bool(message.get("more_body"))
            return message

        return timed


class Gunzip:
    """ASGI middleware: decompresses a body with `content-encoding: gzip` as it arrives.

    413 when the output exceeds BodyLimit's limit, 503 if the budget is full, 400 for a stream that
    is damaged, truncated or followed by other data, 415 for another encoding.

    Args:
        budget: the budget of all request bodies.
    """

    def __init__(self, app: ASGIApp, *, budget: BodyBudget) -> None:
        self._app, self._budget = app, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = Reservation(self._budget)
        limit = int(scope["state"]["body_limit"])
        encodings = _encodings(scope)
        try:
            if not encodings:
                await self._app(scope, _counted(receive, held), send)
            elif encodings in ([b"gzip"], [b"x-gzip"]):
                described = {b"content-encoding", b"content-length"}  # no longer true
                headers = [pair for pair in scope["headers"] if pair[0] not in described]
                unpacked = _Unpacker(receive, limit)
                await self._app({**scope, "headers": headers}, _counted(unpacked, held), send)
            else:
                await drain(receive, limit)
                shown = b", ".join(encodings)[:60].decode("latin-1")
                reason = f"must be gzip or none, got {shown!r}"
                body = {"error": {"field": "content-encoding", "reason": reason}}
                answer = JSONResponse(body, 415, headers={"accept-encoding": "gzip"})
                await answer(scope, receive, send)
        finally:
            await held.release()


def _counted(receive: Receive, held: Reservation) -> Receive:
    async def counted() -> Message:
        message = await receive()
        await held.grow(len(message.get("body", b"")))
        return message

    return counted


class _Unpacker:
    """One gzip stream as ASGI messages of at most PIECE bytes, in all at most `limit`."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._stream = zlib.decompressobj(GZIP)
        self._packed, self._more = b"", True
        self._seen = 0

    async def __call__(self) -> Message:
        """The next message. Raises BodyTooLarge and BrokenBody."""
        while not self._packed:
            if not self._more:
                return await self._receive()  # waits for the disconnect
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed, self._more = message.get("body", b""), message.get("more_body", False)
            if not self._packed and not self._more:
                break
        body = await asyncio.to_thread(self._next)
        return {"type": "http.request", "body": body, "more_body": bool(self._packed) or self._more}

    def _next(self) -> bytes:
        piece = b""
        if self._packed:
            if self._stream.eof:
                raise BrokenBody("goes on after the end of its gzip stream")
            try:
                piece = self._stream.decompress(self._packed, PIECE)
            except zlib.error as error:
                raise BrokenBody(f"is no gzip stream: {error}") from None
            self._packed = self._stream.unconsumed_tail or self._stream.unused_data
        self._seen += len(piece)
        if self._seen > self._limit:
            raise BodyTooLarge(self._limit)
        if not self._packed and not self._more and not self._stream.eof:
            raise BrokenBody("ends before its gzip stream does")
        return piece


class BodyTooLarge(HTTPException):
    """The body exceeds its limit (413)."""

    def __init__(self, limit: int) -> None:
        super().__init__(413)
        self.body = too_large("is larger", limit)


class BodyTooSlow(HTTPException):
    """The body missed its deadline (408)."""

    def __init__(self, seen: int, after_s: float, limits: ConnectionLimits) -> None:
        reason = (
            f"{seen} bytes of the body came within {after_s:.1f} s; it must come at "
            f"{limits.bytes_per_s} bytes/s and within {limits.body_s:g} s"
        )
        super().__init__(408, detail=reason, headers={"connection": "close"})


class BrokenBody(HTTPException):
    """The body does not match its headers (400)."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, detail=reason)


def too_large(what: str, limit: int) -> dict[str, dict[str, str]]:
    return {"error": {"field": "body", "reason": f"{what}, the limit is {limit} bytes"}}


async def drain(receive: Receive, limit: int) -> None:
    """Read and drop up to `limit` bytes: a client that is cut off may miss the answer."""
    dropped = 0
    with contextlib.suppress(HTTPException):
        while dropped <= limit:
            message = await receive()
            dropped += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return


def _encodings(scope: Scope) -> list[bytes]:
    values = [value for name, value in scope["headers"] if name == b"content-encoding"]
    named = (part.strip().lower() for value in values for part in value.split(b","))
    return [name for name in named if name not in (b"", b"identity")]
