"""The durable store of one generation: FAISS with snapshots and upkeep, or Milvus."""

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
from braid.index.segments.snapshot import newest, restore, save, segments_folder
from braid.index.store import VectorStore

from ..errors import ConfigError, RegistryError
from ..settings import Settings
from .milvus_store import MilvusBackedStore
from .remote_snapshots import remote_snapshots_of
from .snapshot_check import SnapshotFacts

log = logging.getLogger(__name__)


class DurableStore(Protocol):
    """A generation's store, and its persistence."""

    @property
    def store(self) -> VectorStore: ...

    @property
    def known(self) -> SnapshotFacts:
        """The snapshot facts of the last `keep`."""
        ...

    def start(self) -> None: ...

    def serve(self) -> None:
        """Called when the generation begins to serve."""
        ...

    def drop(self) -> None:
        """Delete what is stored outside of this node's folder."""
        ...

    def check(self) -> None:
        """Raise the error that ended the background work, if there is one."""
        ...

    def keep(self, known: SnapshotFacts) -> None:
        """Persist rows and offsets, if the store does not do so itself."""
        ...

    def renew(self) -> None:
        """Replace the store by an empty one."""
        ...

    def stop(self) -> None: ...


def gpu_for(settings: Settings) -> Gpu | None:
    """The GPU for searches, by the setting: none, optional, or required.

    Raises:
        ConfigError: a GPU is required, and none works.
    """
    if settings.index.faiss_gpu is False:
        return None
    if settings.index.faiss_gpu is None and not gpu_found():
        return None
    gpu = open_gpu()
    if gpu is None and settings.index.faiss_gpu:
        raise ConfigError("index.faiss_gpu: is true, and no GPU here can search; the log says why")
    return gpu


def open_store(
    settings: Settings,
    generation: str,
    model: Model,
    *,
    metrics: GenerationMetrics,
    failpoint: Callable[[str], None],
    gpu: Gpu | None = None,
) -> DurableStore:
    """Open the store that the settings name.

    Args:
        gpu: for searches of a store in this process.

    Raises:
        ConfigError: the store is Milvus, and milvus.uri is not set.
        StoreError: Milvus does not answer, or the collection has another shape.
    """
    if settings.index.store == "milvus":
        return MilvusBackedStore(settings, generation, model)
    return LocalStore(
        settings,
        generation,
        space=model.space,
        dim=model.dim,
        metrics=metrics,
        failpoint=failpoint,
        gpu=gpu,
    )


class LocalStore:
    """FAISS in this process, mapped segments and snapshots in the generation's folder.

    Args:
        failpoint: called with the name of each step, for crash tests.
    """

    def __init__(
        self,
        settings: Settings,
        generation: str,
        *,
        space: str,
        dim: int,
        metrics: GenerationMetrics,
        failpoint: Callable[[str], None],
        gpu: Gpu | None = None,
    ) -> None:
        self._folder, self._generation = settings.index_dir(generation), generation
        self._metrics, self._failpoint = metrics, failpoint
        self._space, self._dim = space, dim
        self._options: dict[str, Any] = {
            "threads": settings.index.faiss_threads,
            "recall": settings.index.recall,
            "gpu": gpu,
            "failpoint": failpoint,
        }
        self.known = SnapshotFacts()
        self._remote, self._stopped = remote_snapshots_of(settings, generation), False
        if self._remote is not None and newest(self._folder) is None:
            self._remote.restore()
        self.store = self._first()
        self._compactor = Compactor(self.store)

    def start(self) -> None:
        """Seal and compact in the background."""
        self._compactor.start()

    def serve(self) -> None:
        """Nothing to do: the node has its own alias."""

    def drop(self) -> None:
        """The folder is deleted with the generation; so are its uploads."""
        if self._remote is not None:
            try:
                self._remote.drop()
            except RegistryError as error:
                log.warning("the snapshots of %s stay: %s", self._generation, error)

    def check(self) -> None:
        if self._compactor.error is not None:
            raise self._compactor.error

    def keep(self, known: SnapshotFacts) -> None:
        """Write a snapshot. If that fails, it is logged and the previous one stays."""
        self._failpoint("before-snapshot")
        began = time.perf_counter()
        try:
            info = save(
                self.store,
                self._folder,
                generation=self._generation,
                facts=known.plain(),
                failpoint=self._failpoint,
            )
        except SnapshotError as error:  # such as a full disk; the index continues
            log.error("no snapshot was written, the last one stays: %s", error)
            return
        if self._remote is not None:  # also if nothing is new: the last upload may have failed
            (self._remote.stop if self._stopped else self._remote.offer)()
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
        """A last `keep` may follow; its snapshot is uploaded before it returns."""
        self._compactor.stop()
        self.store.close()
        self._stopped = True

    def _first(self) -> LiveStore:
        restored = restore(self._folder, **self._options)
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
        folder = segments_folder(self._folder)
        return LiveStore(space=self._space, dim=self._dim, folder=folder, **self._options)
