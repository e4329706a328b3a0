"""Redis with TLS, a user and a password, and Milvus with TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from braid.index.errors import StoreError
from braid.index.milvus.client import connect
from braid.index.payloads import Payload, Payloads
from braid.stream.cli.reports import doctor
from braid.stream.errors import LockError
from braid.stream.local.child import free_port
from braid.stream.local.secured import Authority, SecuredRedis, Users
from braid.stream.monitoring.heartbeat import Heartbeat, workers
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.registry.notice import listen, notify
from braid.stream.settings import Settings
from braid.stream.trainer.lock import TrainerLock
from tests.conftest import missing, started
from tests.index.lite import opened
from tests.tls_proxy import tls_in_front_of

WRONG = "hush-7f3a9c"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    folder = tmp_path_factory.mktemp("secured-redis")
    redis = SecuredRedis(
        folder / "redis",
        authority=Authority(folder / "certificates"),
        users=Users(folder / "users", ["braid"]),
        user="braid",
    )
    if not redis.tls:
        missing("no redis-server or valkey-server with TLS is installed (apt-get: redis-server)")
    try:
        yield started(redis)
    finally:
        redis.stop(0)


def settings_of(server: SecuredRedis, home: Path, **changed: object) -> Settings:
    return Settings(
        home=home,
        redis={**server.settings(), **changed},
        kafka={"bootstrap": f"127.0.0.1:{free_port()}", "broker_timeout_s": 1},
    )


@pytest.mark.slow
@pytest.mark.redis
def test_everything_in_redis_works_with_tls_and_a_password(
    server: SecuredRedis, tmp_path: Path
) -> None:
    settings = settings_of(server, tmp_path)
    assert settings.redis.url is not None
    assert settings.redis.url.startswith("rediss://")
    Heartbeat(settings, "w0", WorkerMetrics()).beat("g0001", [0], {})
    assert list(workers(settings) or {}) == ["w0"]
    payloads = Payloads(settings.redis.address)
    assert payloads.add("a", Payload(text="a red bird"))
    assert payloads.get_many(["a"]) == {"a": Payload(text="a red bird")}
    with TrainerLock(settings), pytest.raises(LockError, match="another trainer runs"):
        TrainerLock(settings).__enter__()

    async def heard() -> None:
        calls = asyncio.Queue[None]()
        listener = asyncio.create_task(listen(settings, lambda: calls.put_nowait(None)))
        await asyncio.wait_for(calls.get(), 60)  # subscribed
        await asyncio.to_thread(notify, settings, "champion")
        await asyncio.wait_for(calls.get(), 60)
        listener.cancel()
        await asyncio.wait([listener])
        await asyncio.sleep(0.5)  # TLS says goodbye; an unclosed connection warns in another test

    asyncio.run(heard())
    assert doctor(settings)["redis"] == {"ok": True, "says": f"{settings.redis.url} answers"}


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"password_file": None, "password": WRONG}, "WRONGPASS|invalid username-password"),
        ({"ca": None}, "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
    ],
)
def test_what_redis_refuses_is_named(
    server: SecuredRedis, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    settings = settings_of(server, tmp_path, **changed)
    check = doctor(settings)["redis"]
    assert not check["ok"]
    assert any(word in check["says"] for word in words.split("|"))
    with pytest.raises(LockError, match=words) as caught:
        TrainerLock(settings).__enter__()
    assert WRONG not in check["says"] + str(caught.value)


@pytest.mark.slow
def test_milvus_is_reached_by_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Milvus Lite behind a listener that ends TLS: with the authority's file and not without."""
    path = tmp_path / "lite.db"
    authority = Authority(tmp_path / "certificates")
    certificate = authority.issue("milvus", hosts=["127.0.0.1", "localhost"])
    caplog.set_level(logging.CRITICAL, logger="pymilvus")
    with opened(path):
        from milvus_lite.server_manager import server_manager_instance

        port = int(str(server_manager_instance.start_and_get_uri(str(path))).rpartition(":")[2])
        with tls_in_front_of(
            port, certificate, protocol="h2", log=tmp_path / "proxy.log"
        ) as secured:
            uri = f"https://localhost:{secured}"
            client = connect(uri, token=f"root:{WRONG}", ca=authority.certificate)
            assert client.list_collections() == []
            client.close()
            # Under another name: pymilvus shares connections to one address.
            uri = f"https://127.0.0.1:{secured}"
            with pytest.raises(StoreError, match=r"connecting to https://127") as caught:
                connect(uri, token=f"root:{WRONG}", timeout_s=2)
            assert WRONG not in str(caught.value)
