"""Refuses request bodies over a limit before they are in memory, and unpacks gzip within it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GZIP = 16 + zlib.MAX_WBITS
PIECE = 64 * 1024  # unpacked at a time, off the event loop


class BodyLimit:
    """ASGI middleware: 413 for a body over `limit` bytes, said in advance or found on the way.

    Args:
        refused: told "size" for a body whose size was said, to count it.
    """

    def __init__(self, app: ASGIApp, limit: int, refused: Callable[[str], None]) -> None:
        self._app = app
        self._limit = limit
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            self._refused("size")
            await drain(receive, self._limit)
            body = too_large(f"is {announced.decode(errors='replace')} bytes", self._limit)
            headers = {"connection": "close"}
            await JSONResponse(body, status_code=413, headers=headers)(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # FastAPI hands an HTTPException on, where it would call any other a bad body.
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, limited, send)


class Gunzip:
    """ASGI middleware: a body with `content-encoding: gzip` is unpacked as it comes.

    413 as soon as more than `limit` bytes have come out, 400 for a stream that is damaged, cut
    short or followed by more, 415 for another encoding.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encodings = [] if scope["type"] != "http" else _encodings(scope)
        if not encodings:
            await self._app(scope, receive, send)
            return
        if encodings not in ([b"gzip"], [b"x-gzip"]):
            await drain(receive, self._limit)
            said = b", ".join(encodings)[:60].decode("latin-1")
            error = {"field": "content-encoding", "reason": f"must be gzip or none, got {said!r}"}
            answer = JSONResponse({"error": error}, 415, headers={"accept-encoding": "gzip"})
            await answer(scope, receive, send)
            return
        unpacker = _Unpacker(self._limit)

        async def unpacked() -> Message:
            message = await receive()
            if message["type"] != "http.request":
                return message
            packed, more = message.get("body", b""), message.get("more_body", False)
            return {
                "type": "http.request",
                "body": await asyncio.to_thread(unpacker.feed, packed, last=not more),
                "more_body": more,
            }

        described = {b"content-encoding", b"content-length"}  # neither is true any more
        headers = [pair for pair in scope["headers"] if pair[0] not in described]
        await self._app({**scope, "headers": headers}, unpacked, send)


class _Unpacker:
    """One gzip stream, of which no more than `limit` bytes are ever taken."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stream = zlib.decompressobj(GZIP)
        self._seen = 0

    def feed(self, packed: bytes, *, last: bool) -> bytes:
        """What comes out next. Raises BodyTooLarge and BrokenBody."""
        pieces = []
        try:
            while packed:
                if self._stream.eof:
                    raise BrokenBody("goes on after the end of its gzip stream")
                pieces.append(self._stream.decompress(packed, PIECE))
                self._seen += len(pieces[-1])
                if self._seen > self._limit:
                    raise BodyTooLarge(self._limit)
                packed = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error as error:
            raise BrokenBody(f"is no gzip stream: {error}") from None
        if last and not self._stream.eof:
            raise BrokenBody("ends before its gzip stream does")
        return b"".join(pieces)


class BodyTooLarge(HTTPException):
    """More came than the limit allows."""

    def __init__(self, limit: int) -> None:
        super().__init__(413)
        self.body = too_large("is larger", limit)


class BrokenBody(HTTPException):
    """The body is not what its headers say."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, detail=reason)


def too_large(what: str, limit: int) -> dict[str, dict[str, str]]:
    return {"error": {"field": "body", "reason": f"{what}, the limit is {limit} bytes"}}


async def drain(receive: Receive, limit: int) -> None:
    """Read and drop as much as the limit: a client that is cut off may miss the answer."""
    dropped = 0
    while dropped <= limit:
        message = await receive()
        dropped += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _encodings(scope: Scope) -> list[bytes]:
    values = [value for name, value in scope["headers"] if name == b"content-encoding"]
    named = (part.strip().lower() for value in values for part in value.split(b","))
    return [name for name in named if name not in (b"", b"identity")]
