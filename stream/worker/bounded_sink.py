"""Calls of the transactional sink on their own threads, with a timeout enforced from outside.

A call of the client may block far beyond its own timeout (librdkafka#5456, #5511). A call that
exceeds its bound is abandoned with its thread and its sink. The next call gets a new sink, whose
`open` fences the old one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from ..errors import PublishRefused
from ..kafka.client import Output
from ..kafka.sink import TransactionalSink
from ..monitoring.steps import Steps

SLACK_S = 3.0  # beyond the sink's own bound, which the client usually keeps


@dataclass(slots=True)
class _Call:
    since: float
    future: Future[None] = field(default_factory=Future)


class BoundedSink:
    """One call at a time, from `submit` to `result`. Used by one thread.

    Args:
        make: makes a sink, without waiting for the broker.
        bound_s: of one call; the sink's own bound.
        clock: monotonic seconds.
        steps: None: the time of a call is not measured.
    """

    def __init__(
        self,
        make: Callable[[], TransactionalSink],
        *,
        bound_s: float,
        clock: Callable[[], float] = time.monotonic,
        steps: Steps | None = None,
    ) -> None:
        self._steps = steps
        self._make, self._clock = make, clock
        self._bound_s = bound_s + SLACK_S
        self._sink = make()
        self._call: _Call | None = None

    @property
    def future(self) -> Future[None] | None:
        """Done when the call has ended; None: there is no call."""
        return None if self._call is None else self._call.future

    @property
    def ended(self) -> bool:
        """Whether there is a call that has ended or exceeded its bound."""
        call = self._call
        return call is not None and (call.future.done() or self._left_s(call) <= 0)

    def submit(self, function: Callable[[TransactionalSink], None]) -> None:
        """Start a call."""
        assert self._call is None, "the result of the previous call was not taken"
        call, sink = _Call(self._clock()), self._sink

        def run() -> None:
            began = time.monotonic()
            try:
                function(sink)
            except BaseException as error:  # noqa: BLE001 (raised by `result`)
                call.future.set_exception(error)
            else:
                call.future.set_result(None)
            if self._steps is not None:
                self._steps.took("transaction", began)

        self._call = call
        threading.Thread(target=run, name="publish", daemon=True).start()

    def wait(self, within_s: float | None = None) -> None:
        """Wait until the call has ended, or its bound or `within_s` has passed."""
        if (call := self._call) is not None:
            left_s = max(0.0, self._left_s(call))
            wait([call.future], timeout=left_s if within_s is None else min(left_s, within_s))

    def result(self) -> None:
        """Raise what the call raised; abandon it if it has not ended.

        Raises:
            PublishRefused: abandoned; the outcome is known after the next `open`.
            BrokerError, ConfigError: see TransactionalSink.
        """
        call, self._call = self._call, None
        assert call is not None
        if call.future.done():
            call.future.result()
            return
        self._sink = self._make()
        raise PublishRefused(
            f"no end after {self._clock() - call.since:.1f} s (publish_timeout_s): given up, with "
            "its producer"
        )

    def publish(
        self,
        outputs: Iterable[Output],
        *,
        offsets: Mapping[int, int],
        lease: object,
        metadata: str = "",
    ) -> None:
        """TransactionalSink.publish, waited for within the bound."""
        self.submit(
            lambda sink: sink.publish(outputs, offsets=offsets, lease=lease, metadata=metadata)
        )
        self.wait()
        self.result()

    def open(self) -> None:
        """TransactionalSink.open, waited for within the bound."""
        self.submit(lambda sink: sink.open())
        self.wait()
        self.result()

    def close(self, within_s: float = 0.0) -> None:
        """Close the producer, after waiting up to `within_s` for the call; else leave it to it."""
        self.wait(within_s)
        call, self._call = self._call, None
        if call is None or call.future.done():
            self._sink.close()

    def _left_s(self, call: _Call) -> float:
        return call.since + self._bound_s - self._clock()
