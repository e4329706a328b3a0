"""Exclusive file locks between processes: held by an open file, released when its process ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StreamError


class FileLockError(StreamError):
    """Another process holds the lock; the message has its process id, if it is known."""


@contextmanager
def file_lock(path: Path, *, what: str, timeout: float) -> Iterator[int]:
    """Hold `path` exclusively; yields its file descriptor.

    A child process that inherits the descriptor holds the lock, too, until it ends. The file is not
    removed: two processes could then lock two files of the same name.

    Args:
        path: the lock file, which is made; it contains the holder's process id.
        what: the subject of the error message, such as "the services of a home".
        timeout: seconds to wait for another holder.

    Raises:
        FileLockError: another process holds it for longer than `timeout`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 20, 0).decode("ascii", "replace") or "unknown"
                    raise FileLockError(
                        f"{what}: in use by another process (pid {holder}; lock file {path})"
                    ) from None
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
