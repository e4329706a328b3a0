"""A TCP proxy in front of one Kafka broker, which breaks connections and requests on purpose.

    with KafkaProxy(bootstrap) as proxy:
        settings = Settings(kafka={"bootstrap": proxy.address})
        proxy.reset()                    # RST on every connection; new ones work
        proxy.blackhole()                # nothing passes and nothing closes, until `forward`
        proxy.half_open()                # the broker's side is gone, the client's stays open
        proxy.refuse()                   # as if no broker listened, until `forward`
        proxy.delay(0.5)                 # each request and response 0.5 s late, until `forward`

The proxy reads Kafka's framing: int32 length, then for a request int16 api key, int16 version,
int32 correlation id, for a response int32 correlation id. In the answers that name brokers
(Metadata, FindCoordinator, DescribeCluster) the broker's port becomes the proxy's, so that a
client which starts at the proxy stays there. `on_request` sees each request before it is forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

PRODUCE, METADATA, FIND_COORDINATOR, INIT_PRODUCER_ID = 0, 3, 10, 22
ADD_PARTITIONS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT, DESCRIBE_CLUSTER = 24, 26, 28, 60
NAMES_BROKERS = (METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER)
HOST = "127.0.0.1"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client; `frame` is what follows the length."""

    frame: bytes

    @property
    def api_key(self) -> int:
        return int(struct.unpack_from(">h", self.frame, 0)[0])

    @property
    def correlation_id(self) -> int:
        return int(struct.unpack_from(">i", self.frame, 4)[0])


class Connection:
    """One client's connection and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.client, self.broker = client, broker
        self.asked: dict[int, int] = {}  # correlation id -> api key
        self.dead = False  # the broker's side is gone and the client does not know

    def reset(self) -> None:
        """RST to both sides."""
        for writer in (self.client, self.broker):
            _reset(writer)


OnRequest = Callable[[Connection, Request], Awaitable[bool]]
"""Sees a request first; whether it is forwarded. May wait, reset the connection, or `inject`."""


class KafkaProxy:
    """See the module. The proxy runs on a thread of its own; its methods may be called from any.

    Args:
        upstream: the broker's HOST:PORT, on 127.0.0.1.
        port: where to listen; 0 takes a free port.
        on_request: see OnRequest; it runs in the proxy's event loop.
    """

    def __init__(self, upstream: str, *, port: int = 0, on_request: OnRequest | None = None):
        host, _, upstream_port = upstream.rpartition(":")
        self._upstream = host, int(upstream_port)
        self.on_request = on_request
        self._loop = asyncio.new_event_loop()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._refusing = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._gate = self._call(_open_event())
        self._server = self._call(asyncio.start_server(self._accept, HOST, port))
        self.port = int(self._server.sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def forward(self) -> None:
        """Let all pass again; what a blackhole held back arrives late, as TCP would deliver it."""
        self._call(self._set(delay_s=0.0, refusing=False, open_=True))

    def delay(self, seconds: float) -> None:
        """Each request and each response is late by so much."""
        self._call(self._set(delay_s=seconds))

    def blackhole(self) -> None:
        """Nothing passes on any connection, new ones included, and none is closed."""
        self._call(self._set(open_=False))

    def reset(self) -> None:
        """RST on every connection; new ones are served."""
        self._call(self._reset_all())

    def refuse(self) -> None:
        """RST on every connection and on each new one, as where no broker listens."""
        self._call(self._set(refusing=True))
        self._call(self._reset_all())

    def half_open(self) -> None:
        """Close the broker's side of every connection without a word to the client."""
        self._call(self._half_open())

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> KafkaProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def inject(self, frame: bytes) -> bytes:
        """Send a request's frame to the broker on a connection of its own; the response's frame."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(_framed(frame))
            await writer.drain()
            return await _read_frame(reader)
        finally:
            writer.close()

    # Inside the event loop.

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _set(
        self,
        *,
        delay_s: float | None = None,
        refusing: bool | None = None,
        open_: bool | None = None,
    ) -> None:
        if delay_s is not None:
            self._delay_s = delay_s
        if refusing is not None:
            self._refusing = refusing
        if open_ is not None:
            (self._gate.set if open_ else self._gate.clear)()

    async def _reset_all(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _half_open(self) -> None:
        for connection in list(self._connections):
            connection.dead = True
            connection.broker.close()

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.reset()
        self._gate.set()  # or what a blackhole holds back is waited for
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(client)
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._gate.wait()
            answers, broker = await asyncio.open_connection(*self._upstream)
        except (OSError, asyncio.CancelledError):  # no broker listens, or `close`
            _reset(client)
            self._tasks.discard(task)
            return
        connection = Connection(client, broker)
        self._connections.add(connection)
        back = asyncio.ensure_future(self._answers(connection, answers))
        try:
            with contextlib.suppress(asyncio.CancelledError):  # `close`
                await self._requests(connection, reader)
        finally:
            if connection.dead:  # the client has gone as well
                connection.client.close()
            connection.broker.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await back
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _requests(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = Request(await _read_frame(reader))
                await self._pass()
                if connection.dead:
                    continue
                connection.asked[request.correlation_id] = request.api_key
                if self.on_request is None or await self.on_request(connection, request):
                    connection.broker.write(_framed(request.frame))
                    await connection.broker.drain()

    async def _answers(self, connection: Connection, answers: asyncio.StreamReader) -> None:
        ours, theirs = struct.pack(">i", self.port), struct.pack(">i", self._upstream[1])
        host = HOST.encode()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _read_frame(answers)
                await self._pass()
                (correlation_id,) = struct.unpack_from(">i", frame, 0)
                if connection.asked.pop(correlation_id, None) in NAMES_BROKERS:
                    # In every version the port follows the host as an int32.
                    frame = frame.replace(host + theirs, host + ours)
                connection.client.write(_framed(frame))
                await connection.client.drain()
        if not connection.dead:
            connection.client.close()

    async def _pass(self) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await self._gate.wait()


async def _open_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


def _framed(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # closed by now
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
