"""Notices of registry changes over Redis pub/sub.

A notice carries no data: the changes are in the registry and on `models`. A lost notice only delays
a process until the next poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import redis
import redis.asyncio

from ..redis_client import best_effort_redis
from ..settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0


def channel(settings: Settings) -> str:
    """The channel of all processes with the same topic prefix."""
    return f"braid:news:{settings.prefix}"


def notify(settings: Settings, key: str) -> None:
    """Publish that `key` has changed. Never raises: the topic and the poll remain."""
    client = best_effort_redis(settings, TIMEOUT_S)
    if client is None:
        return
    try:
        client.publish(channel(settings), key)
    except redis.RedisError as error:
        log.warning("no notice of %s in Redis: %s", key, error)
    finally:
        client.close()


async def listen(settings: Settings, heard: Callable[[], None]) -> None:
    """Call `heard` at each notice, until cancelled. Reconnects at the interval of the poll."""
    if (address := settings.redis.address) is None:
        return
    last_error = ""
    while True:
        client = redis.asyncio.Redis.from_url(
            address, socket_connect_timeout=TIMEOUT_S, health_check_interval=10
        )
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(channel(settings))
                heard()  # for notices before the subscription
                last_error = ""
                async for _ in subscription.listen():
                    heard()
        except redis.RedisError as error:
            if str(error) != last_error:
                log.warning("no notices from Redis, the poll goes on: %s", error)
            last_error = str(error)
        finally:
            with contextlib.suppress(redis.RedisError):
                await client.aclose()
        await asyncio.sleep(settings.model.poll_s)
