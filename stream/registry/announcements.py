"""The `models` topic: facts for every process, read without a consumer group.

Keys are `topics` (the partition count that all share), `version/NAME`, `generation/NAME` and
`champion`. Every process reads the topic from the beginning and follows it; an agent would reach
only one worker of a group. A notice in Redis (`braid.stream.registry.notice`) shortens the delay,
and a poll of the registry is the fallback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException, Producer

from ..errors import (
    BadRecord,
    BrokerError,
    ConfigError,
    RegistryAway,
    RegistryError,
    Unreachable,
)
from ..kafka import security
from ..kafka.admin import Admin
from ..kafka.client import HOW, create, mapped, mapped_aiokafka
from ..kafka.schemas import SCHEMA_VERSION, decode_map, pack
from ..settings import Settings
from .notice import listen, notify
from .versions import Champion, Registry, registry_of

log = logging.getLogger(__name__)

T = TypeVar("T")

SAY_EVERY_S = 60.0
FIRST_MODEL = "waiting for the first model: braid retrain or braid models import makes it"

Tell = Callable[[Settings, str, Mapping[str, Any]], None]
"""Announces a fact under a key."""

TOPICS_KEY = "topics"
CHAMPION_KEY = "champion"


def announce(
    settings: Settings,
    key: str,
    value: Mapping[str, Any],
    timeout_s: float | None = None,
) -> None:
    """Write one fact to `models` and wait for the broker's acknowledgement. Raises BrokerError.

    The fact is in the registry already, so the notice in Redis is sent first.
    """
    notify(settings, key)
    timeout_s = settings.kafka.broker_timeout_s if timeout_s is None else timeout_s
    failures: list[Any] = []
    try:
        producer = create(Producer, settings, {"acks": "all", "log_level": 2})  # the error says it
        producer.produce(
            settings.topic("models"),
            key=key.encode(),
            value=pack({"v": SCHEMA_VERSION, **value}),
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        if producer.flush(timeout_s):
            raise Unreachable(f"announcing {key}: no answer from {settings.kafka.bootstrap} {HOW}")
    except KafkaException as error:
        raise mapped(error, f"announcing {key}") from error
    if failures:
        raise mapped(failures[0], f"announcing {key}")


def announce_champion(
    settings: Settings,
    champion: Champion,
    registry: Registry,
    tell: Tell = announce,
) -> None:
    """Announce the champion to every process."""
    manifest = registry.manifest(champion.name)
    tell(
        settings,
        CHAMPION_KEY,
        asdict(champion)
        | {
            "uri": registry.uri_of(champion.name),
            "sha256": manifest.files.get("model.safetensors"),
            "status": "champion",
            "metrics": manifest.metrics,
        },
    )


def announce_anew(settings: Settings, registry: Registry, tell: Tell = announce) -> None:
    """Announce the champion of the log: who promoted it may have been killed before it did.

    A promotion that comes in between is announced, too, so that the last announcement is of the
    last champion.

    Raises:
        StreamError: the broker or the registry does not answer, or the version is damaged.
    """
    announced: Champion | None = None
    while (champion := registry.champion()) not in (None, announced):
        assert champion is not None
        announce_champion(settings, champion, registry, tell)
        announced = champion


async def read_all(settings: Settings) -> dict[str, dict[str, Any]]:
    """The latest fact of each key on `models`."""
    facts: dict[str, dict[str, Any]] = {}
    async for key, value in _facts(settings, follow=False):
        facts[key] = value
    return facts


async def check_partitions(
    settings: Settings, partitions: int, *, timeout_s: float | None = None
) -> None:
    """Compare the topics' partition count with the recorded one; record it the first time.

    Raises:
        ConfigError: they differ, so ids would map to other partitions.
    """
    recorded = (await read_all(settings)).get(TOPICS_KEY, {}).get("partitions")
    if recorded is None:
        facts = {"partitions": partitions}
        await asyncio.to_thread(announce, settings, TOPICS_KEY, facts, timeout_s)
    elif recorded != partitions:
        raise ConfigError(
            f"records has {partitions} partitions, but {recorded} are recorded on "
            f"{settings.topic('models')}: ids now go to other partitions than before; make new "
            "topics under another BRAID_PREFIX and rebuild"
        )


async def follow_news(settings: Settings, look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` at once, at each notice, each fact on `models` and each poll, until cancelled.

    Errors of `look` are logged, and the next poll calls it again.
    """
    news = asyncio.Event()

    others = _OtherRegistries(settings)

    async def read() -> None:
        async for key, value in _facts(settings, follow=True):
            await asyncio.to_thread(others.warn, key, value)
            news.set()

    listener = asyncio.create_task(read())
    hearing = asyncio.create_task(listen(settings, news.set))
    last_error = ""
    try:
        while True:
            if listener.done():  # the poll continues without it
                log.error("reading %s ended: %r", settings.topic("models"), listener.exception())
                listener = asyncio.create_task(_later(read, settings.model.poll_s))
            news.clear()
            try:
                await look()
                last_error = ""
            except Exception as error:  # noqa: BLE001 (the old model continues)
                if str(error) != last_error:  # once, not at every poll
                    log.error("what is new is not taken, all goes on as it was: %s", error)
                last_error = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), settings.model.poll_s)
    finally:
        listener.cancel()
        hearing.cancel()
        await asyncio.wait({listener, hearing})  # which close their connections


