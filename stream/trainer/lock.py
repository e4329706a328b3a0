"""The trainer's lock: a key in Redis that its holder renews, or a locked file.

It keeps two trainers from training at once. It does not make a promotion safe: a trainer that was
suspended, or whose Redis was flushed, may have lost the lock without knowing. A promotion is fenced
by the registry's numbers (`Registry.promote(after=...)`): a trainer's version only succeeds the
champion that it saw when it began.

In Redis the key holds the holder's process, host, start and progress. It has no TTL, which is why
`redis.lock.Lock` is not used: a full Redis evicts keys with a TTL (`volatile-lru`). The value
begins with its end, in milliseconds of Redis's clock. Without Redis the lock is a file beside the
models, which the kernel unlocks when its holder ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import redis

from braid.index.redact import redacted

from ..errors import LockError
from ..redis_client import best_effort_redis
from ..settings import Settings

log = logging.getLogger(__name__)

LIFETIME_S = 15.0
RENEWALS = 3  # in a lifetime: one that fails does not lose the lock
TIMEOUT_S = 2.0
FILE_NAME = "trainer.lock"
LOOKS, LOOK_S = 5, 0.05


class TrainerLock:
    """The lock, as a context manager; `held` is whether this process holds it.

    Args:
        settings: with `redis.url` the lock is in Redis, else a file.
        lifetime_s: seconds without a renewal after which another trainer may take it (Redis only).
        wall: seconds since 1970.

    Raises (on entering):
        LockError: another trainer runs, and who; or Redis is set and does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lifetime_s: float = LIFETIME_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._lifetime_s = lifetime_s
        self._wall = wall
        self._state: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="trainer-lock", daemon=True)
        self.held = False

    def __enter__(self) -> TrainerLock:
        self._state = {
            "token": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since_ms": int(self._wall() * 1000),
        }
        self._lock = _lock_of(self._settings, self._lifetime_s)
        try:
            other = self._lock.claim(self._state)
        except redis.RedisError as error:
            self._lock.close()
            raise LockError(
                f"whether another trainer runs cannot be known: "
                f"{redacted(str(self._settings.redis.url))} does not answer ({redacted(error)}); "
                "without REDIS_URL a file in the models folder is the lock"
            ) from error
        if other is not None:
            self._lock.close()
            raise LockError(f"another trainer runs: {described(other)}")
        self.held = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * TIMEOUT_S)
        with contextlib.suppress(redis.RedisError):  # it expires
            self._lock.release(self._state["token"])
        self._lock.close()
        self.held = False

    def set_progress(self, **figures: Any) -> None:
        """Set the progress that the next renewal writes: run, stage, done, total, loss."""
        self._state = self._state | figures

    def renew(self) -> bool:
        """Renew the lock, as the thread does regularly; returns whether this process holds it."""
        try:
            held = self._lock.claim(self._state) is None
        except (redis.RedisError, OSError, ValueError) as error:
            log.warning("the trainer's lock is not renewed: %s", redacted(error))
            return self.held
        if self.held and not held:
            log.error(
                "another trainer took the lock while this one slept, or Redis was flushed: this "
                "run goes on, and its version is promoted only if no other was meanwhile"
            )
        self.held = held
        return held

    def _renew(self) -> None:
        while not self._stop.wait(self._lifetime_s / RENEWALS):
            self.renew()


def holder(settings: Settings) -> dict[str, Any] | None:
    """The state of the lock's holder; None: there is none, or Redis does not answer."""
    lock = _lock_of(settings, LIFETIME_S)
    try:
        return lock.look()
    except (redis.RedisError, OSError, ValueError):
        return None
    finally:
        lock.close()


def described(state: Mapping[str, Any]) -> str:
    """A holder's state as text."""
    since = datetime.fromtimestamp(int(state.get("since_ms", 0)) / 1000, UTC)
    text = f"process {state.get('pid')} on {state.get('host')} since {since:%Y-%m-%d %H:%M:%S} UTC"
    if state.get("stage"):
        text += f", {state['stage']} {state.get('done', 0)}/{state.get('total', 0)}"
    if isinstance(state.get("loss"), float):
        text += f", loss {state['loss']:.3f}"
    return text


