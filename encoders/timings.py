"""Sub-batches as they end, for metrics and traces. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class SubBatch(NamedTuple):
    """One call of an encoder.

    Attributes:
        size: of its inputs together, in the encoder's units: tokens, pixels, samples of sound.
        computed: with the padding.
        began, ended: monotonic seconds. On a GPU only the launches lie in between.
        on_cpu: whether it ran on a core of this process.
    """

    modality: str
    inputs: int
    size: int
    computed: int
    began: float
    ended: float
    on_cpu: bool


Watcher = Callable[[SubBatch], None]
watchers: list[Watcher] = []
"""Called on the thread that ran the sub-batch; must be quick and must not raise."""
