"""The notice in Redis: heard at once, missed without harm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from braid.stream.local.child import free_port
from braid.stream.registry.announcements import follow_news
from braid.stream.registry.notice import channel, notify
from braid.stream.settings import Settings

pytestmark = pytest.mark.redis

FOR_EVER_S = 3600.0


def settings_with(url: str, home: Path) -> Settings:
    """No broker listens here: only the notice can bring news before the poll."""
    return Settings(
        home=home,
        redis={"url": url},
        prefix=f"{home.name}-",
        model={"poll_s": FOR_EVER_S},
        kafka={"bootstrap": f"127.0.0.1:{free_port()}"},
    )


def test_a_notice_alone_makes_a_process_look(valkey: str, tmp_path: Path) -> None:
    asyncio.run(_heard(settings_with(valkey, tmp_path)))


async def _heard(settings: Settings) -> None:
    assert settings.redis.url is not None
    looks = asyncio.Queue[None]()

    async def look() -> None:
        looks.put_nowait(None)

    following = asyncio.create_task(follow_news(settings, look))
    try:
        await asyncio.wait_for(looks.get(), 30)
        with redis.Redis.from_url(settings.redis.url) as client:
            for _ in range(200):  # it listens
                if client.pubsub_numsub(channel(settings))[0][1] == 1:
                    break
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        while not looks.empty():  # what it saw as it began to listen
            looks.get_nowait()
        await asyncio.to_thread(notify, settings, "champion")
        await asyncio.wait_for(looks.get(), 30)
    finally:
        following.cancel()


def test_one_prefix_does_not_hear_another(valkey: str, tmp_path: Path) -> None:
    ours = settings_with(valkey, tmp_path)
    theirs = ours.replace(prefix="another-")
    with redis.Redis.from_url(valkey) as client, client.pubsub() as subscription:
        subscription.subscribe(channel(ours))
        notify(theirs, "champion")
        notify(ours, "version/braid-0002")
        heard: list[bytes] = []
        while not heard:
            message = subscription.get_message(ignore_subscribe_messages=True, timeout=1.0)
            heard += [message["data"]] if message else []
    assert heard == [b"version/braid-0002"]


def test_without_redis_nobody_is_told_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = settings_with(f"redis://127.0.0.1:{free_port()}", tmp_path)
    notify(away, "champion")
    assert "no notice of champion in Redis" in caplog.text
    caplog.clear()
    notify(away.replace(redis={"url": None}), "champion")
    assert not caplog.text
