"""A model of Apache Kafka with one broker: logs, transactions, consumer groups.

What it does wrong is what the real one was seen to do:

- a delayed EndTxn or TxnOffsetCommit is obeyed if its producer's epoch is the present one, whatever
  transaction is open by then (without KIP-890);
- while it starts after a kill, partitions have no leader yet: a transaction that ends then gets no
  marker there, or none for its offsets, and is complete all the same;
- messages without a marker stay open until the next marker of the same producer id, which decides
  about them too; so do offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException

from tests.simulation.kernel import Kernel

Place = tuple[str, int]
REJOIN_S = 6.0
"""How long a rebalance waits for a member."""


def refusal(code: int, *, passes: bool = False, fatal: bool = False) -> KafkaException:
    """The client's exception for an error code."""
    return KafkaException(KafkaError(code, None, fatal, passes, not passes))


@dataclass(slots=True)
class Entry:
    """One offset of a log: a message or, without a `pid` of its own to show, an end marker."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    ts: int = 0
    pid: int | None = None
    shown: bool | None = True  # None: its transaction is open
    marker: bool = False


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open: dict[int, int] = {}  # producer id -> its first message without an end marker

    @property
    def end(self) -> int:
        return len(self.entries)

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min(self.open.values(), default=self.end)

    def append(self, entry: Entry) -> None:
        if entry.pid is not None:
            entry.shown = None
            self.open.setdefault(entry.pid, self.end)
        self.entries.append(entry)

    def mark(self, pid: int, commit: bool) -> None:
        """Write an end marker: it decides about all messages of the producer id before it."""
        first = self.open.pop(pid, self.end)
        for entry in self.entries[first:]:
            if entry.pid == pid and entry.shown is None:
                entry.shown = commit
        self.entries.append(Entry(None, None, shown=False, marker=True))

    def visible(self) -> list[tuple[int, Entry]]:
        """What a read-committed consumer sees, with offsets."""
        return [(n, entry) for n, entry in enumerate(self.entries[: self.stable]) if entry.shown]


@dataclass(slots=True)
class Transaction:
    """The coordinator's state of one transactional id."""

    pid: int
    epoch: int = 0
    state: str = "empty"  # ongoing, ending, complete
    committed: bool = False  # of one that is ending or complete
    number: int = 0
    places: dict[Place | str, None] = field(default_factory=dict)  # a str: offsets of that group


@dataclass(slots=True)
class Member:
    partitions: list[int] = field(default_factory=list)
    joined: bool = False  # since the rebalance began


