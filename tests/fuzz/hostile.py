"""A hostile HTTP request as bytes on a socket, what may come of it, and how it is sent.

HTTP clients refuse to send most of what is in `tests.fuzz.requests`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

REFUSED = range(400, 500)
ANSWERED = range(200, 500)
BUSY = 503  # the documented answer of a service that has as much to do as it takes on
LATE_S = 60.0  # for an outcome
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class HostileRequest:
    """One request.

    Attributes:
        name: which kind it is, and its number.
        headers: beside host, content-length and connection, which are added unless named here.
        body: chunks, sent one after the other.
        raw: the request as it is sent, instead of method, path, headers and body.
        pause_s: between two chunks.
        stays: after the last byte the socket stays open and silent: the server has to end it.
        expect: the statuses that are right; 503 always is, and for `may_close` no answer at all.
    """

    name: str
    method: str = "POST"
    path: str = "/v1/search"
    headers: tuple[tuple[str, str], ...] = ()
    body: tuple[bytes, ...] = ()
    raw: bytes | None = None
    pause_s: float = 0.0
    stays: bool = False
    may_close: bool = False
    expect: range = ANSWERED

    def allows(self, outcome: Outcome) -> bool:
        """Whether the service did right."""
        if outcome.status is None:
            return outcome.closed and self.may_close
        return outcome.status in self.expect or outcome.status == BUSY

    def wire(self, host: str) -> Iterator[bytes]:
        """What is sent, piece by piece."""
        if self.raw is not None:
            yield self.raw
            return
        named = {name.lower() for name, _ in self.headers}
        added = [("Host", host), ("Content-Length", str(sum(map(len, self.body))))]
        added.append(("Connection", "close"))
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in added if name.lower() not in named]
        lines += [f"{name}: {value}" for name, value in self.headers]
        yield ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        yield from self.body


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came back: a status, or None and whether the server closed the connection."""

    status: int | None
    closed: bool
    seconds: float
    answer: bytes = b""


def send(request: HostileRequest, host: str, port: int, *, late_s: float = LATE_S) -> Outcome:
    """Send it and wait for the answer or the end of the connection, `late_s` at most."""
    began = time.monotonic()
    answer, closed = b"", False
    with socket.create_connection((host, port), timeout=late_s) as connection:
        try:
            for number, piece in enumerate(request.wire(f"{host}:{port}")):
                if number and request.pause_s:
                    time.sleep(request.pause_s)
                connection.sendall(piece)
        except OSError:
            closed = True  # the server may have answered all the same
        try:
            while time.monotonic() - began < late_s:
                connection.settimeout(max(0.01, late_s - (time.monotonic() - began)))
                received = connection.recv(65_536)
                answer = (answer + received)[: 2 * MIB]
                if not received:
                    closed = True
                    break
                if b"\r\n\r\n" in answer and not request.stays:
                    break
        except TimeoutError:
            pass
        except OSError:
            closed = True
    status = None
    if answer.startswith(b"HTTP/1.1 ") and answer[9:12].isdigit():
        status = int(answer[9:12])
    return Outcome(
        status=status, closed=closed, seconds=time.monotonic() - began, answer=answer[:2000]
    )


NOTHING = HostileRequest(name="")
