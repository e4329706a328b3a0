"""Limits on connections: how many, and how long headers, bodies and answers take.

uvicorn has one timeout, for connections that are idle between requests. This protocol adds limits
for a client that sends nothing, incomplete headers or tiny chunks, or does not read its answer.
`body_limit` limits the time of a body, and can answer 408.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h11
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

KIB = 1024
HEADER_BYTES = 16 * KIB  # the request line and all headers
CHUNKS = 4000  # chunks of a body of any size; with more, their mean must be CHUNK_BYTES
CHUNK_BYTES = 128  # h11 parses a chunk in about 20 µs, in the event loop
OVER_LIMIT = "over_limit"  # in a request's state: its connection is above the limit
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
LATE = b'{"error":{"field":"headers","reason":"did not come whole within %g s"}}'
FULL = b'{"error":{"field":"request","reason":"too many connections, the limit is %d"}}'


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        connections: open connections; beyond it only probes are answered, and beyond twice as
            many a connection is closed.
        header_s: time from the first byte of a request, or the start of the connection, to the last
            byte of its headers.
        body_s: time for a whole body.
        slow_s: how long a body, or the client's reading of an answer, may be slower than
            `bytes_per_s`.
        bytes_per_s: lowest rate of a body, and of the client's reading of an answer.
    """

    connections: int = 1024
    header_s: float = 10.0
    body_s: float = 300.0
    slow_s: float = 10.0
    bytes_per_s: int = 16 * KIB

    def __post_init__(self) -> None:
        for name in ("connections", "header_s", "body_s", "slow_s", "bytes_per_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")

    def body_deadline_s(self, seen: int) -> float:
        """Deadline of a body, in seconds after its first byte, when `seen` bytes have arrived."""
        return min(self.body_s, self.slow_s + seen / self.bytes_per_s)


def protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's option `http`."""
    return cast(type[asyncio.Protocol], partial(BoundedProtocol, limits=limits))


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with a time limit on each wait for the client."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Connection(h11.SERVER, HEADER_BYTES)
        self._limits = limits
        self._phase: str | None = None
        self._receiving: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 2 * self._limits.connections:
            self._refuse(503, FULL % self._limits.connections, ("retry-after", "1"))
            return
        if len(self.connections) > self._limits.connections:
            self.app_state = {**self.app_state, OVER_LIMIT: True}
        self._watch_receiving()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_receiving()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_receiving()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._receiving, self._writing):
            if timer is not None:
                timer.cancel()
        self._receiving = self._writing = None
        self._unset_keepalive_if_required()  # which uvicorn does not do after an error
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _watch_receiving(self) -> None:
        """Start the timer of headers, or of a body that is dropped, when either begins."""
        phase, seconds, late = None, 0.0, self.transport.close
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            phase, seconds, late = "headers", self._limits.header_s, self._headers_late
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            phase, seconds = "dropped", self._limits.body_s  # the answer is sent already
        if phase == self._phase:
            return
        self._phase = phase
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        if phase is not None:
            self._receiving = self.loop.call_later(seconds, late)

    def _headers_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self._refuse(408, LATE % self._limits.header_s)
        else:
            self.transport.close()

    def _refuse(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        sent = [("content-type", "application/json"), ("connection", "close"), *headers]
        sent.append(("content-length", str(len(body))))
        for event in (
            h11.Response(status_code=status, headers=sent),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_writing(self) -> None:
        """Check regularly that the client reads its answer; else drop the connection."""
        self._unsent = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self._limits.slow_s, self._check_writing)

    def _check_writing(self) -> None:
        read = self._unsent - self.transport.get_write_buffer_size()
        if read < self._limits.slow_s * self._limits.bytes_per_s:
            self.transport.abort()
        else:
            self._watch_writing()


class ConnectionLimitMiddleware:
    """ASGI middleware: 503 for a request on a connection above the limit, except for probes.

    Args:
        refused: called with the reason, to count it.
    """

    def __init__(
        self, app: ASGIApp, *, limits: ConnectionLimits, refused: Callable[[str], None]
    ) -> None:
        self._app, self._refused = app, refused
        self._body = FULL % limits.connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if OVER_LIMIT not in scope.get("state", {}) or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        self._refused("busy")
        headers = {"retry-after": "1", "connection": "close"}
        answer = Response(self._body, 503, headers=headers, media_type="application/json")
        await answer(scope, receive, send)


class _Connection(h11.Connection):
    """Refuses a body of many tiny chunks."""

    _chunks = 0
    _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > CHUNKS + self._bytes // CHUNK_BYTES:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        elif isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        return event