class Group:
    """One consumer group of `records`, with the eager protocol."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.partitions = range(partitions)
        self.members: dict[str, Member] = {}
        self.generation, self.stable = 0, True
        self.committed: dict[int, int] = {}
        self.pending: dict[int, dict[int, int]] = {}  # producer id -> offsets without a marker

    def unsettled(self) -> set[int]:
        return {number for offsets in self.pending.values() for number in offsets}

    def mark(self, pid: int, commit: bool) -> None:
        offsets = self.pending.pop(pid, {})
        if commit:
            self.committed.update(offsets)


class Broker:
    """The broker. Its methods are what a request does when it is processed; none waits."""

    def __init__(self, kernel: Kernel, partitions: int, *, transaction_timeout_s: float) -> None:
        self.kernel, self.partitions = kernel, partitions
        self.up = self.leads = True
        self.lost: set[Place | str] = set()  # gets no markers while nothing leads
        self.hidden: dict[tuple[Place, int], None] = {}  # committed by a producer, without marker
        self.logs: dict[Place, Log] = {}
        self.groups: dict[str, Group] = {}
        self.transactions: dict[str, Transaction] = {}
        self._pids, self._timeout_s = 0, transaction_timeout_s
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def log(self, topic: str, partition: int) -> Log:
        return self.logs.setdefault((topic, partition), Log())

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name, self.partitions))

    # Faults.

    def restart(self, down_s: float, leaderless_s: float, lost: Iterable[Place | str]) -> None:
        """Be killed, start again, and lose markers of `lost` until leaders are elected."""
        self.up = self.leads = False
        self.lost = set(lost)

        def started() -> None:
            self.up = True
            self.kernel.note("broker starts")
            for transaction in self.transactions.values():
                if transaction.state == "ending":
                    self._write_markers(transaction, 0.3 * leaderless_s)

        def elected() -> None:
            self.leads, self.lost = True, set()
            self.kernel.note("broker leads")
            for name in list(self._waiting):
                self.changed(name)

        self.kernel.after(down_s, started)
        self.kernel.after(down_s + leaderless_s, elected)

    def check(self, *, leader: bool = False) -> None:
        """Raises KafkaException: nothing answers, or no leader yet."""
        if not self.up:
            raise refusal(KafkaError._TRANSPORT, passes=True)
        if leader and not self.leads:
            raise refusal(KafkaError.NOT_LEADER_FOR_PARTITION, passes=True)

    def show_hidden(self) -> None:
        """As the next commit of the same producers in the same partitions would do.

        There may be none: the partition is another worker's now. Until then read-committed
        consumers wait there.
        """
        for place, pid in self.hidden:
            self.kernel.note(f"producer {pid}: shown in {place}")
            self.log(*place).mark(pid, True)
            self.changed(place[0])
        self.hidden.clear()

    # Who waits for news.

    def news(self, names: Iterable[str], wake: Callable[[], None]) -> None:
        """Call it at the next change of one of these topics and groups."""
        for name in names:
            self._waiting.setdefault(name, []).append(wake)

    def changed(self, name: str) -> None:
        for wake in self._waiting.pop(name, ()):
            self.kernel.after(self.kernel.rng.uniform(0.001, 0.05), wake)

    # Transactions.

    def init(self, id_: str) -> tuple[int, int]:
        """InitProducerId: the producer id and its next epoch. Ends what is open first."""
        self.check()
        if id_ not in self.transactions:
            self._pids += 1
            self.transactions[id_] = Transaction(self._pids, -1)
        transaction = self.transactions[id_]
        if transaction.state == "ongoing":
            transaction.epoch += 1
            self._end(transaction, commit=False)
        if transaction.state == "ending":
            raise refusal(KafkaError.CONCURRENT_TRANSACTIONS, passes=True)
        transaction.epoch += 1
        transaction.state = "empty"
        return transaction.pid, transaction.epoch

    def produce(self, id_: str, epoch: int, place: Place, entries: Iterable[Entry]) -> None:
        """AddPartitionsToTxn and Produce."""
        self.check(leader=True)
        transaction = self._begun(id_, epoch)
        transaction.places[place] = None
        for entry in entries:
            entry.pid, entry.ts = transaction.pid, int(1000 * self.kernel.wall())
            self.log(*place).append(entry)

    def send_offsets(
        self,
        id_: str,
        epoch: int,
        group: str,
        lease: tuple[int, str] | None,
        offsets: Mapping[int, int],
    ) -> None:
        """AddOffsetsToTxn and TxnOffsetCommit.

        Args:
            lease: the generation and the member; None: of a consumer that is no member.
        """
        self.check()
        transaction, members = self._begun(id_, epoch), self.group(group)
        transaction.places[group] = None
        if lease is not None and (
            lease[1] not in members.members or lease[0] != members.generation
        ):
            raise refusal(KafkaError.ILLEGAL_GENERATION)
        members.pending.setdefault(transaction.pid, {}).update(offsets)

    def end(self, id_: str, epoch: int, commit: bool) -> None:
        """EndTxn; a repeated one is answered as the first."""
        self.check()
        transaction = self._checked(id_, epoch)
        if transaction.state == "ongoing":
            self._end(transaction, commit)
        elif transaction.state == "empty" or transaction.committed != commit:
            raise refusal(KafkaError.INVALID_TXN_STATE)

    def _checked(self, id_: str, epoch: int) -> Transaction:
        transaction = self.transactions[id_]
        if epoch != transaction.epoch:
            raise refusal(KafkaError.INVALID_PRODUCER_EPOCH, fatal=True)
        return transaction

    def _begun(self, id_: str, epoch: int) -> Transaction:
        """The open transaction, which begins with this request if there is none."""
        transaction = self._checked(id_, epoch)
        if transaction.state == "ending":
            raise refusal(KafkaError.CONCURRENT_TRANSACTIONS, passes=True)
        if transaction.state != "ongoing":
            transaction.state, transaction.places = "ongoing", {}
            transaction.number += 1
            timeout_s = self._timeout_s + self.kernel.rng.uniform(0, 1)
            self.kernel.after(timeout_s, self._expire, transaction, transaction.number)
        return transaction

    def _expire(self, transaction: Transaction, number: int) -> None:
        if transaction.state != "ongoing" or transaction.number != number:
            return
        if not self.up:
            self.kernel.after(0.2, self._expire, transaction, number)
            return
        self.kernel.note(f"producer {transaction.pid}: its transaction times out")
        transaction.epoch += 1
        self._end(transaction, commit=False)

    def _end(self, transaction: Transaction, commit: bool) -> None:
        self.kernel.note(f"producer {transaction.pid}: {'commit' if commit else 'abort'}")
        transaction.state, transaction.committed = "ending", commit
        self._write_markers(transaction, 0.02)

    def _write_markers(self, transaction: Transaction, mean_s: float) -> None:
        self.kernel.after(self.kernel.rng.expovariate(1 / mean_s), self._marker, transaction)

    def _marker(self, transaction: Transaction) -> None:
        """Write the next marker; the transaction is complete after the last."""
        if not self.up or transaction.state != "ending":
            return  # begun again by the start
        if not transaction.places:
            transaction.state = "complete"
            return
        place = next(iter(transaction.places))
        if not self.leads and place not in self.lost:
            self._write_markers(transaction, 0.1)
            return
        del transaction.places[place]
        if not self.leads:
            self.kernel.note(f"producer {transaction.pid}: no marker in {place}")
            if transaction.committed and not isinstance(place, str):
                self.hidden[place, transaction.pid] = None
        elif isinstance(place, str):
            self.group(place).mark(transaction.pid, transaction.committed)
        else:
            self.log(*place).mark(transaction.pid, transaction.committed)
            self.hidden.pop((place, transaction.pid), None)
        self.changed(place if isinstance(place, str) else place[0])
        self._write_markers(transaction, 0.01)

    # Groups.

    def join(self, name: str, member: str) -> None:
        """A member joins, for the first time or again in a rebalance."""
        self.check()
        group = self.group(name)
        if member not in group.members:
            group.members[member] = Member()
            self._rebalance(group)
        group.members[member].joined = True
        self._complete(group)

    def leave(self, name: str, member: str) -> None:
        """A member leaves, or its session has expired."""
        group = self.group(name)
        if group.members.pop(member, None) is not None:
            self._rebalance(group)

    def _rebalance(self, group: Group) -> None:
        if group.stable:
            group.stable = False
            for member in group.members.values():
                member.joined = False
            self.kernel.after(REJOIN_S, self._give_up, group, group.generation)
        self._complete(group)
        self.changed(group.name)

    def _give_up(self, group: Group, generation: int) -> None:
        if group.stable or group.generation != generation:
            return
        group.members = {name: one for name, one in group.members.items() if one.joined}
        self._complete(group)

    def _complete(self, group: Group) -> None:
        """Begin the next generation once all members have joined."""
        if group.stable or not all(member.joined for member in group.members.values()):
            return
        group.generation, group.stable = group.generation + 1, True
        names = sorted(group.members)
        for number, name in enumerate(names):
            group.members[name].partitions = list(group.partitions[number :: len(names)])
        self.changed(group.name)
