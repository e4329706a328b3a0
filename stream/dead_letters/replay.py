"""Sends dead letters to their origin topic again, once each, unless the id has a newer record.

The original key and value go to the original partition, and a mark with the letter's id goes to
`dead-letters-replayed` in the same transaction: a letter that has its mark is never sent again. The
transactional id is the same for all replays: a second one fences the first and reads its marks
before it sends.

A message that is sent again has a new offset, and the offset is the record's version: an old record
would replace a newer one. So the origin is read from the letters' offsets up to just before each
transaction, and a letter whose key has a later message there is left out (`force` sends it). A
message that is produced during that transaction may still be replaced.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer

from ..errors import PublishRefused
from ..kafka.admin import Admin
from ..kafka.client import Output, create, replay
from ..kafka.schemas import MIB
from ..kafka.sink import TransactionalSink
from ..kafka.topics import ensure
from ..settings import Settings
from .letters import REPLAYED, TOPIC, DeadLetter, Selection, letter_of, letters, replayed
from .origins import MARK, Origins, Place

log = logging.getLogger(__name__)

MAX_LETTERS, MAX_BYTES = 100, 32 * MIB  # of one transaction
TRIES = 3  # of one transaction
POLL_S = 0.5
READABLE_S, WAIT_S = 10.0, 0.05  # committed messages are readable after their end markers


@dataclass(kw_only=True)
class Replay:
    """The outcome of a replay, by the letters' ids.

    Attributes:
        sent: with the new position in the origin topic.
        done: of these, processed without another dead letter.
        failed: of these, dead letters again: the new letter.
        waiting: of these, not processed within `wait_s`.
        superseded: left out, since the key has a later message.
        foreign: left out, since their origin is not a topic of braid.
        cut: left out, since the letter holds a truncated message.
        already: the number left out, since they were sent before.
    """

    sent: dict[str, Place | None] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, DeadLetter] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    already: int = 0

    def plain(self) -> dict[str, Any]:
        failed = {id: letter.plain() for id, letter in self.failed.items()}
        return vars(self) | {"sent": len(self.sent), "done": len(self.done), "failed": failed}


class Replayer:
    """Sends letters again and waits for their outcome.

    Args:
        rate: messages a second.
        force: also send letters that a later message of the same key supersedes.
        wait_s: seconds to wait for the outcomes; 0: do not wait.
        groups: origin topic -> the consumer group that processes it.
        clock, sleep: monotonic seconds, and a wait.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        groups: Mapping[str, str],
        rate: float = 50.0,
        force: bool = False,
        wait_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._groups = settings, groups
        self._rate, self._force, self._wait_s = rate, force, wait_s
        self._clock, self._sleep = clock, sleep
        self._admin = Admin(settings)
        self._origins = Origins(settings, self._admin)
        self._topic = settings.topic(TOPIC)
        self._group = f"{settings.prefix}braid-dead-letters-replay"  # and the transactional id
        self._identity, _ = self._admin.identity(self._topic)

    def run(self, selection: Selection, *, dry: bool = False) -> Replay:
        """Send the selected letters that were not sent yet.

        Args:
            dry: send nothing, only return what would be sent.

        Raises:
            Fenced: another replay was started meanwhile.
            BrokerError: the letters without a mark were not sent; run it again.
        """
        report = Replay()
        sink = None
        if not dry:
            ensure(self._settings, self._settings.generation, role="operator")
            sink = TransactionalSink(
                self._settings,
                transactional_id=self._group,
                source=self._topic,
                group=self._group,
                topics=[*self._groups, self._settings.topic(REPLAYED)],
            )
            sink.open()  # before the marks are read: settles an earlier replay
        try:
            ids = self._look(selection, report)
            ends = self._ends()
            for batch in self._batches(selection, ids):
                began = self._clock()
                before = len(report.sent)
                self._send_fresh(sink, batch, report)
                if sink is not None:
                    due_s = (len(report.sent) - before) / self._rate
                    self._sleep(max(0.0, due_s - (self._clock() - began)))
        finally:
            if sink is not None:
                sink.close()
        if sink is not None and report.sent:
            self._locate(report)
            self._await(report, ends)
        return report

    def _look(self, selection: Selection, report: Replay) -> set[str]:
        """The ids of the letters that may be sent; begins to follow their origins."""
        marks = replayed(self._settings)
        ids = set()
        for letter in letters(self._settings, selection):
            if letter.id in marks:
                report.already += 1
            elif letter.origin is None or letter.origin[0] not in self._groups:
                report.foreign.append(letter.id)
            elif letter.cut:
                report.cut.append(letter.id)
            else:
                ids.add(letter.id)
                self._origins.watch(letter)
        return ids

    def _batches(self, selection: Selection, ids: set[str]) -> Iterator[list[DeadLetter]]:
        """The letters in the order of each partition, in batches of one transaction."""
        most = min(MAX_LETTERS, max(1, math.ceil(self._rate)))
        batch: list[DeadLetter] = []
        for letter in letters(self._settings, selection) if ids else ():
            if letter.id in ids:
                batch.append(letter)
            if len(batch) == most or sum(one.size for one in batch) >= MAX_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _send_fresh(
        self, sink: TransactionalSink | None, batch: list[DeadLetter], report: Replay
    ) -> None:
        """Send the letters of a batch that may be sent; first settle an unknown outcome."""
        for attempt in range(1, TRIES + 1):
            if sink is not None:
                sink.open()  # a replay that opens its sink later fences this transaction
            self._origins.read_to_end()
            if attempt > 1:
                sent = [letter for letter in batch if self._mark(letter.id) in self._origins.sent]
                report.sent |= dict.fromkeys(letter.id for letter in sent)
                batch = [letter for letter in batch if letter not in sent]
            batch = [letter for letter in batch if not self._left_out(letter, report)]
            try:
                if sink is not None and batch:
                    self._send(sink, batch)
            except PublishRefused as error:
                if attempt == TRIES:
                    raise
                log.warning("%d dead letters are tried again: %s", len(batch), error)
            else:
                report.sent |= dict.fromkeys(letter.id for letter in batch)
                return

    def _left_out(self, letter: DeadLetter, report: Replay) -> bool:
        if self._mark(letter.id) in self._origins.sent:  # by another replay
            report.already += 1
            return True
        if self._force or not self._origins.later(letter):
            return False
        report.superseded.append(letter.id)
        return True

    def _mark(self, id: str) -> bytes:
        """A letter's unique id: a recreated topic begins with the same positions."""
        return f"{self._identity}/{id}".encode()

    def _send(self, sink: TransactionalSink, batch: list[DeadLetter]) -> None:
        """The original messages and their marks, in one transaction."""
        outputs, offsets = [], {}
        for letter in batch:
            message = letter.message
            assert letter.origin is not None
            topic, partition, _ = letter.origin
            outputs.append(
                Output(
                    topic=topic,
                    partition=partition,
                    key=message.key,
                    value=message.value,
                    headers=[(MARK, self._mark(letter.id))],
                )
            )
            marks, mark = self._settings.topic(REPLAYED), self._mark(letter.id)
            outputs.append(Output(topic=marks, partition=0, key=mark, value=b"\x80"))
            offsets[message.partition] = message.offset + 1
        # The transaction needs a group; this one has no members, and its offsets are not used.
        member = create(Consumer, self._settings, {"group.id": self._group})
        try:
            lease = member.consumer_group_metadata()
            sink.publish(outputs, offsets=offsets, lease=lease)
        finally:
            member.close()
        log.info("%d dead letters sent again", len(batch))

    def _locate(self, report: Replay) -> None:
        """Find the positions of the sent messages."""
        deadline = self._clock() + READABLE_S
        while True:
            self._origins.read_to_end()
            report.sent = {id: self._origins.sent.get(self._mark(id)) for id in report.sent}
            if None not in report.sent.values() or self._clock() >= deadline:
                return
            self._sleep(WAIT_S)

    def _await(self, report: Replay, ends: Mapping[int, int]) -> None:
        """Check the sent messages: their group has passed them, or they are dead letters again."""
        open_ = {place: id for id, place in report.sent.items() if place is not None}
        deadline = self._clock() + self._wait_s
        while open_:
            passed = self._passed()  # before the letters are read: these are committed together
            until = self._ends()
            for message in replay(self._settings, self._topic, start_at=ends, stop_at=until):
                letter = letter_of(message)
                if letter.origin is not None and letter.origin in open_:
                    report.failed[open_.pop(letter.origin)] = letter.without_value()
            ends = until
            for place in [place for place in open_ if place[2] < passed.get(place[:2], 0)]:
                report.done.append(open_.pop(place))
            if self._clock() >= deadline:
                break
            if open_:
                self._sleep(POLL_S)
        unknown = [id for id, place in report.sent.items() if place is None]
        report.waiting = sorted([*open_.values(), *unknown])

    def _passed(self) -> dict[tuple[str, int], int]:
        """The committed offsets of the groups, by origin topic and partition."""
        counts = self._admin.partition_counts()
        return {
            (topic, number): offset
            for topic, group in self._groups.items()
            if topic in counts
            for number, offset in self._admin.committed(group, topic, counts[topic]).items()
        }

    def _ends(self) -> dict[int, int]:
        return {number: end for number, (_, end) in self._admin.ends(self._topic).items()}
