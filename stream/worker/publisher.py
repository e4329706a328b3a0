"""Calls of the transactional sink on their own threads, with a timeout enforced from outside.

A call of the client may block far beyond its own timeout (librdkafka#5456, #5511). A call that
exceeds its bound is abandoned with its thread and its sink. The next call gets a new sink, whose
`open` fences the old one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from ..errors import PublishRefused
from ..kafka.client import Output
from ..kafka.sink import TransactionalSink

log = logging.getLogger(__name__)

SLACK_S = 3.0  # beyond the sink's own bound, which the client usually keeps


@dataclass(slots=True)
class Call:
    """A running or finished call; `since` is its start."""

    since: float
    future: Future[None] = field(default_factory=Future)

    @property
    def done(self) -> bool:
        return self.future.done()


class Publisher:
    """One call at a time. Used by the worker's loop alone.

    Args:
        make: makes a sink, without waiting for the broker.
        bound_s: of one call; the sink's own bound.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        make: Callable[[], TransactionalSink],
        *,
        bound_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._clock = make, clock
        self._bound_s = bound_s + SLACK_S
        self._sink = make()

    def submit(self, function: Callable[[TransactionalSink], None]) -> Call:
        """Start a call; the previous one must have ended or be abandoned."""
        call, sink = Call(self._clock()), self._sink

        def run() -> None:
            try:
                function(sink)
            except BaseException as error:  # noqa: BLE001 (raised by `result`)
                call.future.set_exception(error)
            else:
                call.future.set_result(None)

        threading.Thread(target=run, name="publish", daemon=True).start()
        return call

    def overdue(self, call: Call) -> bool:
        return not call.done and self._clock() - call.since > self._bound_s

    def wait(self, call: Call, within_s: float | None = None) -> None:
        """Wait until the call has ended, or its bound or `within_s` has passed."""
        left = max(0.0, call.since + self._bound_s - self._clock())
        wait([call.future], timeout=left if within_s is None else min(left, within_s))

    def result(self, call: Call) -> None:
        """Raise what the call raised; abandon it if it has not ended.

        Raises:
            PublishRefused: abandoned; the outcome is known after the next `open`.
            BrokerError, ConfigError: see TransactionalSink.
        """
        if call.done:
            call.future.result()
            return
        self._sink = self._make()
        took_s = self._clock() - call.since
        raise PublishRefused(
            f"no end after {took_s:.1f} s (publish_timeout_s): given up, with its producer"
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
        call = self.submit(
            lambda sink: sink.publish(outputs, offsets=offsets, lease=lease, metadata=metadata)
        )
        self.wait(call)
        self.result(call)

    def open(self) -> None:
        """TransactionalSink.open, waited for within the bound."""
        call = self.submit(lambda sink: sink.open())
        self.wait(call)
        self.result(call)

    def close(self, call: Call | None = None, within_s: float = 0.0) -> None:
        """Close the producer, after waiting up to `within_s` for a running call."""
        if call is not None:
            self.wait(call, within_s)
        if call is None or call.done:
            self._sink.close()
