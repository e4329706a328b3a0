"""Loads a version, runs device work on one thread, and embeds samples for library users.

    with Embedder.load("models/versions/braid-0001") as embedder:
        (embedding,) = embedder.embed([Sample(id="1", text="a red bird")])

Importing this module does not import torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, ParamSpec, TypeVar

from .model.null import PREFIX, NullModel
from .types import Embedding, Model, Prepared, Sample

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[Future[Any], Callable[[], Any]]


def load(path: str | Path, *, device: str | None = None) -> Model:
    """The model at `path`: a version folder, or "null:16" for the null model.

    Every file is compared with its checksum; `Model.check` is left to the caller.

    Args:
        device: a torch device; the GPU where there is one, else the CPU, if None.

    Raises:
        CheckpointError: there is no such version, or it is damaged.
    """
    if isinstance(path, str) and path.startswith(PREFIX):
        return NullModel.parse(path)
    from .model.checkpoint import load_folder  # torch is imported here and not before

    return load_folder(Path(path), device=device)


class DeviceThread:
    """One thread for all work on the device: one batch runs, one waits.

    A queue of size 1 keeps the device busy; a longer one would only add latency
    (text-embeddings-inference, `core/src/infer.rs`).

    An exception fails the future of that piece of work, and the thread continues. If the thread
    ends (SystemExit, KeyboardInterrupt), all waiting futures fail.
    """

    def __init__(self, name: str = "device") -> None:
        self._queue: Queue[Work | None] = Queue(maxsize=1)
        self._closed = False
        self._lock = threading.Lock()  # held during put: nothing may follow the end marker
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether `submit` would block now."""
        return self._queue.full()

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args)` on the device thread; blocks while another piece of work is waiting.

        Raises:
            RuntimeError: the thread is closed.
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

    def close(self, timeout: float | None = None) -> bool:
        """Finish the submitted work, then end the thread. Idempotent.

        Args:
            timeout: seconds to wait; None waits without limit.

        Returns:
            Whether the thread has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._put_end(deadline)
        if threading.current_thread() is not self._thread:
            self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _put_end(self, deadline: float | None) -> None:
        while self._thread.is_alive() and (deadline is None or time.monotonic() < deadline):
            try:
                self._queue.put(None, timeout=0.1)
            except Full:
                continue
            return

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the device thread is closed")

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
            with self._lock:  # nothing is put after this
                self._closed = True
                self._fail_waiting()

    def _fail_waiting(self) -> None:
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                return
            if work is not None and work[0].set_running_or_notify_cancel():
                work[0].set_exception(RuntimeError("the device thread has ended"))


class Embedder:
    """Embeds samples with one model at a time; the model may be swapped while others embed.

    Each micro-batch uses one model: `swap` changes one reference, which is read once for each
    micro-batch.
    """

    def __init__(self, model: Model, *, threads: int = 4, batch: int = 64) -> None:
        self._model = model
        self._batch = batch
        self._device = DeviceThread()
        self._pool = ThreadPoolExecutor(threads, "prepare")

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> Embedder:
        """An embedder of the version at `path`; see `braid.encoders.load`.

        Raises:
            CheckpointError: there is no such version, or it is damaged.
        """
        return cls(load(path, device=device))

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

    def embed_with(self, samples: Sequence[Sample]) -> tuple[Model, list[Embedding]]:
        """Embed `samples` as one micro-batch; returns the model and its embeddings.

        Raises:
            BadInput: one of them cannot be used.
        """
        model = self._model
        return model, self._device.submit(model.encode, self._prepare(model, samples)).result()

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._device.close()
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
        """Micro-batches; while one is encoded, the next is prepared."""
        running: tuple[Model, Future[list[Embedding]]] | None = None
        waiting = iter(samples)
        while part := list(islice(waiting, self._batch)):
            model = self._model
            prepared = self._prepare(model, part)
            submitted = self._device.submit(model.encode, prepared)
            if running is not None:
                yield running[0], running[1].result()
            running = model, submitted
        if running is not None:
            yield running[0], running[1].result()
