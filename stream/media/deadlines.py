"""A network backend for httpcore with one deadline for the whole exchange.

HTTP clients bound each read, so that a server that sends a byte a second blocks a thread without
limit. Here every connect, handshake, read and write has the time left of the exchange.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore


class Deadline:
    """A time on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, 0 at least."""
        return max(0.0, self._end - time.monotonic())


class DeadlineBackend(httpcore.NetworkBackend):
    """Sockets whose operations end by the deadline of the thread that uses them.

    Name resolution is not bounded here, but by the system's resolver (resolv.conf).
    """

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()
        self._local = threading.local()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Deadline]:
        """Limit this thread's exchanges within the block to so many seconds in total."""
        self._local.deadline = Deadline(seconds)
        try:
            yield self._local.deadline
        finally:
            del self._local.deadline

    def left(self, error: type[Exception]) -> float:
        """Seconds left to this thread, above 0. Raises `error` if there are none."""
        deadline: Deadline = self._local.deadline
        if (left := deadline.left()) <= 0:
            raise error("the deadline has passed")
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(error.strerror or "no such host") from None
        problem: Exception = httpcore.ConnectError("no address")
        for *_, address in addresses:  # each has the time that the others left
            left = self.left(httpcore.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(
                    str(address[0]), port, left, local_address, socket_options
                )
                return _Stream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, backend: DeadlineBackend) -> None:
        self._stream, self._backend = stream, backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._backend.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._backend.left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._backend.left(httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._backend)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
