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
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException, Producer

from ..errors import BadRecord, ConfigError, RegistryError, Unreachable
from ..kafka.client import client_config, mapped
from ..kafka.schemas import SCHEMA_VERSION, decode_map, pack
from ..settings import Settings
from .notice import listen, notify
from .versions import Champion, Registry

log = logging.getLogger(__name__)

SAY_EVERY_S = 60.0

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
        producer = Producer(client_config(settings) | {"acks": "all"})
        producer.produce(
            settings.topic("models"),
            key=key.encode(),
            value=pack({"v": SCHEMA_VERSION, **value}),
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        if producer.flush(timeout_s):
            raise Unreachable(f"announcing {key}: no answer from {settings.kafka.bootstrap}")
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
            "uri": registry.path(champion.name).as_uri(),
            "sha256": manifest.files.get("model.safetensors"),
            "status": "champion",
            "metrics": manifest.metrics,
        },
    )


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

    async def read() -> None:
        async for _ in _facts(settings, follow=True):
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


async def first_champion(settings: Settings, registry: Registry) -> Champion:
    """The champion; waits for the first promotion, with a log line every minute."""
    said_at: float | None = None
    while (champion := await asyncio.to_thread(registry.champion)) is None:
        if said_at is None or time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            log.warning("no champion in the registry yet: waiting for `braid retrain`")
        await asyncio.sleep(min(1.0, settings.model.poll_s))
    return champion


async def _later(read: Callable[[], Awaitable[None]], seconds: float) -> None:
    await asyncio.sleep(seconds)
    await read()


async def _facts(settings: Settings, *, follow: bool) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    partition = TopicPartition(settings.topic("models"), 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        await consumer.start()
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while follow or await consumer.position(partition) < end:
            for messages in (await consumer.getmany(timeout_ms=200)).values():
                for message in messages:
                    try:
                        yield (message.key or b"").decode(), decode_map(message.value or b"\x80")
                    except (BadRecord, UnicodeDecodeError) as error:
                        log.error("models@%d is not readable: %s", message.offset, error)
    except KafkaError as error:
        raise Unreachable(f"reading models at {settings.kafka.bootstrap}: {error!r}") from error
    finally:
        await consumer.stop()


__all__ = [
    "CHAMPION_KEY",
    "Tell",
    "RegistryError",
    "announce",
    "announce_champion",
    "check_partitions",
    "first_champion",
    "follow_news",
    "read_all",
]
