"""OpenTelemetry traces of records: from the producer through a worker to an index node.

The context is in the header `traceparent` of Kafka messages (W3C Trace Context). The process in
which a trace begins decides whether it is sampled; the others follow. Without `tracing.endpoint`
there is no `Tracing`, and the packages of the extra `otel` are not imported.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

HEADER = "traceparent"
EXPORT_S = 5.0  # for one request to the collector
Headers = Sequence[tuple[str, bytes | None]]


class RecordSpan:
    """A sampled span of one record, and its steps. Not thread-safe.

    Args:
        tracing: makes the spans of its steps.
        span: has begun.
    """

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing, self._span = tracing, span

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """The header that makes a consumer's span a child of this one."""
        context = self._span.get_span_context()
        flags = int(context.trace_flags)
        return [(HEADER, f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}".encode())]

    def step(self, name: str, began: float, ended: float, **attributes: str | int) -> None:
        """A step of the record between two monotonic times in seconds."""
        self._tracing.step(self._span, name, began, ended, attributes)

    def note(self, **attributes: str | int) -> None:
        self._span.set_attributes(_named(attributes))

    def fail(self, what: str) -> None:
        """Mark the span as failed. `what` must not have content of the record."""
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, what)

    def end(self) -> None:
        self._span.end()


class Tracing:
    """Makes the spans of one process and sends them to the collector, on a thread of its own.

    If the collector is slow or away, spans are dropped.

    Args:
        service: the `service.name` of the spans.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """

    def __init__(self, settings: Settings, service: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise ConfigError(
                f"tracing.endpoint: {error.name} is not installed: pip install 'braid-stream[otel]'"
            ) from None
        resource = {"service.name": service, "service.instance.id": socket.gethostname()}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.tracing.sample)),
            resource=Resource.create(resource),
        )
        exporter = OTLPSpanExporter(endpoint=settings.tracing.endpoint, timeout=EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("braid")

    def sent(self, topic: str, id_: str) -> RecordSpan | None:
        """The span of sending a record, within the program's own span if there is one."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(f"send {topic}", kind=SpanKind.PRODUCER)
        return self._sampled(span, topic=topic, id=id_)

    def received(
        self, name: str, headers: Headers, *, began: float | None = None, **attributes: str | int
    ) -> RecordSpan | None:
        """The span of handling a message; None: it is not sampled.

        Args:
            headers: of the message.
            began: in monotonic seconds; None: now.
        """
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            name,
            context=_context(headers),
            kind=SpanKind.CONSUMER,
            start_time=None if began is None else _wall_ns(began),
        )
        return self._sampled(span, **attributes)

    def step(
        self, parent: Span, name: str, began: float, ended: float, attributes: dict[str, str | int]
    ) -> None:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name, context=set_span_in_context(parent), start_time=_wall_ns(began)
        )
        span.set_attributes(_named(attributes))
        span.end(_wall_ns(ended))

    def close(self) -> None:
        """Send what is left, for EXPORT_S at most."""
        self._provider.shutdown()

    def _sampled(self, span: Span, **attributes: str | int) -> RecordSpan | None:
        if not span.is_recording():
            return None
        span.set_attribute("messaging.system", "kafka")
        span.set_attributes(_named(attributes))
        return RecordSpan(self, span)


def has_context(headers: Iterable[tuple[str, Any]]) -> bool:
    """Whether a message belongs to a trace."""
    return any(name == HEADER for name, _ in headers)


def tracing_of(settings: Settings, service: str) -> Tracing | None:
    """The tracing that the settings ask for; one for each service of a process.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    return None if settings.tracing.endpoint is None else _tracing(settings, service)


_made: dict[tuple[str, float, str], Tracing] = {}
_lock = threading.Lock()


def _tracing(settings: Settings, service: str) -> Tracing:
    key = str(settings.tracing.endpoint), settings.tracing.sample, service
    with _lock:
        if key not in _made:
            _made[key] = Tracing(settings, service)
        return _made[key]


NAMES = {
    "topic": "messaging.destination.name",
    "partition": "messaging.destination.partition.id",
    "offset": "messaging.kafka.offset",
    "id": "braid.record.id",
}


def _named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    """Attributes under OpenTelemetry's names, else with `braid.` before them."""
    return {NAMES.get(name, f"braid.{name}"): value for name, value in attributes.items()}


def _context(headers: Headers) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {
        name: (value or b"").decode("ascii", "replace") for name, value in headers if name == HEADER
    }
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _wall_ns(monotonic_s: float) -> int:
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)
