"""stream: records flow from Kafka through the model to vectors and predictions.

from braid import Producer

async with Producer() as producer:
    await producer.send(id="bird-1", text="a red bird")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kafka.producer import Producer as Producer


def __getattr__(name: str) -> Any:
    if name == "Producer":  # imported when asked for: it brings the Kafka client
        from .kafka.producer import Producer

        return Producer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
