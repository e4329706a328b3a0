"""Writes what a hit shows of a record, its text, links and labels, to Redis, off the hot path.

Redis is not the only copy and does not slow the worker: writes go through a bounded queue to one
thread. If the queue is full or Redis is unavailable, writes are dropped and counted; the index node
rebuilds missing ones when a query shows them. Thumbnails and snippets are made there only
(`braid.stream.media.rebuild`): of most records nobody looks at them, and here they would cost as
much as encoding. Those of an older version of a record are dropped here.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from braid.encoders.types import MEDIA, Embedding, TaskPrediction
from braid.index.media_cache import KINDS, MediaCache
from braid.index.payloads import Payload, Payloads

from ..kafka.schemas import Record

QUEUE = 4096
BATCH = 256
MAX_SHOWN_TEXT = 2000  # characters; the whole text is in `records`
MAX_SHOWN_LABEL = 200
MAX_SHOWN_LABELS = 32


class RedisShowcase:
    """Implements `braid.stream.worker.in_flight.Showcase`; without a url it keeps nothing.

    Args:
        dropped: called for each write that found no room in the queue.
    """

    def __init__(self, url: str | None, *, dropped: Callable[[], None] = lambda: None) -> None:
        self._payloads = Payloads(url)
        self._media_cache = MediaCache(self._payloads)
        self._queue: queue.Queue[tuple[str, Payload | None] | None] = queue.Queue(QUEUE)
        self._dropped = dropped
        self._thread: threading.Thread | None = None
        if url is not None:
            self._thread = threading.Thread(target=self._write, name="showcase", daemon=True)
            self._thread.start()

    def put(self, record: Record, embedding: Embedding) -> None:
        """Queue a record's text, links, labels and predictions."""
        if self._thread is not None:
            self._offer((record.id, payload_of(record, embedding.tasks)))

    def drop(self, record_id: str) -> None:
        if self._thread is not None:
            self._offer((record_id, None))

    def close(self) -> None:
        """Write what is queued, for a few seconds at most."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=3.0)

    def _offer(self, entry: tuple[str, Payload | None]) -> None:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._dropped()

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
            self._media_cache.drop_many([(kind, id_) for id_ in latest for kind in KINDS])
            self._payloads.put_many({id_: p for id_, p in latest.items() if p is not None})
            self._payloads.drop_many([id_ for id_, p in latest.items() if p is None])
            if ended:
                return


def payload_of(record: Record, tasks: Mapping[str, TaskPrediction] | None = None) -> Payload:
    """The payload of a record: the beginning of its text, links, labels and predictions."""
    uri = {
        name: blob.uri
        for name in MEDIA
        if (blob := getattr(record, name)) is not None and blob.uri is not None
    }
    text = None if record.text is None else record.text[:MAX_SHOWN_TEXT]
    predicted = {name: _decided(task) for name, task in (tasks or {}).items()}
    shown = list((tasks or {}).items())[:MAX_SHOWN_LABELS]
    return Payload(
        text=text,
        uri=uri,
        labels=_few(record.labels),
        predicted=_few(predicted),
        predictions={name: _explained(task) for name, task in shown},
    )


def _decided(task: TaskPrediction) -> Any:
    """The predicted class, classes or number; None for a caption."""
    return next((one for one in (task.label, task.labels, task.value) if one is not None), None)


def _explained(task: TaskPrediction) -> dict[str, Any]:
    """The probability, a caption, and what each modality predicts alone."""
    by = {source: _few(alone) for source, alone in task.by.items()}
    whole = {"prob": task.prob, "text": task.text}
    return {"by": by} | _few({name: one for name, one in whole.items() if one is not None})


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
