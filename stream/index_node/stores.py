"""The store of one generation on this node, and what keeps it: snapshots and upkeep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from braid.encoders.types import Model
from braid.index.errors import SnapshotError
from braid.index.metrics import GenerationMetrics
from braid.index.segments.compaction import Compactor
from braid.index.segments.gpu import Gpu, gpu_found, open_gpu
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import restore, save, segments_folder
from braid.index.store import VectorStore

from ..errors import ConfigError
from ..settings import Settings
from .milvus_store import MilvusBackedStore
from .snapshot_check import SnapshotFacts

log = logging.getLogger(__name__)


class DurableStore(Protocol):
    """A generation's store and how it outlives the process."""

    @property
    def store(self) -> VectorStore: ...

    @property
    def known(self) -> SnapshotFacts:
        """What was known of the topic when the store was kept last."""
        ...

    def start(self) -> None: ...

    def serve(self) -> None:
        """Its generation answers from here on."""
        ...

    def drop(self) -> None:
        """Its generation is gone for good, and with it what lies outside of this node's folder."""
        ...

    def check(self) -> None:
        """Raise what ended the background work, if anything did."""
        ...

    def keep(self, known: SnapshotFacts) -> None:
        """Make content and offsets outlive the process, where the store does not itself."""
        ...

    def renew(self) -> None:
        """Begin anew with an empty store."""
        ...

    def stop(self) -> None: ...


def gpu_for(settings: Settings) -> Gpu | None:
    """The GPU that searches: none, any that works, or one that must.

    Raises:
        ConfigError: the settings ask for one, and there is none that does what it should.
    """
    if settings.faiss_gpu is False:
        return None
    if settings.faiss_gpu is None and not gpu_found():
        return None
    gpu = open_gpu()
    if gpu is None and settings.faiss_gpu:
        raise ConfigError("faiss_gpu: is true, and no GPU here can search; the log says why")
    return gpu


def open_store(
    settings: Settings,
    model: Model,
    *,
    metrics: GenerationMetrics,
    failpoint: Callable[[str], None],
    gpu: Gpu | None = None,
) -> DurableStore:
    """The store that the settings name, with what it holds of the model's space.

    Args:
        gpu: searches, where the store is in this process.

    Raises:
        ConfigError: the store is Milvus, and no setting says where.
        StoreError: Milvus does not answer, or holds another shape of vectors.
    """
    if settings.store == "milvus":
        return MilvusBackedStore(settings, model)
    return LocalStore(
        settings,
        space=model.space,
        dim=model.dim,
        metrics=metrics,
        failpoint=failpoint,
        gpu=gpu,
    )


class LocalStore:
    """FAISS in this process, mapped segments and snapshots in the generation's folder.

    Args:
        settings: name the generation.
        failpoint: called with the name of each step, for crash tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        space: str,
        dim: int,
        metrics: GenerationMetrics,
        failpoint: Callable[[str], None],
        gpu: Gpu | None = None,
    ) -> None:
        self._settings, self._metrics, self._failpoint = settings, metrics, failpoint
        self._space, self._dim = space, dim
        self._options: dict[str, Any] = {
            "threads": settings.faiss_threads,
            "recall": settings.recall,
            "gpu": gpu,
            "failpoint": failpoint,
        }
        self.known = SnapshotFacts()
        self.store = self._first()
        self._compactor = Compactor(self.store)

    def start(self) -> None:
        """Seal and compact in the background."""
        self._compactor.start()

    def serve(self) -> None:
        """Nothing to do: the node's alias says it."""

    def drop(self) -> None:
        """Nothing to do: the folder goes with the generation."""

    def check(self) -> None:
        if self._compactor.error is not None:
            raise self._compactor.error

    def keep(self, known: SnapshotFacts) -> None:
        """A snapshot; if it cannot be written, the last one stays and the log says so."""
        self._failpoint("before-snapshot")
        began = time.perf_counter()
        try:
            info = save(
                self.store,
                self._settings.index_dir,
                generation=self._settings.generation,
                facts=known.plain(),
                failpoint=self._failpoint,
            )
        except SnapshotError as error:  # a full disk: the topic is still there, and so is the index
            log.error("no snapshot was written, the last one stays: %s", error)
            return
        if info is not None:
            self._metrics.snapshot_took(time.perf_counter() - began)
            log.debug(
                "snapshot of %d records, writers waited %.1f ms", info.records, 1000 * info.stall_s
            )

    def renew(self) -> None:
        self._compactor.stop()
        self.store.close()
        self.store = self._empty()
        self._compactor = Compactor(self.store)
        self._compactor.start()

    def stop(self) -> None:
        self._compactor.stop()
        self.store.close()

    def _first(self) -> LiveStore:
        restored = restore(self._settings.index_dir, **self._options)
        if restored is None:
            return self._empty()
        store = restored.store
        if store.space != self._space or store.dim != self._dim:
            log.warning(
                "the snapshot holds space %s, the model makes %s: starting empty",
                store.space,
                self._space,
            )
            return self._empty()
        self.known = SnapshotFacts.parse(restored.facts)
        log.info("restored %d records from the snapshot", len(store))
        return store

    def _empty(self) -> LiveStore:
        folder = segments_folder(self._settings.index_dir)
        return LiveStore(space=self._space, dim=self._dim, folder=folder, **self._options)
