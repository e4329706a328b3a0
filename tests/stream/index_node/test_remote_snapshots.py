"""Snapshots in an object store: only new segments are sent, and an empty disk begins with them."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import restore, save
from braid.stream.errors import ConfigError, RegistryAway
from braid.stream.index_node.remote_snapshots import (
    FORGOTTEN_MS,
    RemoteSnapshots,
    remote_snapshots_of,
)
from braid.stream.registry.object_store import ObjectStore
from braid.stream.settings import Settings
from tests.index.histories import make, put, settle
from tests.index.oracle import delete, unit, upsert
from tests.object_storage import BUCKET, Proxy
from tests.stream.harness import Deployment, wait_for
from tests.stream.registry.test_object_store import Clock
from tests.stream.worker.test_hot_swap import holds, said

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture
def bucket(proxy: Proxy) -> ObjectStore:
    return ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex}", proxy.options)


def remote(bucket: ObjectStore, home: Path, wall: Clock) -> RemoteSnapshots:
    return RemoteSnapshots(
        bucket, "g0001", home / "g0001", node=home / "node", every_s=60.0, wall=wall
    )


def written(store: LiveStore, home: Path, offset: int) -> None:
    store.apply([], positions={0: offset}, progress={0: offset})
    assert save(store, home / "g0001", generation="g0001") is not None


def answers(store: LiveStore) -> list[list[tuple[str, float]]]:
    queries = [unit(f"q{number}") for number in range(5)]
    return [[(hit.id, hit.score) for hit in hits] for hits in store.search(queries, k=20)]  # type: ignore[arg-type]


def restored(home: Path) -> LiveStore:
    kept = restore(home / "g0001")
    assert kept is not None
    return kept.store


def test_an_empty_disk_begins_with_the_newest_snapshot_and_only_new_segments_are_sent(
    bucket: ObjectStore, proxy: Proxy, tmp_path: Path
) -> None:
    wall, home = Clock(), tmp_path / "one"
    store, uploads = make(home=home / "g0001"), remote(bucket, home, wall)
    assert uploads.upload() is None, "there is no snapshot"
    sent: list[set[str]] = []
    for step in range(3):
        put(store, *(upsert(f"r{n}", n) for n in range(40 * step, 40 * step + 40)))
        put(store, delete(f"r{40 * step}", 1000 + step))
        settle(store)
        written(store, home, step + 1)
        wall.now += 100
        proxy.seen.clear()
        assert uploads.upload() is not None
        assert uploads.upload() is None, "it is there"
        puts = [
            path.partition("/snapshots/g0001/")[2] for method, path in proxy.seen if method == "PUT"
        ]
        assert puts[-1].partition("/heads/")[2], "what names the files comes last"
        sent.append({path for path in puts if "/segments/" in path})
    assert all(sent)
    assert not sent[0] & sent[1]
    assert not (sent[0] | sent[1]) & sent[2], "no segment is sent again"
    heads = [key for key in bucket.keys("snapshots/g0001/") if "/heads/" in key]
    assert len(heads) == 2, "the last two are kept"

    other = remote(bucket, tmp_path / "two", wall)
    assert other.restore()
    again = restored(tmp_path / "two")
    assert answers(again) == answers(store)
    assert len(again) == len(store) == 117


def test_a_damaged_snapshot_is_not_used_and_an_older_one_is(
    bucket: ObjectStore, tmp_path: Path
) -> None:
    wall, home = Clock(), tmp_path / "one"
    store, uploads = make(home=home / "g0001"), remote(bucket, home, wall)
    for step in range(2):
        put(store, *(upsert(f"r{n}", n) for n in range(10 * step, 10 * step + 10)))
        written(store, home, step + 1)
        wall.now += 100
        uploads.upload()
    newest = max(key for key in bucket.keys("snapshots/") if "/heads/" not in key)
    bucket.remove([newest])
    assert remote(bucket, tmp_path / "two", wall).restore()
    assert len(restored(tmp_path / "two")) == 10


def test_an_upload_that_is_cut_off_leaves_the_last_one_and_is_made_up_for(
    bucket: ObjectStore, proxy: Proxy, tmp_path: Path
) -> None:
    wall, home = Clock(), tmp_path / "one"
    store, uploads = make(home=home / "g0001"), remote(bucket, home, wall)
    put(store, upsert("a", 0))
    written(store, home, 1)
    uploads.upload()
    put(store, upsert("b", 1))
    written(store, home, 2)
    wall.now += 100
    with proxy.away():
        with pytest.raises(RegistryAway):
            uploads.upload()
        uploads.offer()
        uploads.stop()  # says so, and raises nothing
    bucket = ObjectStore(str(bucket), proxy.options)
    assert remote(bucket, tmp_path / "two", wall).restore()
    assert len(restored(tmp_path / "two")) == 1
    wall.now += 100
    assert remote(bucket, home, wall).upload() is not None
    shutil.rmtree(tmp_path / "two")
    assert remote(bucket, tmp_path / "two", wall).restore()
    assert len(restored(tmp_path / "two")) == 2


def test_uploads_of_a_node_that_is_gone_are_removed_in_time(
    bucket: ObjectStore, tmp_path: Path
) -> None:
    wall = Clock()
    for name in ("gone", "here"):
        store, uploads = make(home=tmp_path / name / "g0001"), remote(bucket, tmp_path / name, wall)
        put(store, upsert("a", 0))
        written(store, tmp_path / name, 1)
        uploads.upload()
    gone = (tmp_path / "gone" / "node").read_text()
    assert any(f"/{gone}/" in key for key in bucket.keys("snapshots/"))
    wall.now += FORGOTTEN_MS / 1000 + 1
    put(store, upsert("b", 1))
    written(store, tmp_path / "here", 2)
    uploads.upload()
    assert not any(f"/{gone}/" in key for key in bucket.keys("snapshots/"))
    uploads.drop()
    assert bucket.keys("snapshots/") == []
    assert not uploads.restore()


def test_it_needs_an_object_store(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, index={"upload_every_s": 60})
    with pytest.raises(ConfigError, match=r"needs model\.registry in an object store"):
        remote_snapshots_of(settings, "g0001")
    assert remote_snapshots_of(Settings(home=tmp_path), "g0001") is None


@pytest.mark.kafka
def test_a_node_with_an_empty_disk_answers_from_the_bucket(
    kafka: str, proxy: Proxy, tmp_path: Path
) -> None:
    model = {"registry": f"s3://{BUCKET}/{uuid.uuid4().hex}", "registry_options": proxy.options}
    index = {"upload_every_s": 0.5, "snapshot_every_s": 0.5}
    with Deployment(kafka, tmp_path / "one", model=model, index=index) as deployment:
        deployment.produce({"id": f"r{number}", "text": f"text {number}"} for number in range(200))
        deployment.worker("one")
        with Client(deployment.url) as client:
            first = deployment.index()
            wait_for("all are searchable", holds(client, 200), timeout=90)
            before = client.search(text="text 7", k=50)
            wait_for("an upload", said(first, "uploaded snapshots/"), timeout=60)
            first.stop(grace=30)
            second = deployment.index("other", env={"BRAID_HOME": str(tmp_path / "two")})
            wait_for("it starts", holds(client, 200), timeout=90)
            assert said(second, "restored 200 records from the snapshot")(), second.tail(50)
            after = client.search(text="text 7", k=50)
            assert after.hits == before.hits
