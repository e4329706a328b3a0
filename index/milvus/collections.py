"""Generations as Milvus collections, and the alias of the serving one.

A collection's name contains its generation and its space, so that vectors of two models are never
mixed. Searches use the alias; `flip` moves it atomically, and a running search ends in the
collection in which it began. Names have a prefix, so that several deployments can share a server.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from ..errors import StoreError
from ..store import FUSED
from .client import CALL_TIMEOUT_S, errors, read_header
from .rows import Header, encode_header, schema, vector_field
from .store import MilvusStore


class MilvusGenerations:
    """The collections of one deployment.

    Args:
        client: see `braid.index.milvus.client.connect`.
        prefix: prefix of all names.

    Every method raises StoreError if Milvus fails.
    """

    def __init__(self, client: Any, *, prefix: str = "", timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._client, self._prefix = client, f"{_plain(prefix)}braid_"
        self._timeout_s = timeout_s

    @property
    def alias(self) -> str:
        """The alias that searches use; `flip` sets its collection."""
        return f"{self._prefix}serving"

    def collection(self, generation: str, space: str) -> str:
        digest = hashlib.sha256(space.encode()).hexdigest()[:12]
        return f"{self._prefix}{_plain(generation)}_{digest}"

    def names(self) -> list[str]:
        with errors("listing collections"):
            collections = self._client.list_collections(timeout=self._timeout_s)
        return sorted(name for name in collections if name.startswith(self._prefix))

    def open(self, generation: str, *, space: str, dim: int, names: Sequence[str]) -> MilvusStore:
        """Open the store of a generation; create it if it does not exist.

        `names` are the modalities that may have a vector.

        Raises:
            StoreError: it exists with another dimension or without one of these modalities.
        """
        name = self.collection(generation, space)
        if name in self.names():
            if self._whole(name):
                return self._opened(name, dim, names)
            self._drop(name)  # its creation was interrupted before the first record
        with errors(f"making {name}"):
            made = schema(self._client, dim=dim, names=names)
            self._client.create_collection(
                name, schema=made, consistency_level="Strong", timeout=self._timeout_s
            )
            index = self._client.prepare_index_params()
            for vector in (FUSED, *names):
                field = vector_field(vector)
                index.add_index(field, index_type="FLAT", index_name=field, metric_type="IP")
            self._client.create_index(name, index, sync=False, timeout=self._timeout_s)
            self._client.load_collection(name, timeout=self._timeout_s)
            header = Header(space=space, dim=dim, names=tuple(names), positions={}, progress={})
            self._client.upsert(name, [encode_header(header)], timeout=self._timeout_s)
        return MilvusStore(self._client, name, timeout_s=self._timeout_s)

    def serving(self) -> str | None:
        """The collection of the alias, or None."""
        for name in self.names():
            with errors(f"aliases of {name}"):
                aliases = self._client.list_aliases(name, timeout=self._timeout_s)
            if self.alias in aliases["aliases"]:
                return name
        return None

    def flip(self, collection: str) -> None:
        """Set the alias to this collection."""
        move = self._client.alter_alias if self.serving() else self._client.create_alias
        with errors(f"naming {collection} {self.alias}"):
            move(collection, self.alias, timeout=self._timeout_s)

    def drop(self, collection: str) -> None:
        """Drop a collection, if it exists.

        Raises:
            StoreError: it serves, or belongs to another deployment.
        """
        if not collection.startswith(self._prefix):
            raise StoreError(f"{collection}: names of this deployment begin with {self._prefix}")
        if collection not in self.names():
            return
        if collection == self.serving():
            raise StoreError(f"{collection} serves ({self.alias}): flip to another one first")
        self._drop(collection)

    def _drop(self, collection: str) -> None:
        with errors(f"dropping {collection}"):
            self._client.drop_collection(collection, timeout=self._timeout_s)

    def _whole(self, name: str) -> bool:
        """Whether the creation of a collection was completed: it has a header."""
        with errors(f"loading {name}"):
            indexed = set(self._client.list_indexes(name, timeout=self._timeout_s))
            if vector_field(FUSED) not in indexed:
                return False
            self._client.load_collection(name, timeout=self._timeout_s)
        return read_header(self._client, name, timeout_s=self._timeout_s) is not None

    def _opened(self, name: str, dim: int, names: Sequence[str]) -> MilvusStore:
        store = MilvusStore(self._client, name, timeout_s=self._timeout_s)
        if store.dim != dim or not set(names) <= set(store.names):
            raise StoreError(
                f"{name} holds vectors of {store.dim} values for {', '.join(store.names)}; "
                f"the model makes {dim} for {', '.join(names)}"
            )
        return store


def _plain(text: str) -> str:
    """Map a text to letters, digits and _; distinct texts stay distinct."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", text)
    if plain == text:
        return text
    return f"{plain}{hashlib.sha256(text.encode()).hexdigest()[:8]}_"
