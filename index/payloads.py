"""What a hit needs to be shown, in Redis: text, links, labels. Never the only copy.

Thumbnails and snippets are kept beside, by `braid.index.media_cache`, which may drop them for
others.

Nothing here raises and nothing waits long: without Redis hits come without these, and say so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import redis

log = logging.getLogger(__name__)

KEY = "braid:hit:"
KEPT_S = 30 * 86_400
"""What is shown has a TTL so that a full Redis evicts it (`volatile-lru`) and not the locks."""
TIMEOUT_S = 0.25
RETRY_S = 2.0
PATIENCE_S = 2 * TIMEOUT_S  # a trial connects and asks


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """What is shown of one record: its labels as given, and by task what was predicted."""

    text: str | None = None
    uri: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)


class Payloads:
    """Reads and writes payloads; after a failure Redis is left alone for RETRY_S seconds.

    Args:
        url: redis://host:port/db, or None for no payloads at all.
        clock: monotonic seconds.
    """

    def __init__(self, url: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._client = None
        if url is not None:
            self._client = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        self._lock = threading.Lock()
        self._closed_until = 0.0
        self._trial: threading.Event | None = None

    @property
    def available(self) -> bool:
        """Whether Redis answered the last time that it was asked."""
        with self._lock:
            return self._client is not None and self._closed_until == 0.0

    def put_many(self, payloads: Mapping[str, Payload]) -> bool:
        """Write payloads by record id; whether Redis took them."""
        if not payloads:
            return True

        def put(client: redis.Redis) -> Any:
            with client.pipeline(transaction=False) as pipeline:
                for id_, payload in payloads.items():
                    pipeline.set(KEY + id_, _pack(payload), ex=KEPT_S)
                return pipeline.execute()

        return self.ask(put, patient=True) is not None

    def add(self, id: str, payload: Payload) -> bool:
        """Write one payload if there is none, which may be newer; whether Redis answered."""

        def add(client: redis.Redis) -> Any:
            return client.set(KEY + id, _pack(payload), nx=True, ex=KEPT_S) or False

        return self.ask(add) is not None

    def get_many(self, ids: Sequence[str]) -> dict[str, Payload] | None:
        """Payloads of the ids that have one; None when Redis does not answer."""
        if not ids:
            return {}
        found = self.ask(lambda client: client.mget([KEY + id_ for id_ in ids]))
        if found is None:
            return None
        return {
            id_: payload
            for id_, raw in zip(ids, found, strict=True)
            if raw is not None and (payload := _unpack(raw)) is not None
        }

    def drop_many(self, ids: Sequence[str]) -> bool:
        """Forget payloads; whether Redis did."""
        if not ids:
            return True
        return (
            self.ask(lambda client: client.delete(*[KEY + id_ for id_ in ids]), patient=True)
            is not None
        )

    def ask(self, call: Callable[[redis.Redis], Any], *, patient: bool = False) -> Any | None:
        """What `call` gets from Redis; None when it does not answer, or is left alone.

        Args:
            patient: if another call is just trying whether Redis is back, wait for what it finds.
        """
        for again in (patient, False):
            with self._lock:
                now = self._clock()
                if self._client is None:
                    return None
                trial = self._trial
                if now >= self._closed_until:
                    if self._closed_until:
                        # One call tries, the others do not wait for it, or not for long.
                        self._closed_until = now + RETRY_S
                        self._trial = threading.Event()
                    trial = self._trial
                    break
            if not again or trial is None:
                return None
            trial.wait(PATIENCE_S)
        try:
            return self._called(call)
        finally:
            if trial is not None:
                with self._lock:
                    self._trial = None
                trial.set()

    def _called(self, call: Callable[[redis.Redis], Any]) -> Any | None:
        assert self._client is not None
        try:
            result = call(self._client)
        except UnicodeError as error:  # half a surrogate pair; Redis has no part in it
            log.warning("cannot be a key or a value in Redis: %s", error)
            return None
        except (redis.RedisError, OSError) as error:
            with self._lock:
                if self._closed_until == 0.0:
                    log.warning("Redis does not answer, hits come without text: %s", error)
                self._closed_until = self._clock() + RETRY_S
            return None
        with self._lock:
            if self._closed_until:
                log.info("Redis answers again")
            self._closed_until = 0.0
        return result


def _pack(payload: Payload) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "text": payload.text,
            "uri": dict(payload.uri),
            "labels": dict(payload.labels),
            "predicted": dict(payload.predicted),
        }
    )
    return packed


def _unpack(raw: bytes) -> Payload | None:
    """None for a value that something else wrote: the hit is shown without it."""
    try:
        value = msgpack.unpackb(raw)
        text, uri = value["text"], value["uri"]
        labels, predicted = value.get("labels", {}), value.get("predicted", {})
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException):
        return None
    if not isinstance(text, str | None):
        return None
    if not all(isinstance(names, dict) for names in (uri, labels, predicted)):
        return None
    if not all(isinstance(part, str) for pair in uri.items() for part in pair):
        return None
    if not all(isinstance(name, str) for name in (*labels, *predicted)):
        return None
    return Payload(text=text, uri=uri, labels=labels, predicted=predicted)
