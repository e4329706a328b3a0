"""Training a version: `train(samples, config, out=..., name=..., version=..., seed=...)`.

Importing this package is cheap: torch is imported when `train` is first touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import train as train
    from .splits import split as split


def __getattr__(name: str) -> Any:
    if name == "train":
        from .loop import train

        return train
    if name == "split":
        from .splits import split

        return split
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
