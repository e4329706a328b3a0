"""Writes texts, thumbnails and snippets of records to Redis, off the hot path.

Redis is not the only copy and does not slow the worker: writes go through bounded queues to two
threads, one for texts and links, one that makes thumbnails and snippets and may fall behind. If a
queue is full or Redis is unavailable, writes are dropped and counted; the index node rebuilds
missing ones when a query shows them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from braid.encoders.config import Limits
from braid.encoders.types import Embedding, TaskPrediction
from braid.index.media_cache import DEFAULT_BUDGET, KINDS, Kind, Media, MediaCache
from braid.index.payloads import Payload, Payloads

from ..kafka.schemas import MIB, Record
from .thumbnails import media_of, nbytes

log = logging.getLogger(__name__)

QUEUE = 4096
BATCH = 256
MEDIA_QUEUE = 256
MEDIA_QUEUE_BYTES = 64 * MIB
MAX_SKIPPED = 100_000
MAX_SHOWN_TEXT = 2000  # characters; the whole text is in `records`
MAX_SHOWN_LABEL = 200
MAX_SHOWN_LABELS = 32


class RedisShowcase:
    """Implements `braid.stream.worker.in_flight.Showcase`; without a url it keeps nothing.

    Args:
        media.bytes: the budget of `braid.index.media_cache.MediaCache`; 0 makes no thumbnails and
            snippets.
        dropped: called with "text" or "media" for what found no room in its queue.
    """

    def __init__(
        self,
        url: str | None,
        *,
        media_bytes: int = DEFAULT_BUDGET,
        limits: Limits | None = None,
        dropped: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._payloads = Payloads(url)
        self._media_cache = MediaCache(self._payloads, budget=media_bytes)
        self._limits = limits or Limits()
        self._queue: queue.Queue[tuple[str, Payload | None] | None] = queue.Queue(QUEUE)
        self._media: queue.Queue[tuple[str, Record | None] | None] = queue.Queue(MEDIA_QUEUE)
        self._media_lock = threading.Lock()
        self._media_bytes = 0
        self._skipped: set[str] = set()  # ids whose newest media were dropped: older ones go too
        self._dropped = dropped
        self._threads: list[threading.Thread] = []
        if url is not None:
            works = [(self._write, "showcase")]
            if media_bytes > 0:
                works.append((self._make, "showcase-media"))
            self._threads = [
                threading.Thread(target=work, name=name, daemon=True) for work, name in works
            ]
            for thread in self._threads:
                thread.start()

    def put(self, record: Record, embedding: Embedding) -> None:
        """Queue a record's text, links and labels, and its media for thumbnails."""
        self._offer_media(record.id, record)
        self._offer((record.id, payload_of(record, embedding.tasks)))

    def drop(self, record_id: str) -> None:
        self._offer_media(record_id, None)
        self._offer((record_id, None))

    def close(self) -> None:
        """Write the queued texts, for a few seconds at most; queued media are dropped."""
        if not self._threads:
            return
        while not self._media.empty():
            try:
                self._media.get_nowait()
            except queue.Empty:
                break
        self._queue.put(None)
        self._media.put(None)
        for thread in self._threads:
            thread.join(timeout=3.0)

    def _offer(self, entry: tuple[str, Payload | None]) -> None:
        if not self._threads:
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._dropped("text")

    def _offer_media(self, id_: str, record: Record | None) -> None:
        if len(self._threads) < 2:
            return
        size = 0 if record is None else nbytes(record)
        with self._media_lock:
            room = self._media_bytes + size <= MEDIA_QUEUE_BYTES
            if room:
                try:
                    self._media.put_nowait((id_, record))
                except queue.Full:
                    room = False
            if room:
                self._media_bytes += size
                self._skipped.discard(id_)
            elif len(self._skipped) < MAX_SKIPPED:
                self._dropped("media")
                self._skipped.add(id_)

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            entries = [entry]
            ended = False
            while len(entries) < BATCH and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    ended = True
                    break
                entries.append(more)
            latest = dict(entries)  # the last write of an id wins
            self._payloads.put_many({id_: p for id_, p in latest.items() if p is not None})
            self._payloads.drop_many([id_ for id_, p in latest.items() if p is None])
            if skipped := self._skipped.intersection(latest):
                self._media_cache.drop_many([(kind, id_) for id_ in skipped for kind in KINDS])
            if ended:
                return

    def _make(self) -> None:
        while (entry := self._media.get()) is not None:
            id_, record = entry
            made: dict[Kind, Media] = {}
            if record is not None:
                # Media of a link are made when a query shows them: they would be fetched twice.
                image, audio = (
                    None if blob is None else blob.data for blob in (record.image, record.audio)
                )
                made = media_of(image, audio, self._limits)
                with self._media_lock:
                    self._media_bytes -= nbytes(record)
            if id_ in self._skipped:  # a newer version was dropped meanwhile
                made = {}
            # The media in Redis may be an older version's.
            self._media_cache.drop_many([(kind, id_) for kind in KINDS if kind not in made])
            self._media_cache.put_many({(kind, id_): media for kind, media in made.items()})


def payload_of(record: Record, tasks: Mapping[str, TaskPrediction] | None = None) -> Payload:
    """The payload of a record: the beginning of its text, links, labels and predictions."""
    uri = {
        name: blob.uri
        for name in ("image", "audio")
        if (blob := getattr(record, name)) is not None and blob.uri is not None
    }
    text = None if record.text is None else record.text[:MAX_SHOWN_TEXT]
    predicted = {name: _decided(task) for name, task in (tasks or {}).items()}
    return Payload(text=text, uri=uri, labels=_few(record.labels), predicted=_few(predicted))


def _decided(task: TaskPrediction) -> Any:
    """The predicted class, classes or number; None for a caption."""
    return next((one for one in (task.label, task.labels, task.value) if one is not None), None)


def _few(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels, shortened for a card on the page."""
    few: dict[str, Any] = {}
    for name, label in list(labels.items())[:MAX_SHOWN_LABELS]:
        if isinstance(label, str):
            few[name] = label[:MAX_SHOWN_LABEL]
        elif isinstance(label, list | tuple):
            few[name] = [str(one)[:MAX_SHOWN_LABEL] for one in label[:MAX_SHOWN_LABELS]]
        elif isinstance(label, int | float):
            few[name] = label
    return few
