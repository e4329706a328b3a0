"""The store of one generation in Milvus, which keeps itself: rows, offsets and what was known.

So there is no snapshot and no upkeep, and a node that starts reads on from what Milvus says.
"""

from __future__ import annotations

import logging

from braid.encoders.types import Model
from braid.index.errors import StoreError
from braid.index.milvus.client import connect
from braid.index.milvus.collections import MilvusGenerations

from ..errors import ConfigError
from ..settings import Settings
from .snapshot_check import SnapshotFacts

log = logging.getLogger(__name__)


class MilvusBackedStore:
    """Implements `braid.stream.index_node.stores.Kept`.

    Args:
        settings: say where Milvus is, and name the generation.
        model: its space, dimension and modalities are the collection's.

    Raises:
        ConfigError: no setting says where Milvus is.
        StoreError: it does not answer, or holds another shape of vectors.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        if settings.milvus_uri is None:
            raise ConfigError(
                "milvus_uri: is needed with the store milvus: http://host:port of a server, or a "
                "path ending in .db for Milvus Lite"
            )
        client = connect(settings.milvus_uri, token=settings.milvus_token)
        generations = MilvusGenerations(client, prefix=settings.prefix)
        self._generations = generations
        self.store = generations.open(
            settings.generation, space=model.space, dim=model.dim, names=model.modalities
        )
        if generations.serving() is None:
            generations.flip(self.store.collection)  # the first generation serves
        self.known = SnapshotFacts.parse(self.store.facts)
        log.info(
            "Milvus at %s: %s holds %d records; reading on from %s",
            settings.milvus_uri,
            self.store.collection,
            len(self.store),
            dict(self.store.positions) or "the beginning",
        )

    def start(self) -> None:
        """Nothing runs beside."""

    def serve(self) -> None:
        """Let Milvus' alias name this collection, for those who ask Milvus itself."""
        try:
            self._generations.flip(self.store.collection)
        except StoreError as error:  # this node answers from it all the same
            log.error("the alias in Milvus does not name %s: %s", self.store.collection, error)

    def drop(self) -> None:
        try:
            self._generations.drop(self.store.collection)
        except StoreError as error:
            log.error("%s stays in Milvus: %s", self.store.collection, error)

    def check(self) -> None:
        """Nothing that could have ended."""

    def keep(self, known: SnapshotFacts) -> None:
        """What was known of the topic; rows and offsets are there already."""
        try:
            self.store.note(known.plain())
        except StoreError as error:  # the last word stays; a write that fails ends the process
            log.error("what is known of the topic was not kept: %s", error)

    def renew(self) -> None:
        self.store.clear()

    def stop(self) -> None:
        """The connection ends with the process: `keep` comes after this."""
