"""Fetches what an http(s) link names, within a bound on the seconds of the whole exchange."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpcore
import httpx

from .deadlines import DeadlineBackend

TRIES = 3
RETRY_S = 0.2
HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": "braid",
}

CheckSize = Callable[[int], None]
Refusal = Callable[[str], Exception]
PASSING = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.RemoteProtocolError)


class HttpLinks:
    """A pool of connections. Thread-safe.

    Args:
        timeout_s: of one link, with all tries.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._backend = DeadlineBackend()
        self._pool = httpcore.ConnectionPool(
            network_backend=self._backend,
            max_connections=None,  # one for each thread
            max_keepalive_connections=16,
            keepalive_expiry=30.0,
        )

    def get(self, url: httpx.URL, check_size: CheckSize, refusal: Refusal) -> bytes:
        """The content behind `url`.

        Args:
            check_size: called with the bytes received so far; raises where they are too many.
            refusal: makes the error of a status other than 2xx, of an encoding, or of a link that
                is not complete in time.
        """
        with self._backend.deadline(self._timeout_s) as deadline:
            for attempt in range(1, TRIES + 1):
                try:
                    status, content = self._try(url, check_size, refusal)
                    if status < 500:
                        return content
                    problem = f"answers {status}"
                except PASSING as error:
                    problem = f"{type(error).__name__} {error}".strip()
                if deadline.left() <= RETRY_S * attempt:
                    raise refusal(f"{problem}, not whole within {self._timeout_s:g} s")
                if attempt < TRIES:
                    time.sleep(RETRY_S * attempt)
        raise refusal(f"{problem} (try {TRIES} of {TRIES})")

    def close(self) -> None:
        self._pool.close()

    def _try(self, url: httpx.URL, check_size: CheckSize, refusal: Refusal) -> tuple[int, bytes]:
        """Status and body; the body of a 5xx is not read."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        with self._pool.stream("GET", target, headers=HEADERS) as answer:
            if answer.status >= 500:
                return answer.status, b""
            if not 200 <= answer.status < 300:
                where = "; redirects are not followed" if 300 <= answer.status < 400 else ""
                raise refusal(f"answers {answer.status}{where}")
            headers = {name.lower(): value for name, value in answer.headers}
            encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
            if encoding.strip().lower() not in ("", "identity"):
                raise refusal(f"is encoded as {encoding!r}, which was not asked for")
            body = bytearray()
            for chunk in answer.iter_stream():
                body += chunk
                check_size(len(body))
            return answer.status, bytes(body)
