"""What a hit needs to be shown, written to Redis beside the hot path.

Redis is never the only copy and never in the way: writes go through a bounded queue to a thread of
their own; when the queue is full or Redis is gone they are dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import threading

from index.payloads import Payload, Payloads

from .records import Record

log = logging.getLogger(__name__)

QUEUE = 4096
BATCH = 256
MAX_SHOWN_TEXT = 2000  # characters; the whole text stands in `records`


class RedisShowcase:
    """Implements `stream.worker.Showcase`; without a url it keeps nothing."""

    def __init__(self, url: str | None) -> None:
        self._payloads = Payloads(url)
        self._queue: queue.Queue[tuple[str, Payload | None] | None] = queue.Queue(QUEUE)
        self.dropped = 0
        self._thread: threading.Thread | None = None
        if url is not None:
            self._thread = threading.Thread(target=self._write, name="showcase", daemon=True)
            self._thread.start()

    def put(self, record: Record) -> None:
        """Keep text and links of a record; its bytes stay in Kafka."""
        uri = {
            name: blob.uri
            for name in ("image", "audio")
            if (blob := getattr(record, name)) is not None and blob.uri is not None
        }
        text = None if record.text is None else record.text[:MAX_SHOWN_TEXT]
        self._offer((record.id, Payload(text=text, uri=uri)))

    def drop(self, record_id: str) -> None:
        self._offer((record_id, None))

    def close(self) -> None:
        """Write what waits, a few seconds at most."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=3.0)

    def _offer(self, entry: tuple[str, Payload | None]) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.dropped += 1

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
            latest = dict(entries)  # the last word on an id holds
            self._payloads.put_many({id_: p for id_, p in latest.items() if p is not None})
            self._payloads.drop_many([id_ for id_, p in latest.items() if p is None])
            if ended:
                return
