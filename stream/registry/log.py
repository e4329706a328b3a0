"""The registry's log: numbered events, each created once and never changed.

    log/00000001.json    {"format", "id", "kind", "at_ms", "fields", "sha256"}

Every change is one event, and every process folds the same events into the same state
(`braid.stream.registry.state`). An event takes the next number only if no other process took it: a
change is decided on the state before it, and decided again if another event came first. A process
that is killed has written its event or not; there is nothing to repair.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable

from braid.index.errors import SnapshotError
from braid.index.files import sealed_json, unsealed

from ..errors import RegistryError
from ..failpoints import Failpoints
from .state import Event, State, fold
from .store import Store

FORMAT = 1
TRIES = 30
BACKOFF_S = (0.002, 0.5)  # the first wait after a lost try, at most, and the longest

Decide = Callable[[State], "Event | None"]


class EventLog:
    """The events in a store, and their fold. Usable by several threads.

    Args:
        wall: seconds since 1970.
        sleep: as time.sleep.
    """

    def __init__(
        self,
        store: Store,
        *,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self._wall, self._sleep = wall, sleep
        self._failpoint = Failpoints.from_environment()
        self._state = State()
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(1000 * self._wall())

    def event(self, kind: str, **fields: object) -> Event:
        """An event of this moment."""
        return Event(kind=kind, at_ms=self.now_ms(), fields=json.loads(json.dumps(fields)))

    def state(self) -> State:
        """The state after all events that are there now; reads only new ones.

        Raises:
            RegistryError: an event is damaged or of another format.
        """
        with self._lock:
            if self._state.number == 0:
                self.store.check()
                self._read_all()
            while (content := self.store.get(_key(self._state.number + 1))) is not None:
                self._state = self._folded(self._state, content)
            return self._state

    def known(self) -> State:
        """The state as this process read it last, without a look at the store."""
        return self._state

    def append(self, decide: Decide) -> State:
        """Append what `decide` makes of the present state; returns the state after it.

        Args:
            decide: gives the event, or None if nothing is to be done; raises if the state does not
                allow the change. Called again if another process's event came first.

        Raises:
            RegistryError: other processes' events came first in each of TRIES tries.
        """
        wait_s, longest_s = BACKOFF_S
        for _ in range(TRIES):
            state = self.state()
            event = decide(state)
            if event is None:
                return state
            after = fold(state, event)
            self._failpoint("log-before-event")
            try:
                self.store.create(_key(after.number), _content(event))
            except FileExistsError:
                self._sleep(random.uniform(0, wait_s))
                wait_s = min(longest_s, 2 * wait_s)
                continue
            self._failpoint("log-event")
            return after
        raise RegistryError(
            f"{self.store}: other processes wrote to the log first, {TRIES} times one after "
            "another; try again"
        )

    def _read_all(self) -> None:
        for key, content in self.store.all("log/").items():
            if key != (expected := _key(self._state.number + 1)):
                raise RegistryError(f"{self.store}: {expected} is missing, {key} comes after it")
            self._state = self._folded(self._state, content)

    def _folded(self, state: State, content: bytes) -> State:
        key = _key(state.number + 1)
        try:
            plain = unsealed(content, FORMAT)
            event = Event(kind=plain["kind"], at_ms=plain["at_ms"], fields=plain["fields"])
            return fold(state, event)
        except (SnapshotError, LookupError, RegistryError) as error:
            raise RegistryError(f"{self.store}: {key} is no event of the log: {error}") from error


def _content(event: Event) -> bytes:
    return sealed_json(
        {
            "format": FORMAT,
            "id": uuid.uuid4().hex,
            "kind": event.kind,
            "at_ms": event.at_ms,
            "fields": dict(event.fields),
        }
    )


def _key(number: int) -> str:
    return f"log/{number:08d}.json"
