"""The connection of the admin client: what refuses it is named at once, what passes is retried."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from ..errors import AccessError, Unreachable
from ..settings import Settings
from .client import HOW, PASSING, REFUSED, UNREACHABLE, create, mapped
from .security import ssl_context

R = TypeVar("R")
log = logging.getLogger(__name__)

RETRY_S = 0.1
CONNECT_S = 3.0  # to all addresses together
CONNECT_LEAST_S = 0.5
TLS_HOW = "(kafka.security_protocol, kafka.ssl_*)"
FIRST_LOOK_S = 0.25  # then whether it refuses this client is looked at; doubled each time
SAY_S = 4.0  # after so long a broker that connects and does not answer is named in the log
SAY_EVERY_S = 60.0
_say_at: dict[str, float] = {}  # address -> when it may be named in the log again


def check_listens(settings: Settings) -> None:
    """Connect to the first broker of `kafka.bootstrap` that accepts it, by TLS where it is set.

    Raises:
        Unreachable: none accepts a connection.
        AccessError: TLS fails with those that do.
    """
    bootstrap, context = settings.kafka.bootstrap, ssl_context(settings)
    reason, refusal, deadline = "no address", "", time.monotonic() + CONNECT_S
    for address in map(str.strip, bootstrap.split(",")):
        host, _, port = address.rpartition(":")
        left_s = max(CONNECT_LEAST_S, deadline - time.monotonic())
        try:
            host = host.strip("[]")
            with socket.create_connection((host, int(port)), timeout=left_s) as connection:
                if context is not None:
                    context.wrap_socket(connection, server_hostname=host).close()
                return
        except ssl.SSLEOFError:
            reason = f"{address}: it closes the connection, as one that does not speak TLS"
        except ssl.SSLError as error:
            refusal = f"{address}: {getattr(error, 'verify_message', None) or error.reason}"
        except ValueError:
            reason = f"{address!r} is not host:port"
        except OSError as error:
            reason = f"{address}: {error.strerror or error}"
    if refusal:
        raise AccessError(f"no TLS with {bootstrap} {TLS_HOW}: {refusal}", reason=refusal)
    raise Unreachable(f"no broker at {bootstrap} {HOW}: {reason}", reason=reason)


class Connection:
    """An admin client, whose calls have a bound.

    Args:
        timeout_s: bounds each call; None: `kafka.broker_timeout_s`.
    """

    def __init__(self, settings: Settings, *, timeout_s: float | None = None) -> None:
        self._timeout = settings.kafka.broker_timeout_s if timeout_s is None else timeout_s
        self._bootstrap = settings.kafka.bootstrap
        self._settings = settings
        self._refusal: KafkaError | None = None
        # The log of librdkafka would say what the error says.
        own = {"error_cb": self._note, "log_level": 2}
        self._client = create(AdminClient, settings, own)
        self._connected = False

    def _metadata(self) -> Any:
        """The metadata of all topics; a refusal is looked for meanwhile."""
        began, look_s, logged = time.monotonic(), FIRST_LOOK_S, False
        while True:
            passed_s = time.monotonic() - began
            left_s = (self._timeout if logged else min(SAY_S, self._timeout)) - passed_s
            try:
                return self._client.list_topics(timeout=max(0.01, min(look_s, left_s)))
            except KafkaException as error:
                self._raise_refusal("connecting")
                passed_s = time.monotonic() - began
                if error.args[0].code() not in UNREACHABLE:
                    raise
            protocol = self._settings.kafka.security_protocol
            reason = f"it does not answer (kafka.security_protocol is {protocol})"
            if passed_s >= self._timeout:
                raise Unreachable(f"no broker at {self._bootstrap} {HOW}: {reason}", reason=reason)
            if not logged and passed_s > SAY_S - RETRY_S:
                logged = True
                self._say(reason)
            look_s = min(2 * look_s, SAY_S)
            time.sleep(min(RETRY_S, self._timeout - passed_s))

    def _say(self, reason: str) -> None:
        if time.monotonic() >= _say_at.get(self._bootstrap, 0.0):
            _say_at[self._bootstrap] = time.monotonic() + SAY_EVERY_S
            log.warning("waiting for Kafka at %s %s: %s", self._bootstrap, HOW, reason)

    def _note(self, error: KafkaError) -> None:
        if error.code() in REFUSED:
            self._refusal = error

    def _raise_refusal(self, doing: str) -> None:
        """Raise AccessError if the broker has refused this client, or the client the broker.

        librdkafka takes both for errors that pass, and connects again until the timeout.
        """
        self._client.poll(0)
        if self._refusal is not None:
            raise mapped(self._refusal, f"{doing} at {self._bootstrap}")

    def _call(
        self,
        doing: str,
        call: Callable[[], R],
        passing: Collection[int] = PASSING,
        *,
        needs: str = "",
        within_s: float | None = None,
    ) -> R:
        """The call's result; errors of the codes `passing` are retried until the timeout.

        Args:
            needs: as for `mapped`.
            within_s: a timeout of its own.
        """
        if not self._connected:  # the client retries a closed port for as long
            check_listens(self._settings)
            self._connected = True
        deadline = time.monotonic() + (self._timeout if within_s is None else within_s)
        while True:
            try:
                return call()
            except KafkaException as error:
                self._raise_refusal(doing)
                if error.args[0].code() not in passing or time.monotonic() > deadline:
                    where = f"{doing} at {self._bootstrap}"
                    raise mapped(error, where, needs=needs) from error
            time.sleep(RETRY_S)
