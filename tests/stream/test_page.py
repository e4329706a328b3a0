"""The page in front of the whole: Kafka, a worker with a trained model, Redis, the index node."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Page, expect

from braid.index.client import Client
from braid.stream.kafka.producer import Producer
from tests.stream.conftest import coloured, picture
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.browser]

CARD = "#results .card:not(.ghost)"


def as_record(number: int) -> dict[str, Any]:
    sample = coloured(number)
    return {
        "id": sample.id,
        "text": sample.text,
        "image": sample.image,
        "audio": sample.audio,
        "labels": dict(sample.labels),
    }


@pytest.fixture
def site(kafka: str, valkey: str, tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(kafka, tmp_path, redis={"url": valkey}, kafka={"partitions": 1}) as deployed:
        yield deployed


def send_aside(deployment: Deployment, **record: Any) -> None:
    """From a thread of its own: the browser's thread already runs a loop."""

    async def send() -> None:
        async with Producer(deployment.settings) as producer:
            await producer.send(**record)

    thread = threading.Thread(target=lambda: asyncio.run(send()))
    thread.start()
    thread.join()


def test_words_a_picture_and_a_new_event(site: Deployment, tiny_model: Path, tab: Page) -> None:
    site.worker("one", model=str(tiny_model))
    site.index(model=str(tiny_model))
    for number in range(12):
        send_aside(site, **as_record(number))
    with Client(site.url) as client:
        wait_for(
            "all are searchable",
            lambda: client.ready() and client.status().records == 12,
            timeout=120,
        )
    tab.goto(site.url)
    expect(tab.locator(CARD)).to_have_count(12)
    expect(tab.locator("#c-state")).to_have_text("live")
    expect(tab.locator("#c-model")).to_have_text("tiny-0001")
    choices = tab.locator("#vector label").all_inner_texts()
    assert choices == ["Everything", "Text", "Picture", "Sound"]  # no videos: it has none

    # Words find the right picture.
    tab.fill("#words", "a red square")
    tab.keyboard.press("Enter")
    expect(tab.locator("#heading")).to_have_text("12 results")
    first = tab.locator(CARD).first
    expect(first.locator(".caption")).to_have_text(re.compile("^a red"))
    shown = first.locator("img.there")
    expect(shown).to_have_count(1)
    red, _, blue = middle(tab, shown)
    assert red > 150 > 80 > blue
    expect(first.locator(".player")).to_have_count(1)

    # A picture finds its neighbours.
    upload = FilePayload(name="mine.png", mimeType="image/png", buffer=picture("blue", 777))
    tab.keyboard.press("Escape")
    tab.set_input_files("#file", upload)
    expect(tab.locator("#heading")).to_have_text("12 results")
    captions = tab.locator(f"{CARD} .caption").all_inner_texts()
    assert all(caption.startswith("a blue") for caption in captions[:6])

    # A new event appears by itself.
    tab.keyboard.press("Escape")
    expect(tab.locator("#heading")).to_have_text("Just arrived")
    began = time.monotonic()
    send_aside(site, id="new", text="a blue patch, quite new", image=picture("blue", 5))
    newest = tab.locator(f"{CARD}[data-id=new]")
    expect(newest).to_have_count(1, timeout=2000)
    print(f"on the page {time.monotonic() - began:.2f} s after it was sent")
    expect(newest.locator(".caption")).to_have_text("a blue patch, quite new")
    expect(newest.locator("img.there")).to_have_count(1)
    expect(tab.locator("#c-records")).to_have_text("13")


def middle(tab: Page, image: Any) -> tuple[int, int, int]:
    """The colour of the pixel in the middle of an <img>."""
    rgba: list[int] = image.evaluate(
        """(image) => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const at = [canvas.width >> 1, canvas.height >> 1];
            return [...context.getImageData(...at, 1, 1).data];
        }"""
    )
    return rgba[0], rgba[1], rgba[2]