async def answered(settings: Settings, call: Callable[[], T]) -> T:
    """The result of a call to the registry, on a thread; waits for an object store that is away."""
    logged_at: float | None = None
    while True:
        try:
            return await asyncio.to_thread(call)
        except RegistryAway as error:
            if logged_at is None or time.monotonic() - logged_at >= SAY_EVERY_S:
                logged_at = time.monotonic()
                log.warning("waiting for the registry: %s", error)
        await asyncio.sleep(min(1.0, settings.model.poll_s))


async def first_champion(settings: Settings, registry: Registry) -> Champion:
    """The champion; waits for the first promotion, with a log line every minute.

    An object store that is away is waited for, too. Meanwhile the announcements are read: the
    first model may be in another registry.
    """
    logged_at: float | None = None
    watching = asyncio.create_task(_warn_of_others(settings), name="other registries")
    try:
        while (champion := await answered(settings, registry.champion)) is None:
            if logged_at is None or time.monotonic() - logged_at >= SAY_EVERY_S:
                logged_at = time.monotonic()
                log.warning("no champion in the registry yet: %s", FIRST_MODEL)
            await asyncio.sleep(min(1.0, settings.model.poll_s))
    finally:
        watching.cancel()
    return champion


class _OtherRegistries:
    """Warns of champions that are announced from another registry, once of each registry."""

    def __init__(self, settings: Settings) -> None:
        self._own = registry_of(settings)
        self._warned: set[str] = set()

    def warn(self, key: str, fact: Mapping[str, Any]) -> None:
        if key != CHAMPION_KEY:
            return
        name = str(fact.get("name"))
        try:
            other = self._other(name, fact)
        except (ValueError, RuntimeError, OSError) as error:
            log.error("the announced champion %.100r is not readable: %s", name, error)
            return
        if other is None or other in self._warned:
            return
        self._warned.add(other)
        log.warning(
            "the champion %s is announced from the registry at %s, this process reads %s: "
            "give both the same home (--home or BRAID_HOME) or model.registry",
            name,
            other,
            self._own.place,
        )

    def _other(self, name: str, fact: Mapping[str, Any]) -> str | None:
        """The registry that a champion is in, if it is another one.

        Raises ValueError, RuntimeError, OSError: the fact names no file.
        """
        uri = str(fact.get("uri") or "")
        parts = urlsplit(uri)
        other = uri.rpartition("/versions/")[0]  # of REGISTRY/versions/NAME
        if parts.scheme == "file":
            folder = Path(unquote(parts.path)).parent.parent
            other = str(folder)
            if folder.resolve() == self._own.root.resolve():
                return None
        if not other or other == self._own.place:
            return None
        try:  # the same registry is elsewhere in a container
            same = self._own.manifest(name).files.get("model.safetensors") == fact.get("sha256")
        except RegistryError:
            same = False
        return None if same else other


def warn_of_other_registries(settings: Settings) -> None:
    """Log a warning if the champion is announced from another registry than the settings'.

    Without a broker that answers, nothing is done.
    """

    asyncio.run(_look(settings, _OtherRegistries(settings), follow=False))


async def _warn_of_others(settings: Settings) -> None:
    """Read the announcements as soon as there is a broker with the topic, until cancelled."""
    others = _OtherRegistries(settings)
    while True:
        await _look(settings, others, follow=True)
        await asyncio.sleep(settings.model.poll_s)


async def _look(settings: Settings, others: _OtherRegistries, *, follow: bool) -> None:
    """Warn by what is announced; nothing without a broker that answers, or without the topic."""
    with contextlib.suppress(BrokerError):
        admin = Admin(settings, timeout_s=1.0)
        # A consumer of a topic that is not there yet would make it, with other settings.
        if settings.topic("models") in await asyncio.to_thread(admin.partition_counts):
            async for key, value in _facts(settings, follow=follow):
                await asyncio.to_thread(others.warn, key, value)


async def _later(read: Callable[[], Awaitable[None]], seconds: float) -> None:
    await asyncio.sleep(seconds)
    await read()


async def _facts(settings: Settings, *, follow: bool) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The latest fact of each key up to where `models` ends now, then, to follow, the new ones."""
    partition = TopicPartition(settings.topic("models"), 0)
    consumer = AIOKafkaConsumer(
        **security.aiokafka(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        await consumer.start()
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        latest: dict[str, dict[str, Any]] = {}
        while True:
            if await consumer.position(partition) >= end:
                for key, value in latest.items():
                    yield key, value
                if not follow:
                    return
                latest = {}
            for messages in (await consumer.getmany(timeout_ms=200)).values():
                for message in messages:
                    try:
                        key = (message.key or b"").decode()
                        latest[key] = decode_map(message.value or b"\x80")
                    except (BadRecord, UnicodeDecodeError) as error:
                        log.error("models@%d is not readable: %s", message.offset, error)
    except KafkaError as error:
        where = f"{settings.kafka.bootstrap} {HOW}"
        raise mapped_aiokafka(error, f"reading models at {where}") from error
    finally:
        await consumer.stop()
