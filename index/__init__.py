"""The vector index: a store that is searchable while it is written, and the query service.

    from braid import Client
    with Client("http://127.0.0.1:8077") as client:
        answer = client.search(text="a red bird", k=5)

The import is cheap: a submodule is imported when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient as AsyncClient
    from .client import Client as Client
    from .client import Retry as Retry
    from .errors import BadQuery as BadQuery
    from .errors import BraidIndexError as BraidIndexError
    from .errors import ServiceError as ServiceError

_HOME = {
    "AsyncClient": "braid.index.client",
    "Client": "braid.index.client",
    "Retry": "braid.index.client",
    "BadQuery": "braid.index.errors",
    "BraidIndexError": "braid.index.errors",
    "ServiceError": "braid.index.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
