"""Tokens for SASL's OAUTHBEARER, from an OpenID Connect provider or a function of the user's.

librdkafka takes a token by its callback, aiokafka by a provider; both get it from `tokens_of`,
which fetches one for all clients of a process and keeps it until shortly before it expires.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aiokafka.abc import AbstractTokenProvider

from ..errors import AccessError, ConfigError, Unreachable
from ..settings import Settings
from ..settings.group import secret
from ..settings.servers import Kafka

FETCH_S = 10.0
KEPT_SHARE = 0.8  # of its lifetime; librdkafka asks for the next one then, too


class Token(NamedTuple):
    """A token, and when it expires in seconds since 1970."""

    text: str
    expires: float


class Tokens:
    """Keeps the token of a source. Safe for threads.

    Args:
        fetch: returns a new one.
        wall: seconds since 1970.
    """

    def __init__(
        self, fetch: Callable[[], tuple[str, float]], *, wall: Callable[[], float] = time.time
    ) -> None:
        self._fetch, self._wall = fetch, wall
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._until = 0.0

    def __call__(self) -> Token:
        """A token that is still valid for a while.

        Raises:
            AccessError: the provider does not give one.
            Unreachable: it does not answer.
        """
        with self._lock:
            if self._token is None or self._wall() >= self._until:
                self._token = Token(*self._fetch())
                now = self._wall()
                self._until = now + KEPT_SHARE * (self._token.expires - now)
            return self._token


class Provider(AbstractTokenProvider):
    """Gives aiokafka the tokens."""

    def __init__(self, tokens: Tokens, extensions: dict[str, str]) -> None:
        self._tokens, self._extensions = tokens, extensions

    async def token(self) -> str:
        return (await asyncio.to_thread(self._tokens)).text

    def extensions(self) -> dict[str, str]:
        return self._extensions


_known: dict[str, Tokens] = {}  # by the settings, which hold no text of a secret


def tokens_of(settings: Settings) -> Tokens:
    """The tokens of the settings, the same for all clients of the process.

    Raises:
        ConfigError: kafka.oauth_callback names no function.
    """
    kafka = settings.kafka
    name = repr((kafka.oauth_callback, kafka.oauth_token_url, kafka.oauth_client_id, kafka.ssl_ca))
    if name not in _known:
        fetch = _callback(kafka.oauth_callback) if kafka.oauth_callback else _Endpoint(kafka)
        _known[name] = Tokens(fetch)
    return _known[name]


def _callback(name: str) -> Callable[[], tuple[str, float]]:
    module, _, function = name.partition(":")
    try:
        found: Callable[[], tuple[str, float]] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"kafka.oauth_callback: {name}: {error}") from None
    return found


class _Endpoint:
    """The grant client_credentials (RFC 6749, 4.4) at an OpenID Connect provider."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def __call__(self) -> tuple[str, float]:
        import httpx

        kafka, url = self._kafka, str(self._kafka.oauth_token_url)
        password = secret(
            kafka.oauth_client_secret, kafka.oauth_client_secret_file, "kafka.oauth_client_secret"
        )
        form = {"grant_type": "client_credentials"}
        if kafka.oauth_scope is not None:
            form["scope"] = kafka.oauth_scope
        try:
            answer = httpx.post(
                url,
                data=form,
                auth=(str(kafka.oauth_client_id), password or ""),
                timeout=FETCH_S,
                verify=_authorities(kafka.ssl_ca),
            )
            answer.raise_for_status()
            fields = answer.json()
            return str(fields["access_token"]), time.time() + float(fields["expires_in"])
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            kind = Unreachable if status >= 500 else AccessError
            raise kind(f"no token from {url}: status {status}") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"no token from {url}: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise AccessError(f"no token from {url}: the answer has no access_token") from None


def _authorities(ca: Path | None) -> ssl.SSLContext:
    """The system's authorities, and those of the brokers, which may sign the provider, too."""
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return context
