"""Hands the predictions of `records` over between generations, and reports what is pending.

`braid.stream.registry.handover` decides on offsets; this module reads them from the broker, for the
topic's present id.
"""

from __future__ import annotations

import logging
from typing import Any

from ..kafka.admin import Admin
from ..kafka.client import replay
from ..kafka.topics import ensure
from ..settings import Settings
from .generations import GenerationRecord
from .handover import Handovers, owned_until, owner_of
from .versions import Registry

log = logging.getLogger(__name__)

FINISH_AFTER_MS = 10_000.0  # busy partitions reach their offsets by then


def handovers_of(settings: Settings, registry: Registry) -> Handovers:
    """The registry's handovers, with their offsets in `records` as it is now.

    Raises Unreachable.
    """
    topic, _ = Admin(settings).identity(settings.topic("records"))
    return Handovers(registry.log, topic=topic)


def hand_over(settings: Settings, registry: Registry, before: str, to: str) -> None:
    """Hand predictions over to a generation, if it does not own them already.

    Raises:
        RegistryError: no handover could be made.
    """
    confirmed = Handovers(registry.log).confirmed()
    if confirmed and confirmed[-1].after == to:
        return  # done by a process that died afterwards
    partitions = ensure(settings, to, role="trainer")
    handovers = handovers_of(settings, registry)
    handovers.hand_over(before, to, lambda: _ends(settings, partitions))


def finish(settings: Settings, registry: Registry, *, now_ms: float) -> bool:
    """Hand over at their ends the partitions that have not reached their offsets for a while.

    Such a partition received records during the handover, and then too few to reach its margin.

    Returns:
        Whether the serving generation owns every future record.

    Raises:
        RegistryError: no handover could be made.
    """
    champion, handovers = registry.champion(), Handovers(registry.log)
    newest = handovers.confirmed()[-1:]
    if champion is None or not newest or newest[0].after != champion.generation:
        return not newest
    partitions = ensure(settings, champion.generation, role="trainer")
    confirmed = handovers_of(settings, registry).confirmed()
    ends = _ends(settings, partitions)
    left = [n for n, end in ends.items() if owner_of(confirmed, n, end) != champion.generation]
    if not left:
        return True
    if now_ms - (newest[0].decided_ms or 0) < FINISH_AFTER_MS:
        return False
    log.info("too few records came to %s of records: handed over at their ends", left)
    handovers_of(settings, registry).hand_over(
        newest[0].before, champion.generation, lambda: _ends(settings, partitions)
    )
    return False


def unfinished(
    settings: Settings, registry: Registry, ends: dict[int, tuple[int, int]], admin: Admin
) -> dict[str, dict[str, Any]]:
    """Partitions in which the serving generation does not own all predictions yet.

    Args:
        ends: partition of `records` -> its first offset and its end.

    Returns:
        Partition -> the generations `before` and `after`, the first offset `at` that `after`
        predicts, how many records `to_come` before it and how many `to_predict` there are.
    """
    champion = registry.champion()
    if champion is None or not Handovers(registry.log).confirmed():
        return {}
    confirmed = handovers_of(settings, registry).confirmed()
    before, after = confirmed[-1].before, champion.generation
    group = settings.group(before)
    committed = admin.committed(group, settings.topic("records"), len(ends))
    partitions = {}
    for number, (first, end) in ends.items():
        until = owned_until(confirmed, before, number)
        at = end + 1 if until is None else until
        # A group without any committed offset was deleted.
        done = max(first, committed.get(number, first if committed else end))
        to_come, to_predict = max(0, at - end), max(0, min(at, end) - done)
        if after != before and (to_come or to_predict):
            partitions[str(number)] = {
                "before": before,
                "after": after,
                "at": until,
                "to_come": to_come,
                "to_predict": to_predict,
            }
    return partitions


def return_ownership(settings: Settings, registry: Registry, entry: GenerationRecord) -> None:
    """Return predictions from a generation that did not take over to the serving one."""
    champion = registry.champion()
    confirmed = Handovers(registry.log).confirmed()
    if champion is None or not confirmed or confirmed[-1].after != entry.generation:
        return
    if champion.generation != entry.generation:
        hand_over(settings, registry, entry.generation, champion.generation)


def pending_predictions(settings: Settings, registry: Registry, generation: str) -> str | None:
    """The predictions that a non-serving generation has yet to publish; None: it may be dropped.

    Its offsets may lie beyond the ends of `records`. Records that do not exist yet are handed over
    to the serving generation. Existing ones stay its own until its group has committed them, since
    the serving generation may be past them.

    Raises:
        RegistryError: no handover could be made.
    """
    champion = registry.champion()
    if champion is None or not Handovers(registry.log).confirmed():
        return None
    admin, topic = Admin(settings), settings.topic("records")
    partitions = ensure(settings, champion.generation, role="trainer")
    handovers = handovers_of(settings, registry)

    def untils() -> dict[int, int | None]:
        confirmed = handovers.confirmed()
        return {number: owned_until(confirmed, generation, number) for number in range(partitions)}

    ends = _ends(settings, partitions)
    if any(at is None or at > ends[number] for number, at in untils().items()):
        handovers.hand_over(generation, champion.generation, lambda: _ends(settings, partitions))
    group = settings.group(generation)
    committed = admin.committed(group, topic, partitions)
    starts, stops = {}, {}
    for number, (first, end) in admin.ends(topic, partitions).items():
        starts[number] = max(first, committed.get(number, 0))
        until = untils()[number]
        if until is None or until > end:
            return f"records[{number}] ends at {end}, {generation} predicts up to {until}"
        stops[number] = until
    # Read, not computed: offsets without a record are never committed.
    for message in replay(settings, topic, start_at=starts, stop_at=stops):
        number, offset = message.partition, message.offset
        return (
            f"records[{number}]@{offset} is {generation}'s to predict, which is at offset "
            f"{starts[number]} of {stops[number]} there"
        )
    return None


def _ends(settings: Settings, partitions: int) -> dict[int, int]:
    ends = Admin(settings).ends(settings.topic("records"), partitions)
    return {number: end for number, (_, end) in ends.items()}
