"""Checks of the `host` and `origin` headers, against DNS rebinding and foreign pages.

With DNS rebinding, an attacker's DNS name resolves to 127.0.0.1 and a browser sends requests of the
attacker's page here; the `host` header then contains the attacker's name. A page of another origin
can also send a deletion or an upload without rebinding; the browser then adds `origin`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SHOWN = 100


class Hosts:
    """The host names that the node accepts.

    Args:
        bind: the address that the node listens on. For an unspecified address (0.0.0.0, ::) any
            literal IP address is accepted, since it involves no DNS.
        more: further names, without ports; `*` accepts all.

    Raises:
        ValueError: an entry is not a bare name or address.
    """

    def __init__(self, bind: str, more: Iterable[str] = ()) -> None:
        names = [name.lower() for name in more]
        for name in names:
            if name != ANY and _name(name if ":" not in name else f"[{name.strip('[]')}]") is None:
                raise ValueError(f"must be a name without scheme and port, got {name[:SHOWN]!r}")
        self._any = ANY in names
        self._more = frozenset(name.strip("[]") for name in names)
        self._names = LOOPBACK | {bind.lower().strip("[]")} | self._more
        self._addresses = _unspecified(bind)

    def accepts(self, host: str) -> bool:
        """Whether this value of the `host` header is accepted."""
        name = _name(host)
        if name is None:
            return False
        return self._any or name in self._names or (self._addresses and _is_address(name))

    def accepts_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this `origin` may send a request to this `host`."""
        try:
            parts = urlsplit(origin.lower())
            name = parts.hostname
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not name:
            return False  # includes "null": a sandboxed frame, or a file
        return self._any or parts.netloc == host.lower() or name in self._more


class TrustedHosts:
    """ASGI middleware: 421 for an unknown host, 403 for a page of another origin.

    Args:
        refused: called with the reason, to count it.
    """

    def __init__(self, app: ASGIApp, *, hosts: Hosts, refused: Callable[[str], None]) -> None:
        self._app, self._hosts, self._refused = app, hosts, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if not self._hosts.accepts(host):
            reason = f"{host[:SHOWN]!r} is not a name of this node; http.hosts adds names"
            answer = self._refusal(421, "host", reason)
        elif origin is not None and not self._hosts.accepts_origin(origin.decode("latin-1"), host):
            shown = origin.decode("latin-1")[:SHOWN]
            reason = f"{shown!r} is not this node's own page; http.hosts adds names"
            answer = self._refusal(403, "origin", reason)
        else:
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)

    def _refusal(self, status: int, field: str, reason: str) -> JSONResponse:
        self._refused("host")
        return JSONResponse({"error": {"field": field, "reason": reason}}, status)


def _name(host: str) -> str | None:
    """The name in `name`, `name:port` or `[address]:port`, in lower case; None: it is malformed."""
    if not host or any(character in host for character in "/@?#\\ "):
        return None
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises ValueError for what is no port
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unspecified(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_unspecified
    except ValueError:
        return bind == ""
