"""Runs device work on threads of its own, and embeds samples for library users.

    with Embedder.load("models/versions/braid-0001") as embedder:
        (embedding,) = embedder.embed([Sample(id="1", text="a red bird")])

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, ParamSpec, TypeVar

from braid.modalities import listed

from .errors import BadInput
from .feature_cache import FeatureCache
from .loading import import_ahead as import_ahead
from .loading import load as load
from .types import Embedding, Model, Prepared, Sample

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[Future[Any], Callable[[], Any]]

IN_FLIGHT = 2
"""Micro-batches that are encoded or wait for the device: it has work while results are taken."""
MAX_QUERIES = 64  # in one micro-batch, exceeded by one query's at most
CHUNK = 16
MAX_PREPARED_BYTES = 64 << 20  # of one micro-batch, exceeded by CHUNK samples at most


class DeviceThreads:
    """The threads for all work on the device: on each one call runs, and one call waits.

    A queue of size 1 keeps the device busy; a longer one would only add latency
    (text-embeddings-inference, `core/src/infer.rs`).

    An exception fails the future of that piece of work, and its thread continues. If a thread ends
    (SystemExit, KeyboardInterrupt), all waiting futures fail, and the others end as well.

    Args:
        lanes: how many; see `Model.lanes`.
    """

    def __init__(self, lanes: int = 1) -> None:
        self._queue: Queue[Work | None] = Queue(maxsize=1)
        self._closed = False
        self._lock = threading.Lock()  # held during put: nothing may follow the end marker
        self._threads = [
            threading.Thread(target=self._run, name=f"device-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args)` on a device thread; blocks while another piece of work is waiting.

        Raises:
            RuntimeError: the threads are closed.
        """
        future: Future[T] = Future()
        while True:
            with self._lock:
                self._refuse_if_closed()
                try:
                    self._queue.put((future, lambda: fn(*args, **kwargs)), timeout=0.1)
                    return future
                except Full:
                    continue  # release the lock, so that close() can take it

    def offer(self, fn: Callable[[], None]) -> None:
        """Run `fn()` on a device thread, unless another piece of work waits already.

        Raises:
            RuntimeError: the threads are closed.
        """
        if self._queue.full() and not self._closed:
            return  # at once: `submit` holds the lock while it waits
        with self._lock, suppress(Full):
            self._refuse_if_closed()
            self._queue.put_nowait((Future(), fn))

    def close(self, timeout: float | None = None) -> bool:
        """Finish the submitted work, then end the threads. Idempotent.

        Args:
            timeout: seconds to wait; None waits without limit.

        Returns:
            Whether all threads have ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._put_end(deadline)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self._alive

    @property
    def _alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _put_end(self, deadline: float | None) -> None:
        while self._alive and (deadline is None or time.monotonic() < deadline):
            try:
                self._queue.put(None, timeout=0.1)
            except Full:
                continue
            return

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the device threads are closed")

    def _run(self) -> None:
        try:
            while (work := self._queue.get()) is not None:
                future, call = work
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    future.set_result(result)
                del work, future, call  # else the last batch stays in memory until the next
        finally:
            with self._lock:  # nothing but end markers is put after this
                self._closed = True
                self._fail_waiting()
                with suppress(Full):  # close() was quicker
                    self._queue.put_nowait(None)  # ends the next thread

    def _fail_waiting(self) -> None:
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                return
            if work is not None and work[0].set_running_or_notify_cancel():
                work[0].set_exception(RuntimeError("a device thread has ended"))


@dataclass(frozen=True, slots=True)
class _Query:
    model: Model
    prepared: Sequence[Prepared]
    future: Future[tuple[Model, list[Embedding]]] = field(default_factory=Future)


def _encode_together(queries: Sequence[_Query]) -> None:
    """Set the results of queries of one model; if one makes the batch fail, only its own fails."""
    model = queries[0].model
    try:
        prepared = [item for query in queries for item in query.prepared]
        embeddings = iter(model.encode_queries(prepared))
    except BaseException as error:
        if len(queries) > 1 and isinstance(error, Exception):
            for query in queries:
                _encode_together([query])
            return
        for query in queries:
            query.future.set_exception(error)
        if isinstance(error, Exception):
            return
        raise
    for query in queries:
        query.future.set_result((model, list(islice(embeddings, len(query.prepared)))))


class Embedder:
    """Embeds samples with one model at a time; the model may be swapped while others embed.

    Each micro-batch uses one model: `swap` changes one reference, which is read once for each
    micro-batch. Micro-batches are large, because a model sorts them by size: the larger, the less
    padding.

    Args:
        threads: for preparation.
        batch: the largest number of samples in one micro-batch, which MAX_PREPARED_BYTES bounds
            too.
    """

    def __init__(self, model: Model, *, threads: int = 4, batch: int = 512) -> None:
        self._model = model
        self._batch = batch
        self._lanes = model.lanes
        self._device = DeviceThreads(self._lanes)
        self._pool = ThreadPoolExecutor(threads, "prepare")
        self._queries: deque[_Query] = deque()
        self._queries_lock = threading.Lock()
        self._ended: BaseException | None = None  # why no query is taken any more

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        engine: str = "torch",
        precision: str = "float32",
        cache: FeatureCache | None = None,
    ) -> Embedder:
        """An embedder of the version at `path`; for all else see `braid.encoders.load`."""
        return cls(load(path, device=device, engine=engine, precision=precision, cache=cache))

    @property
    def model(self) -> Model:
        """The model that the next micro-batch will use."""
        return self._model

    def swap(self, model: Model) -> None:
        """Use `model` from the next micro-batch on."""
        self._model = model

    def embed(self, samples: Sequence[Sample]) -> list[Embedding]:
        """Embed `samples`, in their order. Thread-safe.

        Raises:
            BadInput: one of them cannot be used; none is returned then.
        """
        return [embedding for _, part in self._run(samples) for embedding in part]

    def query(self, samples: Sequence[Sample]) -> Future[tuple[Model, list[Embedding]]]:
        """Embed `samples` without predictions; the model that did it, and the embeddings.

        Thread-safe. Queries that come while the device is busy are encoded together.

        Raises:
            BadInput: one of them cannot be used, or has a modality that the model lacks.
            RuntimeError: closed, or a device thread has ended.
        """
        model = self._model
        for name in (name for one in samples for name in one.present):
            if name not in model.modalities:
                raise BadInput(name, f"{model.name} takes {listed(model.modalities)} only")
        query = _Query(model, self._prepare(model, [replace(one, query=True) for one in samples]))
        with self._queries_lock:
            if self._ended is not None:
                raise RuntimeError("the embedder is closed") from self._ended
            self._queries.append(query)
        self._offer()
        return query.future

    def close(self) -> None:
        """Finish what runs and what waits, take nothing more, and end the threads."""
        closed = RuntimeError("the embedder is closed")
        with self._queries_lock:
            self._ended = self._ended or closed
        with suppress(RuntimeError):  # a device thread has ended: nothing is left to finish
            while self._queries:
                self._device.submit(self._answer).result()
        self._device.close()
        self._end_queries(closed)
        self._pool.shutdown()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, model: Model, samples: Sequence[Sample]) -> list[Prepared]:
        if len(samples) == 1:  # a query: another thread would only add latency
            return [model.prepare(samples[0])]
        return list(self._pool.map(model.prepare, samples))

    def _run(self, samples: Sequence[Sample]) -> Iterator[tuple[Model, list[Embedding]]]:
        """Micro-batches; while IN_FLIGHT of them are encoded, the next is prepared."""
        running: deque[tuple[Model, Future[list[Embedding]]]] = deque()
        for model, prepared in self._batches(samples):
            if len(running) == IN_FLIGHT:
                before, future = running.popleft()
                yield before, future.result()
            running.append((model, self._device.submit(self._encode, model, prepared)))
        for model, future in running:
            yield model, future.result()

    def _encode(self, model: Model, prepared: Sequence[Prepared]) -> list[Embedding]:
        self._answer()
        with self._ends_queries():
            return model.encode(prepared)

    def _answer(self) -> None:
        """On a device thread: encode the queries that wait, or this thread's share of them.

        Each piece of work begins with it: what was appended while one waited for the device is not
        offered again.
        """
        with self._queries_lock:
            together, left = self._share(), bool(self._queries)
        if left:
            self._offer()
        if together:
            with self._ends_queries():
                _encode_together(together)

    def _offer(self) -> None:
        try:
            self._device.offer(self._answer)
        except RuntimeError as error:
            self._end_queries(error)

    @contextmanager
    def _ends_queries(self) -> Iterator[None]:
        """If an exception ends this device thread, no query is left waiting for it."""
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            self._end_queries(error)
            raise

    def _end_queries(self, error: BaseException) -> None:
        with self._queries_lock:
            self._ended = self._ended or error
            waiting, self._queries = self._queries, deque()
        for query in waiting:
            if query.future.set_running_or_notify_cancel():
                query.future.set_exception(error)

    def _share(self) -> list[_Query]:
        """The oldest queries of one model, as many as leave the other device threads theirs."""
        share = math.ceil(len(self._queries) / self._lanes)
        together: list[_Query] = []
        count = 0
        while self._queries and len(together) < share and count < MAX_QUERIES:
            if together and self._queries[0].model is not together[0].model:
                break
            query = self._queries.popleft()
            if query.future.set_running_or_notify_cancel():
                together.append(query)
                count += len(query.prepared)
        return together

    def _batches(self, samples: Sequence[Sample]) -> Iterator[tuple[Model, list[Prepared]]]:
        waiting, prepared, nbytes = iter(samples), list[Prepared](), 0
        model = self._model
        while part := list(islice(waiting, min(CHUNK, self._batch - len(prepared)))):
            prepared += (new := self._prepare(model, part))
            nbytes += sum(item.nbytes for item in new)
            if len(prepared) >= self._batch or nbytes >= MAX_PREPARED_BYTES:
                yield model, prepared
                prepared, nbytes, model = [], 0, self._model
        if prepared:
            yield model, prepared
