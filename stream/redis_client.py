"""Best-effort Redis client with a short timeout."""

from __future__ import annotations

import redis

from .settings import Settings


def best_effort_redis(settings: Settings, timeout_s: float) -> redis.Redis | None:
    """A client of the settings' Redis; None: there is none. It connects when it is first asked.

    Args:
        timeout_s: of connecting, and of each answer.
    """
    if (address := settings.redis.address) is None:
        return None
    return redis.Redis.from_url(address, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
