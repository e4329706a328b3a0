"""The store of one generation in Milvus: rows, offsets and snapshot facts.

Milvus is durable, so there are no snapshots and no upkeep. A node continues from the stored
offsets.
"""

from __future__ import annotations

import logging

from braid.encoders.types import Model
from braid.index.errors import StoreError
from braid.index.milvus.client import connect
from braid.index.milvus.collections import MilvusGenerations

from ..errors import ConfigError
from ..settings import Settings
from ..settings.group import secret
from .snapshot_check import SnapshotFacts

log = logging.getLogger(__name__)


class MilvusBackedStore:
    """Implements `braid.stream.index_node.stores.DurableStore`.

    Args:
        settings: the address of Milvus.
        model: gives the collection's space, dimension and modalities.

    Raises:
        ConfigError: milvus.uri is not set.
        StoreError: Milvus does not answer, or the collection has another shape.
    """

    def __init__(self, settings: Settings, generation: str, model: Model) -> None:
        if settings.milvus.uri is None:
            raise ConfigError(
                "milvus.uri: is needed with the store milvus: http://host:port of a server, or a "
                "path ending in .db for Milvus Lite"
            )
        milvus = settings.milvus
        token = secret(milvus.token, milvus.token_file, "milvus.token") or ""
        client = connect(str(milvus.uri), token=token, ca=milvus.ca)
        generations = MilvusGenerations(client, prefix=settings.prefix)
        self._generations = generations
        self.store = generations.open(
            generation, space=model.space, dim=model.dim, names=model.modalities
        )
        if generations.serving() is None:
            generations.flip(self.store.collection)  # the first generation serves
        self.known = SnapshotFacts.parse(self.store.facts)
        log.info(
            "Milvus at %s: %s holds %d records; reading on from %s",
            settings.milvus.uri,
            self.store.collection,
            len(self.store),
            dict(self.store.positions) or "the beginning",
        )

    def start(self) -> None:
        """Nothing to start."""

    def serve(self) -> None:
        """Point the alias in Milvus to this collection, for clients of Milvus."""
        try:
            self._generations.flip(self.store.collection)
        except StoreError as error:  # this node serves it anyway
            log.error("the alias in Milvus does not name %s: %s", self.store.collection, error)

    def drop(self) -> None:
        try:
            self._generations.drop(self.store.collection)
        except StoreError as error:
            log.error("%s stays in Milvus: %s", self.store.collection, error)

    def check(self) -> None:
        """There is no background work."""

    def keep(self, known: SnapshotFacts) -> None:
        """Store the snapshot facts; rows and offsets are stored already."""
        try:
            self.store.note(known.plain())
        except (
            StoreError
        ) as error:  # the previous facts stay; a failed write of rows ends the process
            log.error("what is known of the topic was not kept: %s", error)

    def renew(self) -> None:
        self.store.clear()

    def stop(self) -> None:
        """The connection stays open, since `keep` is called after this."""