def first_in(settings: Settings, name: str, seconds: float) -> bool:
    """Whether no other process asked for `name` within `seconds`, among those that share the
    Redis, or the home folder where there is no Redis.

    Raises:
        LockError: Redis is set and does not answer.
    """
    client = best_effort_redis(settings, TIMEOUT_S)
    if client is not None:
        try:
            with client:
                key = f"{settings.prefix}braid:once:{name}"
                return _replace(client, key, "", seconds) is None
        except redis.RedisError as error:
            url = redacted(str(settings.redis.url))
            raise LockError(f"{url} does not answer: {redacted(error)}") from error
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / f"once-{name}").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = file.read().strip()
        now = time.time()
        if last and abs(now - float(last)) < seconds:
            return False
        file.truncate(0)
        file.write(f"{now:.3f}")
        return True


class _RedisLock:
    def __init__(self, client: redis.Redis, settings: Settings, lifetime_s: float) -> None:
        self._client = client
        self._key = f"{settings.prefix}braid:trainer:{settings.model.name}"
        self._lifetime_s = lifetime_s
        self.close = client.close

    def claim(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take or renew the lock; returns the state of another holder, if there is one."""
        value, token = json.dumps(state), str(state["token"])
        other = _replace(self._client, self._key, value, self._lifetime_s, token)
        return None if other is None else dict(json.loads(other))

    def release(self, token: str) -> None:
        _replace(self._client, self._key, None, 0, token)

    def look(self) -> dict[str, Any] | None:
        value, _ = _current(self._client, self._key)
        return None if value is None else dict(json.loads(value))


def _replace(
    client: redis.Redis, key: str, value: str | None, seconds: float, token: str = ""
) -> str | None:
    """Set `key` for `seconds`, or delete it; a value with another token is returned instead.

    Optimistic locking (WATCH): repeated if another client writes the key in between.
    """

    def replace(pipe: redis.client.Pipeline) -> str | None:
        other, now_ms = _current(pipe, key)
        if other is not None and (not token or json.loads(other)["token"] != token):
            return other
        pipe.multi()
        if value is None:
            pipe.delete(key)
        else:
            pipe.set(key, f"{now_ms + max(1, int(1000 * seconds))} {value}")
        return None

    return cast("str | None", client.transaction(cast(Any, replace), key, value_from_callable=True))


def _current(client: redis.Redis, key: str) -> tuple[str | None, int]:
    """The value, None if it has expired, and Redis's clock in milliseconds."""
    seconds, micros = client.time()
    now_ms = 1000 * seconds + micros // 1000
    end_ms, _, value = cast(bytes, client.get(key) or b"0").decode().partition(" ")
    return (value if int(end_ms) > now_ms else None), now_ms


class _FileLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def claim(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take or renew the lock; returns the state of another holder, if there is one."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+")
            if not _locked(file):
                with file:
                    file.seek(0)
                    try:
                        return dict(json.loads(file.read()))
                    except ValueError:
                        who = f"it holds {self._path}"
                        raise LockError(f"another trainer runs: {who}") from None
            self._file = file
        self._file.truncate(0)
        self._file.write(json.dumps(state))
        self._file.flush()
        return None

    def release(self, token: str) -> None:
        if self._file is not None:
            self._file.truncate(0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def look(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        with self._path.open("r+") as file:
            if _locked(file, fcntl.LOCK_SH, looks=1):
                return None
            return dict(json.loads(file.read()))


def _locked(file: IO[str], mode: int = fcntl.LOCK_EX, looks: int = LOOKS) -> bool:
    """Lock the file; retried for a moment, since `look` locks it for as long."""
    for look in range(looks):
        if look:
            time.sleep(LOOK_S)
        with contextlib.suppress(OSError):
            fcntl.flock(file, mode | fcntl.LOCK_NB)
            return True
    return False


def _lock_of(settings: Settings, lifetime_s: float) -> _RedisLock | _FileLock:
    client = best_effort_redis(settings, TIMEOUT_S)
    if client is None:
        return _FileLock(settings.models_dir / FILE_NAME)
    return _RedisLock(client, settings, lifetime_s)
