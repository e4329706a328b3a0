"""Virtual time: processes whose threads are greenlets, run one at a time in the order of a heap.

Code under test runs unchanged: where it would sleep, wait for a future or for an answer, its
greenlet gives way to the kernel, which goes on with whatever is due next. Nothing waits for real,
and the same seed gives the same order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ALL_COMPLETED, Future
from typing import Any

from greenlet import getcurrent, greenlet

LEAST_S = 0.02
"""A shorter wait takes so long: a loop that looks for work every 2 ms would look all day."""


class Killed(BaseException):
    """The process of this thread has ended by SIGKILL."""


class Process:
    """What is killed and stopped as one. A restarted program is another process."""

    def __init__(self, name: str) -> None:
        self.name, self.alive, self.stopped_until = name, True, 0.0
        self.tasks: list[Task] = []
        self.members: list[tuple[str, str]] = []  # groups, and the member that it was there


class Task(greenlet):
    """One thread of a process."""

    def __init__(self, process: Process, run: Callable[[], object], hub: greenlet) -> None:
        super().__init__(run, hub)
        self.process, self.ticket = process, 0


class Kernel:
    """The clock, the events to come, and the source of all randomness of one history.

    Attributes:
        now: virtual monotonic seconds.
        log: what happened, for a person; None: nothing is kept.
    """

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.now, self.rng = 0.0, random.Random(seed)
        self.log: list[str] | None = [] if verbose else None
        self.failures: list[BaseException] = []
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self._hub = getcurrent()

    def wall(self) -> float:
        """Seconds since 1970."""
        return 1.7e9 + self.now

    def note(self, text: str) -> None:
        if self.log is not None:
            self.log.append(f"{self.now:8.3f}  {text}")

    def at(self, when: float, call: Callable[..., object], *args: Any) -> None:
        """Call something at a time; never before what is due by then."""
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, call, args))

    def after(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def run(self, until: float) -> None:
        """Play all events up to a time, or to the first failure."""
        while self._events and self._events[0][0] <= until and not self.failures:
            self.now, _, call, args = heapq.heappop(self._events)
            call(*args)
        self.now = max(self.now, until)

    # Of the tasks.

    def spawn(self, process: Process, run: Callable[[], object]) -> Task:
        """Start a thread of a process."""
        if not process.alive:
            raise Killed

        def body() -> None:
            try:
                run()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 (it fails the history)
                self.failures.append(error)

        task = Task(process, body, self._hub)
        process.tasks.append(task)
        self.at(self.now, self._resume, task, task.ticket)
        return task

    def start(self, run: Callable[[], object]) -> Task:
        """Start another thread of the process that runs."""
        return self.spawn(self.process, run)

    @property
    def process(self) -> Process:
        """Whose thread runs now."""
        task = getcurrent()
        assert isinstance(task, Task), "only a task may wait"
        return task.process

    def kill(self, process: Process) -> None:
        """End all threads of a process, wherever they are; called by an event."""
        process.alive = False
        for task in process.tasks:
            if not task.dead:
                task.throw(Killed)

    def stop(self, process: Process, seconds: float) -> None:
        """Let no thread of a process run for a while, as SIGSTOP does."""
        process.stopped_until = self.now + seconds

    def pause(self, seconds: float | None) -> None:
        """Give way until `wake`, or until `seconds` have passed."""
        task = self._current()
        if seconds is not None:
            self.at(self.now + seconds, self._resume, task, task.ticket)
        self._hub.switch()
        if not task.process.alive:
            raise Killed

    def waker(self) -> Callable[[], None]:
        """Ends the next `pause` of the task that asks for it; later it has no effect."""
        task = self._current()
        ticket = task.ticket
        return lambda: self.at(self.now, self._resume, task, ticket)

    def sleep(self, seconds: float) -> None:
        self.pause(max(LEAST_S, seconds))

    def wait(
        self,
        futures: Iterable[Future[Any]],
        timeout: float | None = None,
        return_when: str = ALL_COMPLETED,
    ) -> None:
        """As concurrent.futures.wait, without its result."""
        futures = list(futures)
        waiting = [future for future in futures if not future.done()]
        enough = return_when != ALL_COMPLETED and len(waiting) < len(futures)
        if not waiting or enough:
            self.pause(LEAST_S)  # or a loop that looks again at once would stop the clock
            return
        left, wake = [len(waiting) if return_when == ALL_COMPLETED else 1], self.waker()

        def ended(_: Future[Any]) -> None:
            left[0] -= 1
            if left[0] == 0:
                wake()

        for future in waiting:
            future.add_done_callback(ended)
        self.pause(None if timeout is None else max(LEAST_S, timeout))

    def _current(self) -> Task:
        task = getcurrent()
        assert isinstance(task, Task), "only a task may wait"
        if not task.process.alive:
            raise Killed
        return task

    def _resume(self, task: Task, ticket: int) -> None:
        if task.ticket != ticket or task.dead or not task.process.alive:
            return
        if task.process.stopped_until > self.now:
            self.at(task.process.stopped_until, self._resume, task, ticket)
            return
        task.ticket += 1
        task.switch()


class Clock:
    """The module `time` of the code under test."""

    def __init__(self) -> None:
        self.kernel = Kernel(0)

    def monotonic(self) -> float:
        return self.kernel.now

    def time(self) -> float:
        return self.kernel.wall()

    def sleep(self, seconds: float) -> None:
        self.kernel.sleep(seconds)

    def wait(
        self,
        futures: Sequence[Future[Any]],
        timeout: float | None = None,
        return_when: str = ALL_COMPLETED,
    ) -> None:
        """concurrent.futures.wait of the code under test."""
        self.kernel.wait(futures, timeout, return_when)


class Thread:
    """threading.Thread of the code under test."""

    clock: Clock

    def __init__(
        self, *, target: Callable[..., object], args: Sequence[Any] = (), **_: object
    ) -> None:
        self._done: Future[None] = Future()
        self._target, self._args = target, args

    def start(self) -> None:
        def run() -> None:
            try:
                self._target(*self._args)
            finally:
                self._done.set_result(None)

        self.clock.kernel.start(run)

    def join(self, timeout: float | None = None) -> None:
        self.clock.kernel.wait([self._done], timeout)

    def is_alive(self) -> bool:
        return not self._done.done()


class Pool:
    """A pool of threads of the code under test; work takes a random time first.

    Args:
        count: how many calls run at once; more wait.
    """

    clock: Clock

    def __init__(self, count: int = 1, **_: object) -> None:
        self._free, self._queue = count, list[Callable[[], None]]()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        kernel = self.clock.kernel

        def run() -> None:
            try:
                kernel.pause(kernel.rng.expovariate(20))
                result = call(*args)
            except BaseException as error:  # noqa: BLE001 (raised by `result`)
                future.set_exception(error)
            else:
                future.set_result(result)
            self._free += 1
            if self._queue:
                self._begin(self._queue.pop(0))

        if self._free:
            self._begin(run)
        else:
            self._queue.append(run)
        return future

    def map(self, call: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
        return [call(value) for value in values]

    def close(self, timeout: float | None = None) -> bool:
        return True

    def shutdown(self, **_: object) -> None: ...

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _begin(self, run: Callable[[], None]) -> None:
        self._free -= 1
        self.clock.kernel.start(run)
