"""Display data of hits (text, links, labels) in Redis, best effort.

`braid.index.media_cache` stores thumbnails and snippets. Redis never holds the only copy. No call
raises, and timeouts are short: without Redis, hits are returned without display data, and the
answer says so.
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
"""Display data has a TTL, so that a full Redis evicts it (`volatile-lru`) and not the locks."""
TIMEOUT_S = 0.25
RETRY_S = 2.0
PATIENCE_S = 2 * TIMEOUT_S  # a trial call connects and reads


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """Display data of one record: text, links, its own labels, and predictions by task.

    Attributes:
        predicted: task -> the predicted class, classes or number.
        predictions: task -> `prob`, `text` and `by`: {modality: {label, labels or value, prob}}, as
            far as the task has them.
    """

    text: str | None = None
    uri: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def links(self) -> dict[str, str]:
        """`uri` for answers: without paths on the producer's machine, which open nowhere else."""
        return {
            name: uri
            for name, uri in self.uri.items()
            if not uri.lstrip().lower().startswith("file:")
        }


class Payloads:
    """Reads and writes payloads; after a failure no call is made for RETRY_S seconds.

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
        """Whether Redis answered the last call."""
        with self._lock:
            return self._client is not None and self._closed_until == 0.0

    def put_many(self, payloads: Mapping[str, Payload]) -> bool:
        """Write payloads by record id; whether Redis stored them."""
        if not payloads:
            return True

        def put(client: redis.Redis) -> Any:
            with client.pipeline(transaction=False) as pipeline:
                for id_, payload in payloads.items():
                    pipeline.set(KEY + id_, _pack(payload), ex=KEPT_S)
                return pipeline.execute()

        return self.execute(put, patient=True) is not None

    def add(self, id: str, payload: Payload) -> bool:
        """Write a payload unless there is one, which may be newer; whether Redis answered."""

        def add(client: redis.Redis) -> Any:
            return client.set(KEY + id, _pack(payload), nx=True, ex=KEPT_S) or False

        return self.execute(add) is not None

    def get_many(self, ids: Sequence[str]) -> dict[str, Payload] | None:
        """Payloads of the ids that have one; None if Redis does not answer."""
        if not ids:
            return {}
        values = self.execute(lambda client: client.mget([KEY + id_ for id_ in ids]))
        if values is None:
            return None
        return {
            id_: payload
            for id_, raw in zip(ids, values, strict=True)
            if raw is not None and (payload := _unpack(raw)) is not None
        }

    def drop_many(self, ids: Sequence[str]) -> bool:
        """Delete payloads; whether Redis did."""
        if not ids:
            return True
        return (
            self.execute(lambda client: client.delete(*[KEY + id_ for id_ in ids]), patient=True)
            is not None
        )

    def execute(self, call: Callable[[redis.Redis], Any], *, patient: bool = False) -> Any | None:
        """The result of `call`; None if Redis does not answer, or within RETRY_S after a failure.

        Args:
            patient: while another call tries whether Redis is back, wait for its result.
        """
        for again in (patient, False):
            with self._lock:
                now = self._clock()
                if self._client is None:
                    return None
                trial = self._trial
                if now >= self._closed_until:
                    if self._closed_until:
                        # One trial call; the others return None at once, or wait briefly.
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
        except UnicodeError as error:  # half a surrogate pair: not an error of Redis
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
            "predictions": dict(payload.predictions),
        }
    )
    return packed


def _unpack(raw: bytes) -> Payload | None:
    """None for a value that another program wrote: the hit is shown without it."""
    try:
        value = msgpack.unpackb(raw)
        text, uri = value["text"], value["uri"]
        labels, predicted = value.get("labels", {}), value.get("predicted", {})
        predictions = value.get("predictions", {})
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException):
        return None
    if not isinstance(text, str | None):
        return None
    if not all(isinstance(names, dict) for names in (uri, labels, predicted, predictions)):
        return None
    if not all(isinstance(part, str) for pair in uri.items() for part in pair):
        return None
    if not all(isinstance(name, str) for name in (*labels, *predicted, *predictions)):
        return None
    if not all(isinstance(task, dict) for task in predictions.values()):
        return None
    return Payload(text=text, uri=uri, labels=labels, predicted=predicted, predictions=predictions)
