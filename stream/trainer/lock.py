"""The trainer's lock: a key in Redis with a TTL that its holder renews, or a locked file.

The lock keeps two trainers from wasting the machine on the same thing. It is not what keeps a model
safe: a trainer that slept through its lock's end, or whose Redis was flushed, still thinks that it
holds it. That is what the registry's numbers are for: a trainer may only create the champion file
that comes after the one it saw when it began (`Registry.promote(after=...)`).

In Redis the key holds who trains, since when and how far; the holder renews it while it lives.
The keys here have no TTL: their value begins with when they end, by Redis's clock. A Redis that is
full may evict keys with a TTL (`volatile-lru`), and these must stay.
Without Redis it is a file beside the models, which the kernel unlocks when its holder ends.
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
from types import TracebackType
from typing import IO, Any, cast

import redis

from braid.index.redact import redacted

from ..errors import LockError
from ..settings import Settings

log = logging.getLogger(__name__)

LIFETIME_S = 15.0
RENEWALS = 3  # in a lifetime, so that one that is late or lost does not end it
TIMEOUT_S = 2.0
FILE_NAME = "trainer.lock"
LOOKS, LOOK_S = 5, 0.05

# Values are "END_MS", and for the lock a space and JSON after it. Only its holder may renew or
# remove the lock. 1: it is ours.
_NOW = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function current(key)
  local ends, state = string.match(redis.call('get', key) or '', '^(%d+) ?(.*)$')
  if ends and tonumber(ends) > now then return state end
  return false
end
local function put(key, state, ms)
  redis.call('set', key, string.format('%.0f %s', now + tonumber(ms), state))
end
"""
_LOOK = f"{_NOW} return current(KEYS[1])"
_ONCE = f"""{_NOW}
if current(KEYS[1]) then return 0 end
put(KEYS[1], '', ARGV[1])
return 1
"""
_TAKE = f"""{_NOW}
if current(KEYS[1]) then return 0 end
put(KEYS[1], ARGV[1], ARGV[2])
return 1
"""
_RENEW = f"""{_NOW}
local state = current(KEYS[1])
if state and cjson.decode(state)['token'] ~= ARGV[1] then return 0 end
put(KEYS[1], ARGV[2], ARGV[3])
return 1
"""
_RELEASE = f"""{_NOW}
local state = current(KEYS[1])
if state and cjson.decode(state)['token'] == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class TrainerLock:
    """The lock, as a context manager. `tell` says how far the trainer is; `held` whether it holds.

    Args:
        settings: `redis_url` decides which of the two it is; `models_dir` and `prefix` name it.
        lifetime_s: after so long without a renewal another may take it (Redis only).
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
        self._guard = threading.Lock()
        self._state: dict[str, Any] = {}
        self._lock: _RedisLock | _FileLock | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.held = False

    def __enter__(self) -> TrainerLock:
        self._state = {
            "token": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since_ms": int(self._wall() * 1000),
        }
        lock = _lock_of(self._settings, self._lifetime_s)
        lock.take(self._state)
        self._lock, self.held = lock, True
        self._thread = threading.Thread(target=self._renew, name="trainer-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT_S)
        if self._lock is not None:
            self._lock.release(self._state["token"])
        self.held = False

    def tell(self, **figures: Any) -> None:
        """What the next renewal shows: run, stage, done, total, loss."""
        with self._guard:
            self._state.update(figures)

    def renew(self) -> bool:
        """Renew it now; whether it is (again) ours. The thread does so by itself."""
        with self._guard:
            state = dict(self._state)
        assert self._lock is not None
        try:
            held = self._lock.renew(state)
        except redis.RedisError as error:
            log.warning("the trainer's lock is not renewed, Redis does not answer: %s", error)
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
            try:
                self.renew()
            except OSError as error:
                log.warning("the trainer's lock is not renewed: %s", error)


def holder(settings: Settings) -> dict[str, Any] | None:
    """Who trains now, since when and how far; None: nobody, or it cannot be known."""
    lock = _lock_of(settings, LIFETIME_S)
    try:
        return lock.look()
    except (redis.RedisError, OSError, ValueError):
        return None
    finally:
        lock.close()


def described(state: Mapping[str, Any]) -> str:
    """Who trains, for a person."""
    since = datetime.fromtimestamp(int(state.get("since_ms", 0)) / 1000, UTC)
    text = f"process {state.get('pid')} on {state.get('host')} since {since:%Y-%m-%d %H:%M:%S} UTC"
    if state.get("stage"):
        text += f", {state['stage']} {state.get('done', 0)}/{state.get('total', 0)}"
    if isinstance(state.get("loss"), float):
        text += f", loss {state['loss']:.3f}"
    return text


def first_in(settings: Settings, name: str, seconds: float) -> bool:
    """Whether this process is the first to ask for `name` within `seconds`, among all that share
    the Redis, or, without one, the home folder.

    Raises:
        LockError: Redis is set and does not answer.
    """
    if settings.redis_url is not None:
        try:
            with _client(settings.redis_url) as client:
                key = f"{settings.prefix}braid:once:{name}"
                return bool(client.eval(_ONCE, 1, key, str(max(1, int(seconds * 1000)))))
        except redis.RedisError as error:
            url = redacted(settings.redis_url)
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
    def __init__(self, url: str, key: str, lifetime_s: float) -> None:
        self._url = redacted(url)
        self._client = _client(url)
        self._key = key
        self._lifetime_ms = int(lifetime_s * 1000)

    def take(self, state: Mapping[str, Any]) -> None:
        try:
            taken = self._client.eval(
                _TAKE, 1, self._key, json.dumps(state), str(self._lifetime_ms)
            )
            other = None if taken else self.look()
        except redis.RedisError as error:
            self._client.close()
            raise LockError(
                f"whether another trainer runs cannot be known: {self._url} does not answer "
                f"({redacted(error)}); without REDIS_URL a file in the models folder is the lock"
            ) from error
        if not taken:
            self._client.close()
            who = described(other) if other else "it has just ended; try again"
            raise LockError(f"another trainer runs: {who}")

    def renew(self, state: Mapping[str, Any]) -> bool:
        arguments = [str(state["token"]), json.dumps(state), str(self._lifetime_ms)]
        return bool(self._client.eval(_RENEW, 1, self._key, *arguments))

    def release(self, token: str) -> None:
        with contextlib.suppress(redis.RedisError):  # it fades by itself
            self._client.eval(_RELEASE, 1, self._key, token)
        self.close()

    def close(self) -> None:
        self._client.close()

    def look(self) -> dict[str, Any] | None:
        raw = cast("bytes | None", self._client.eval(_LOOK, 1, self._key))
        return None if raw is None else dict(json.loads(raw))


class _FileLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def take(self, state: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        if not _locked(file):
            with file:
                file.seek(0)
                content = file.read()
            try:
                who = described(json.loads(content))
            except ValueError:
                who = f"it holds {self._path}"
            raise LockError(f"another trainer runs: {who}")
        self._file = file
        self.renew(state)

    def renew(self, state: Mapping[str, Any]) -> bool:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(json.dumps(state))
        self._file.flush()
        return True

    def release(self, token: str) -> None:
        if self._file is not None:
            self._file.truncate(0)
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def look(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        with self._path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return dict(json.loads(file.read()))
        return None


def _locked(file: IO[str]) -> bool:
    """Lock it; tried for a moment, since whoever looks holds it that long."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(LOOK_S)
        else:
            return True
    return False


def _lock_of(settings: Settings, lifetime_s: float) -> _RedisLock | _FileLock:
    if settings.redis_url is not None:
        key = f"{settings.prefix}braid:trainer:{settings.model_name}"
        return _RedisLock(settings.redis_url, key, lifetime_s)
    return _FileLock(settings.models_dir / FILE_NAME)


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
