"""A model of an object store, in the place of obstore's functions.

It is slow, it is away, and a conditional put that took effect may be answered by "exists already"
(its client sent it twice), by an error, or take effect long after the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from obstore.exceptions import AlreadyExistsError, GenericError

from tests.simulation.kernel import Clock, Kernel


class Bucket:
    """The objects, and every one that was ever created, in order.

    Attributes:
        away: nothing is answered.
        bad: the share of requests with a fault.
        slow: puts take seconds.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.away, self.slow, self.bad = kernel, False, False, 0.0
        self.objects: dict[str, bytes] = {}

    def create(self, key: str, content: bytes, mode: str) -> None:
        """Put, if absent. Raises AlreadyExistsError."""
        if mode == "create" and key in self.objects:
            raise AlreadyExistsError(key)
        self.objects[key] = content


class Obstore:
    """The functions of the module `obstore`, each on the bucket of the present history."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.bucket = clock, Bucket(clock.kernel)

    def put(self, _: object, key: str, content: bytes, *, mode: str = "overwrite") -> None:
        bucket, kernel = self.bucket, self.bucket.kernel
        fault = self._request()
        if bucket.slow:
            kernel.pause(kernel.rng.expovariate(1))
        if fault == "late":
            kernel.note(f"the put of {key} is delayed")
            kernel.after(kernel.rng.uniform(0, 5), self._late, key, content, mode)
            raise GenericError("no answer")
        bucket.create(key, content, mode)
        kernel.note(f"{kernel.process.name} creates {key}")
        if fault == "twice":
            raise AlreadyExistsError(key)
        if fault is not None:
            raise GenericError("no answer")

    def _late(self, key: str, content: bytes, mode: str) -> None:
        try:
            self.bucket.create(key, content, mode)
        except AlreadyExistsError:
            return
        self.bucket.kernel.note(f"the delayed {key} is created")

    def get(self, _: object, key: str) -> Any:
        if self._request() == "unanswered":
            raise GenericError("no answer")
        if key not in self.bucket.objects:
            raise FileNotFoundError(key)
        return Got(self.bucket.objects[key])

    def list(self, _: object, prefix: str) -> Iterator[list[dict[str, str]]]:
        self._request()
        yield [{"path": key} for key in self.bucket.objects if key.startswith(prefix)]

    def _request(self) -> str | None:
        """Wait for the store; the fault of a request, if it has one."""
        kernel, rng = self.bucket.kernel, self.bucket.kernel.rng
        if self.bucket.away:
            kernel.pause(0.5)
            raise GenericError("away")
        fault = None
        if rng.random() < self.bucket.bad:
            fault = rng.choice(("twice", "unanswered", "late", "slow"))
        kernel.pause(rng.expovariate(0.5 if fault == "slow" else 50))
        if self.bucket.away:
            raise GenericError("away")
        return None if fault == "slow" else fault


class Got:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def bytes(self) -> bytes:
        return self._content
