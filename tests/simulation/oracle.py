"""What must be true of a history: nothing lost, doubled, reordered or half visible; one registry.

Every visible offset of `records` has one outcome: a vector and a prediction, a deletion, or a dead
letter. Each generation makes all vectors and deletions, predictions and dead letters are made once.
An index equals the fold of the records up to its progress.
"""

from __future__ import annotations

from collections.abc import Sequence

from braid.index.files import unsealed
from braid.index.segments.live_store import LiveStore
from braid.stream.kafka.schemas import PROGRESS_KEY, decode_map, decode_vector
from braid.stream.registry.state import Champion, Event, State, fold
from braid.stream.settings import Settings
from tests.simulation.broker import Broker, Entry
from tests.simulation.store import Bucket

Where = tuple[int, int]  # partition and offset of `records`


class Oracle:
    """Sees the broker's logs and the bucket, and what processes were told."""

    def __init__(self, broker: Broker, bucket: Bucket, settings: Settings) -> None:
        self._broker, self._bucket, self._settings = broker, bucket, settings
        self._stores: dict[str, LiveStore] = {}
        self._runs: dict[str, int | None] = {}  # run -> its number; None: unknown
        self._champions: list[Champion] = []

    # What processes were told.

    def applied(self, generation: str, store: LiveStore) -> None:
        """After each apply: the index holds exactly what its progress says, or more."""
        self._stores[generation] = store
        for partition, until in store.progress.items():
            last = {entry.key: at for (_, at), entry in self._records(partition) if at < until}
            for key, at in last.items():
                entry = self._broker.log(self._records_topic, partition).entries[at]
                row = store.get((key or b"").decode())
                if entry.value is None:
                    assert row is None or row.version > at, f"{key!r} is deleted at {at}"
                elif entry.value != b"garbage":
                    later = row is not None and row.version >= at
                    assert later or self._deleted(partition, key, at), (
                        f"progress {until} of partition {partition} without {key!r} at {at}"
                    )

    def began(self, run: str) -> None:
        self._runs[run] = None

    def claimed(self, run: str, number: int) -> None:
        self._runs[run] = number

    def promoted(self, champion: Champion) -> None:
        assert all(one.seq != champion.seq for one in self._champions), f"two {champion.seq}"
        self._champions.append(champion)

    def saw(self, history: Sequence[Champion]) -> None:
        """A process's view of all champions: a beginning of the one history."""
        own = self._state().champions
        assert tuple(history) == own[: len(history)], "two histories of champions"

    # At the end.

    def complete(self, generations: Sequence[str]) -> bool:
        return not self.missing(generations)

    def missing(self, generations: Sequence[str]) -> list[str]:
        """What is not done yet."""
        left = []
        for generation in generations:
            group = self._broker.group(self._settings.group(generation))
            for number in range(self._broker.partitions):
                log = self._broker.log(self._settings.vectors_topic(generation), number)
                ends = [at + 1 for (_, at), _ in self._records(number)]
                if ends and group.committed.get(number, 0) < ends[-1]:
                    left.append(f"{generation}: {number} is at {group.committed.get(number)}")
                store = self._stores.get(generation)
                read = store.positions.get(number, 0) if store else 0
                if log.stable < log.end or any(at >= read for at, _ in log.visible()):
                    left.append(
                        f"index of {generation}: {number} is at {read}, {log.stable} of {log.end}"
                    )
        return left

    def check(self, generations: Sequence[str]) -> None:
        records = [record for n in range(self._broker.partitions) for record in self._records(n)]
        bad = {at for at, entry in records if entry.value == b"garbage"}
        deleted = {at for at, entry in records if entry.value is None}
        good = {at for at, _ in records} - bad - deleted
        for generation in generations:
            made = self._vectors(generation)
            _once(f"vectors of {generation}", made, good | deleted)
            for number in range(self._broker.partitions):
                order = [at for at in made if at[0] == number]
                assert order == sorted(order), f"vectors of {generation} are reordered"
            self._check_index(generation, records)
        _once("predictions", self._predictions(), good)
        _once("dead letters", self._letters(), bad)
        _once("deletions of parts", self._named("parts"), len(deleted))
        self._check_registry()

    def _check_index(self, generation: str, records: Sequence[tuple[Where, Entry]]) -> None:
        store, live = self._stores[generation], dict[str, int]()
        for (_, at), entry in records:
            key = (entry.key or b"").decode()
            if entry.value is None:
                live.pop(key, None)
            elif entry.value != b"garbage":
                live[key] = at
        rows = {id_: row.version for id_ in store.ids() if (row := store.get(id_)) is not None}
        assert rows == live, f"the index of {generation} holds {rows}, not {live}"

    def _check_registry(self) -> None:
        state = self._state()
        assert len({*state.claims.values()}) == len(state.claims), "a run owns two numbers"
        for run, number in self._runs.items():
            assert number is None or state.claims.get(number) == run, f"the claim of {run} is lost"
        assert set(state.claims.values()) <= self._runs.keys()
        for champion in self._champions:
            assert state.champions[champion.seq - 1] == champion, f"{champion.name} is lost"
        assert [one.seq for one in state.champions] == [*range(1, len(state.champions) + 1)]

    def _state(self) -> State:
        """The fold of the objects in the bucket."""
        state = State()
        keys = sorted(self._bucket.objects)
        assert keys == [f"log/{number:08d}.json" for number in range(1, len(keys) + 1)]
        for key in keys:
            plain = unsealed(self._bucket.objects[key], 1)
            state = fold(
                state, Event(kind=plain["kind"], at_ms=plain["at_ms"], fields=plain["fields"])
            )
        return state

    # What is visible.

    @property
    def _records_topic(self) -> str:
        return self._settings.topic("records")

    def _records(self, partition: int) -> list[tuple[Where, Entry]]:
        log = self._broker.log(self._records_topic, partition)
        return [((partition, at), entry) for at, entry in log.visible()]

    def _deleted(self, partition: int, key: bytes | None, at: int) -> bool:
        later = (entry for (_, n), entry in self._records(partition) if n > at and entry.key == key)
        return any(entry.value is None for entry in later)

    def _vectors(self, generation: str) -> list[Where]:
        made = []
        for number in range(self._broker.partitions):
            for _, entry in self._broker.log(
                self._settings.vectors_topic(generation), number
            ).visible():
                if entry.value is None:
                    made.append((number, int(dict(entry.headers)["source"] or b"")))
                elif entry.key != PROGRESS_KEY:
                    made.append((number, decode_vector(entry.value).source))
        return made

    def _predictions(self) -> list[Where]:
        made = [decode_map(entry.value or b"")["source"] for entry in self._named("predictions")]
        return [(one["partition"], one["offset"]) for one in made]

    def _letters(self) -> list[Where]:
        headers = [dict(entry.headers) for entry in self._named("dead-letters")]
        return [(int(one["partition"] or b""), int(one["offset"] or b"")) for one in headers]

    def _named(self, topic: str) -> list[Entry]:
        name = self._settings.topic(topic)
        logs = [self._broker.log(name, number) for number in range(self._broker.partitions)]
        return [entry for log in logs for _, entry in log.visible()]


def _once(what: str, made: Sequence[object], due: set[Where] | int) -> None:
    if isinstance(due, int):
        assert len(made) == due, f"{what}: {len(made)}, not {due}"
        return
    lost, extra = due - {*made}, {*made} - due
    doubled = {one for one in made if made.count(one) > 1}
    assert lost | extra | doubled == set(), (
        f"{what}: lost {lost or '-'}, must not be there {extra or '-'}, doubled {doubled or '-'}"
    )
