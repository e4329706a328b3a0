"""What an index node's settings make of its store."""

from __future__ import annotations

from pathlib import Path

import pytest

from braid.encoders.model.null import NullModel
from braid.index.segments.gpu import Gpu, gpu_found
from braid.stream.errors import ConfigError
from braid.stream.index_node import stores
from braid.stream.index_node.node import IndexNode
from braid.stream.index_node.snapshot_check import SnapshotFacts
from braid.stream.index_node.stores import DurableStore
from braid.stream.kafka.producer import Producer
from braid.stream.settings import Settings
from tests.index.segments.test_gpu import NumpyKernel


def kept(settings: Settings) -> DurableStore:
    """The serving generation's store of a node that was just made."""
    node = IndexNode(settings, settings.generation, NullModel(16))
    return node._manager.generations.serving.reader.kept


def device(of: DurableStore) -> object:
    return of.store.stats()["device"]


def test_a_gpu_that_works_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty store, one from a snapshot, and one that begins anew."""
    gpu = Gpu(NumpyKernel)
    monkeypatch.setattr(stores, "open_gpu", lambda: gpu)
    settings = Settings(home=tmp_path, index={"faiss_gpu": True})
    first = kept(settings)
    assert device(first) == "gpu"
    first.store.apply([], positions={0: 1}, progress={})
    first.keep(SnapshotFacts())
    again = kept(settings)
    assert again.store.positions == {0: 1}
    assert device(again) == "gpu"
    again.start()
    again.renew()
    assert device(again) == "gpu"
    again.stop()
    assert device(kept(Settings(home=tmp_path / "other", index={"faiss_gpu": False}))) == "cpu"
    gpu.close()


@pytest.mark.skipif(gpu_found(), reason="there is a GPU here")
def test_a_gpu_that_must_be_there_and_is_not_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.faiss_gpu: is true, and no GPU here can search"):
        kept(Settings(home=tmp_path, index={"faiss_gpu": True}))
    assert device(kept(Settings(home=tmp_path))) == "cpu"


def test_shared_media_do_not_make_redis_unavailable_to_searches(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": "redis://127.0.0.1:1"})
    node = IndexNode(settings, settings.generation, NullModel(16))
    deps = node._deps(Producer(settings))
    assert deps.shared is not None
    assert deps.shared.nbytes() is None  # nobody answers
    assert deps.payloads.available
