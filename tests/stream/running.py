"""A worker inside the test's process: quicker than a process, the same class and broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from braid.encoders.types import Model
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.worker import Worker


class Running:
    """A worker on its thread; `error` is what ended it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self.worker.stop()
        self._thread.join(30)
        assert not self.alive, "the worker did not stop"

    def wait_for_end(self, timeout: float = 30.0) -> BaseException | None:
        self._thread.join(timeout)
        assert not self.alive, "the worker did not end"
        return self.error

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            self.error = error


@contextmanager
def running(
    settings: Settings,
    model: Model,
    *,
    slot: str = "test",
    make: Callable[..., Worker] = Worker,
    **options: Any,
) -> Iterator[Running]:
    """A worker that runs until the block ends."""
    worker = make(
        settings,
        model,
        generation=settings.generation,
        transactional_id=f"{settings.group(settings.generation)}-{slot}",
        **({"metrics": WorkerMetrics()} | options),
    )
    run = Running(worker)
    try:
        yield run
    finally:
        if run.alive:
            run.stop()


def wait_until_idle(run: Running, lag: Callable[[], int], timeout: float = 60.0) -> None:
    """Wait until all records are committed; fails with the worker's error if it ended."""
    deadline = time.monotonic() + timeout
    while lag() > 0:
        if not run.alive:
            raise AssertionError("the worker ended") from run.error
        assert time.monotonic() < deadline, "records are left over"
        time.sleep(0.1)
