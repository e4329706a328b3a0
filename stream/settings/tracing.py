"""The settings of traces."""

from __future__ import annotations

from pydantic import Field

from .group import Group


class Tracing(Group):
    """OpenTelemetry traces of records; needs the extra `otel`."""

    endpoint: str | None = Field(
        None,
        repr=False,
        description="where spans are sent by OTLP over HTTP, such as "
        "http://127.0.0.1:4318/v1/traces; without it there are none",
    )
    sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the traces that begin in this process and are sent; a record with a "
        "trace of its producer's is sampled as that one is",
    )
