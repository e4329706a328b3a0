"""A registry in an object store: Amazon S3 and others with its API, Google Cloud Storage, Azure.

An event is created by a conditional put (create if absent). Its answer may be lost: whether it took
effect is then seen by reading the event back, since every event has an id of its own. Credentials
come from the environment, under the names that each store's own tools use.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braid.index.files import sync_folder, synced
from braid.index.redact import redacted

from ..errors import ConfigError, RegistryAway, RegistryError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "az")
REQUEST_S = 5.0  # of an event or a manifest
TRANSFER_S = 60.0  # of a part of a version's file
CONNECT_S = 3.0
UPLOAD_S = 600.0  # how long an upload waits for a store that is away
RESOLVE_S = 60.0  # how long a put without an answer is tried again
PAUSE_S = (0.1, 5.0)  # the first pause after a failure, and the longest
READERS = 16


class ObjectStore:
    """Objects below a prefix of a bucket.

    After a failure, calls fail at once until a pause is over, which doubles with each: a worker
    that looks before each publication does not wait for a store that is away.

    Args:
        url: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
        options: of obstore's store for this scheme, such as endpoint and region.
        resolve_s: how long `create` tries to learn whether it took effect.
        clock, sleep: monotonic seconds; as time.sleep.

    Raises:
        ConfigError: obstore is not installed, or refuses the address or an option.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, str] | None = None,
        *,
        resolve_s: float = RESOLVE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._resolve_s, self._clock, self._sleep = resolve_s, clock, sleep
        self._small = _client(url, options or {}, REQUEST_S)
        self._large = _client(url, options or {}, TRANSFER_S)
        self._pause_s, self._away_until, self._why = PAUSE_S[0], 0.0, ""

    def __str__(self) -> str:
        return self._url

    def check(self) -> None:
        return None

    def create(self, key: str, content: bytes) -> None:
        """Create an object; its content must be unlike any other's.

        Raises:
            FileExistsError: there is another one of this key.
            RegistryAway: no answer for `resolve_s`; whether it took effect is not known.
        """
        until, told = self._clock() + self._resolve_s, False
        while not self._created(key, content):
            if self._clock() >= until:
                raise RegistryAway(f"{self._why}; whether {key} was written is not known")
            if not told:
                log.warning("%s; trying again, up to %g s", self._why, self._resolve_s)
            told = True
            self._sleep(max(0.0, self._away_until - self._clock()))

    def _created(self, key: str, content: bytes) -> bool:
        """One try; False: no answer. Raises FileExistsError."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._answering(f"creating {key}"):
                try:
                    obstore.put(self._small, key, content, mode="create")
                except (AlreadyExistsError, PreconditionError):
                    if self.get(key) != content:  # else an earlier try took effect
                        raise FileExistsError(key) from None
        except RegistryAway:
            return False
        return True

    def get(self, key: str) -> bytes | None:
        """An object's content; None: there is none of this key. Raises RegistryAway."""
        import obstore

        with self._answering(f"reading {key}"):
            try:
                return bytes(obstore.get(self._small, key).bytes())
            except FileNotFoundError:
                return None

    def all(self, prefix: str) -> dict[str, bytes]:
        """The contents of all objects below a prefix, by key. Raises RegistryAway."""
        keys = sorted(self.keys(prefix))
        with ThreadPoolExecutor(READERS) as pool:
            contents = pool.map(self.get, keys)
            return {k: content for k, content in zip(keys, contents, strict=True) if content}

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix. Raises RegistryAway."""
        import obstore

        with self._answering(f"listing {prefix}"):
            chunks = obstore.list(self._small, prefix)
            return [str(item["path"]) for chunk in chunks for item in chunk]

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, in parts if it is large. Raises RegistryAway."""
        import obstore

        with self._answering(f"uploading {key}"):
            obstore.put(self._large, key, path)

    def fetch_file(self, key: str, path: Path) -> None:
        """Download an object into a new file, fsynced. Raises RegistryError: there is none."""
        import obstore

        with self._answering(f"downloading {key}"):
            try:
                chunks = obstore.get(self._large, key)
            except FileNotFoundError:
                raise RegistryError(f"{self}: {key} is missing") from None
            with synced(path) as file:
                for chunk in chunks:
                    file.write(chunk)
        sync_folder(path.parent)

    def delete(self, prefix: str) -> None:
        """Delete all objects below a prefix. Raises RegistryAway."""
        if keys := self.keys(prefix):
            self.remove(keys)

    def remove(self, keys: list[str]) -> None:
        """Delete these objects. Raises RegistryAway."""
        import obstore

        with self._answering(f"deleting {keys[0]}"):
            obstore.delete(self._small, keys)

    def sweep(self) -> None:
        return None

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Maps obstore's errors, and pauses after a failure."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        if self._clock() < self._away_until:
            raise RegistryAway(self._why)
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise RegistryError(f"{self}: {what}: not allowed: {_short(error)}") from error
        except FileNotFoundError as error:
            raise RegistryError(f"{self}: {what}: no such bucket: {_short(error)}") from error
        except (BaseError, OSError) as error:
            if isinstance(error, FileExistsError):
                raise
            self._why = f"{self}: {what} failed: {_short(error)}"
            self._away_until = self._clock() + self._pause_s
            self._pause_s = min(PAUSE_S[1], 2 * self._pause_s)
            raise RegistryAway(self._why) from error
        self._pause_s = PAUSE_S[0]


def put_waiting(
    store: ObjectStore,
    key: str,
    path: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Upload a file; a store that is away is waited for, UPLOAD_S at most. Raises RegistryAway."""
    until, wait_s = clock() + UPLOAD_S, 0.2
    while True:
        try:
            return store.put_file(key, path)
        except RegistryAway as error:
            if clock() >= until:
                raise
            log.warning("%s; trying again", error)
            sleep(wait_s)
            wait_s = min(10.0, 2 * wait_s)


def _client(url: str, options: Mapping[str, str], timeout_s: float) -> Client:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise ConfigError(
            f"{url}: the package obstore is not installed (pip install 'braid-stream[cloud]')"
        ) from error
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=timeout_s),
        "connect_timeout": timedelta(seconds=CONNECT_S),
    }
    plain = dict(options)
    if (allow_http := plain.pop("allow_http", None)) is not None:
        client["allow_http"] = allow_http == "true"
    retry: dict[str, Any] = {"max_retries": 1, "retry_timeout": timedelta(seconds=timeout_s)}
    try:
        return from_url(url, config=plain, client_options=client, retry_config=retry)  # type: ignore[arg-type, call-overload, no-any-return, unused-ignore]
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"model.registry: {_short(error)}") from error


def _short(error: Exception) -> str:
    """The first line: what follows are the internals of the client."""
    return str(redacted(str(error).partition("\n")[0]))[:300]
