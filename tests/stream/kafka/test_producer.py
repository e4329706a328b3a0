"""`braid.Producer`: what the broker does not take is an error, also where nothing is waited for."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from braid.stream.errors import Unreachable
from braid.stream.kafka.producer import Producer
from tests.stream.harness import Deployment, wait_for

pytestmark = pytest.mark.kafka


def only_small_messages(deployment: Deployment) -> None:
    """Let the broker refuse messages above 2 kB."""
    resource = ConfigResource(
        ConfigResource.Type.TOPIC,
        deployment.settings.topic("records"),
        incremental_configs=[
            ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    admin = AdminClient({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    admin.incremental_alter_configs([resource])[resource].result(20)

    async def refused() -> bool:
        async with Producer(deployment.settings) as producer:
            try:
                await producer.send(id="probe", text="x" * 5000)
            except Unreachable:
                return True
        return False

    wait_for("long messages are refused", lambda: asyncio.run(refused()), timeout=20)


def sent(deployment: Deployment, texts: dict[str, str]) -> None:
    async def send() -> None:
        async with Producer(deployment.settings) as producer:
            for id_, text in texts.items():
                while producer._pending:  # each in a batch of its own; leaving waits for the last
                    await asyncio.sleep(0.01)
                await producer.send(id=id_, text=text, wait=False)

    asyncio.run(send())


def test_what_is_refused_later_is_an_error_when_the_producer_ends(deployment: Deployment) -> None:
    only_small_messages(deployment)
    with pytest.raises(Unreachable, match=r"took 1 of 3 records .* 'long': MessageSizeTooLarge"):
        sent(deployment, {"short": "x", "long": "x" * 5000, "longer": "x" * 9000})
    sent(deployment, {"short": "x"})


def test_an_error_of_the_program_is_not_replaced(deployment: Deployment) -> None:
    only_small_messages(deployment)

    async def send() -> None:
        async with Producer(deployment.settings) as producer:
            await producer.send(id="long", text="x" * 5000, wait=False)
            raise KeyError("the program's own")

    with pytest.raises(KeyError, match="the program's own"):
        asyncio.run(send())


def test_the_memory_of_what_is_on_its_way_is_bounded(deployment: Deployment) -> None:
    async def most_pending() -> int:
        most = 0
        async with Producer(deployment.settings) as producer:
            for number in range(5000):
                await producer.send(id=f"r{number}", text="x" * 100, wait=False)
                most = max(most, len(producer._pending))
        assert not producer._pending
        return most

    # A batch of 16 kB for each of 4 partitions waits, another is on its way.
    assert asyncio.run(most_pending()) < 2000


def test_what_nobody_answers_any_more_is_not_taken(deployment: Deployment) -> None:
    async def send() -> None:
        async with Producer(deployment.settings) as producer:
            await producer.send(id="first", text="x")
            assert producer._producer is not None
            producer._producer._sender.sender_task.cancel()
            await producer.send(id="late", text="x", wait=False)

    with pytest.raises(Unreachable, match=r"took 0 of 1 records .* 'late': TimeoutError"):
        asyncio.run(send())
