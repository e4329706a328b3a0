"""Times of a worker's steps: on `/metrics`, and in the trace if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from braid.encoders.timings import SubBatch

from .metrics import GenerationMetrics
from .trace import Trace

F = TypeVar("F", bound=Callable[..., Any])


class Steps:
    """The steps of one worker. Thread-safe.

    Args:
        trace: None: none is written.
    """

    def __init__(self, metrics: GenerationMetrics, trace: Trace | None) -> None:
        self._metrics, self._trace = metrics, trace

    def took(self, step: str, began: float, **args: object) -> None:
        """A step of this thread has ended now, and began at `began`, in monotonic seconds."""
        ended = time.monotonic()
        self._metrics.step(step, ended - began)
        if self._trace is not None:
            self._trace.span(step, began, ended, **args)

    def waited(self, step: str, since: float, **args: object) -> None:
        """Something waited from `since` until now."""
        ended = time.monotonic()
        self._metrics.step(step, ended - since)
        if self._trace is not None:
            self._trace.wait(step, since, ended, **args)


class Stepping(Protocol):
    """An object whose methods are steps."""

    @property
    def steps(self) -> Steps: ...


def step(name: str) -> Callable[[F], F]:
    """Decorator of a method: its calls are a step of that name of `self.steps`."""

    def timed(method: F) -> F:
        @wraps(method)
        def call(self: Stepping, *args: Any) -> Any:
            began = time.monotonic()
            try:
                return method(self, *args)
            finally:
                self.steps.took(name, began)

        return cast(F, call)

    return timed


def traced(trace: Trace) -> Callable[[SubBatch], None]:
    """Writes sub-batches to the trace."""

    def write(part: SubBatch) -> None:
        trace.span(
            f"sub-batch {part.modality}",
            part.began,
            part.ended,
            inputs=part.inputs,
            size=part.size,
            computed=part.computed,
        )

    return write
