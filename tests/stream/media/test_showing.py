"""Thumbnails and snippets: made beside the hot path, and again when Redis has lost them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from confluent_kafka import Producer as RawProducer
from PIL import Image

import braid.stream.media.payload_writer
from braid.encoders.config import Limits
from braid.encoders.types import Embedding, TaskPrediction
from braid.index.media_cache import MediaCache
from braid.index.payloads import Payload, Payloads
from braid.index.service.hit_details import Rebuilt
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import Blob, Record, encode_record
from braid.stream.media.payload_writer import RedisShowcase
from braid.stream.media.rebuild import Rebuilder
from braid.stream.media.thumbnails import SECONDS, SIDE, snippet, thumb
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from tests.stream.conftest import picture, tone
from tests.stream.harness import Deployment

LIMITS = Limits()
PREDICTED = {"mood": "warm", "size": 2.5}


def file_of(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    media = thumb(data, LIMITS)
    assert media is not None
    assert media.type == "image/webp"
    with Image.open(io.BytesIO(media.data)) as shown:
        shown.load()
        return shown


def test_a_thumbnail_is_small() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((40, 20)).resize((1600, 900), Image.Resampling.BICUBIC)
    for format in ("PNG", "JPEG", "BMP"):
        data = file_of(smooth, format)
        assert opened(data).size == (SIDE, SIDE * 900 // 1600)
        media = thumb(data, LIMITS)
        assert media is not None
        assert len(media.data) < 16_000
    tiny = opened(file_of(Image.new("RGB", (7, 3), "red"), "PNG"))
    assert tiny.size == (7, 3)  # not blown up


def test_a_thumbnail_is_upright_and_keeps_what_is_transparent() -> None:
    lying = Image.new("RGB", (60, 30), "blue")
    lying.paste("red", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    shown = opened(file_of(lying, "JPEG", exif=exif, quality=95)).convert("RGB")
    assert shown.size == (30, 60)
    top = shown.getpixel((15, 10))
    assert isinstance(top, tuple)
    assert top[0] > 150 > 100 > top[2]  # red is on top now
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (10, 10, 30, 30))
    shown = opened(file_of(clear, "PNG"))
    assert shown.mode == "RGBA"
    assert shown.getpixel((2, 2))[3] == 0  # type: ignore[index]
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert opened(file_of(deep, "PNG")).size == (8, 8)


@pytest.mark.parametrize("data", [b"", b"no picture", picture("red")[:60], tone("red")])
def test_what_is_no_picture_has_no_thumbnail(data: bytes) -> None:
    assert thumb(data, LIMITS) is None


def test_a_picture_over_the_limit_is_not_decoded() -> None:
    data = file_of(Image.new("1", (3000, 3000)), "PNG")
    assert thumb(data, Limits(image_pixels=3000 * 3000)) is not None
    assert thumb(data, Limits(image_pixels=3000 * 3000 - 1)) is None


def test_a_snippet_is_the_beginning_and_small() -> None:
    long = snippet(tone("red", seconds=9.0), LIMITS)
    assert long is not None
    assert long.type == "audio/mpeg"
    assert len(long.data) < 40_000
    wave, rate = soundfile.read(io.BytesIO(long.data))
    assert wave.ndim == 1
    assert len(wave) / rate == pytest.approx(SECONDS, abs=0.2)
    spectrum = np.abs(np.fft.rfft(wave[rate : 2 * rate]))
    assert spectrum.argmax() == pytest.approx(300, abs=5)  # it is the same tone
    short = snippet(tone("red", seconds=0.2), LIMITS)
    assert short is not None
    for data in (b"", b"no sound", picture("red")):
        assert snippet(data, LIMITS) is None
    assert snippet(tone("red", seconds=9.0), Limits(audio_seconds=8.0)) is None


def embedding(id_: str, label: str = "warm") -> Embedding:
    tasks = {
        "mood": TaskPrediction(kind="classification", rule="weighted", label=label, prob=1.0),
        "size": TaskPrediction(kind="regression", rule="weighted", value=2.5),
        "says": TaskPrediction(kind="generation", rule="beam", text="a caption"),
    }
    return Embedding(id=id_, fused=np.zeros(2, np.float32), by={}, tasks=tasks)


def record(id_: str, **parts: Any) -> Record:
    return Record(id=id_, ts=1, **({"text": "words"} | parts))


@pytest.mark.redis
def test_the_worker_shows_what_it_embeds(valkey: str) -> None:
    payloads = Payloads(valkey)
    media_cache = MediaCache(payloads)
    showcase = RedisShowcase(valkey)
    blobs = {"image": Blob(data=picture("red")), "audio": Blob(data=tone("red"))}
    showcase.put(record("a", **blobs, labels={"n": 3, "tags": ["x", "y"]}), embedding("a"))
    showcase.put(record("b", **blobs), embedding("b"))
    showcase.put(record("c", image=Blob(data=b"broken", uri="file:///c.png")), embedding("c"))
    showcase.put(record("b", audio=blobs["audio"]), embedding("b"))  # anew, without its picture
    showcase.drop("gone")
    while showcase._media.qsize():
        pass
    showcase.close()
    assert payloads.get_many(["a", "c"]) == {
        "a": Payload(text="words", labels={"n": 3, "tags": ["x", "y"]}, predicted=PREDICTED),
        "c": Payload(text="words", uri={"image": "file:///c.png"}, predicted=PREDICTED),
    }
    assert media_cache.get("thumb", "a") == thumb(picture("red"), LIMITS)
    assert media_cache.get("snippet", "a") is not None
    assert media_cache.get("thumb", "b") is None
    assert media_cache.get("snippet", "b") is not None
    assert media_cache.get("thumb", "c") is None


@pytest.mark.redis
def test_no_room_for_media_leaves_texts_and_no_older_picture(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = Payloads(valkey)
    media_cache = MediaCache(payloads)
    old = thumb(picture("blue"), LIMITS)
    assert old is not None
    media_cache.put_many({("thumb", "a"): old})
    monkeypatch.setattr(braid.stream.media.payload_writer, "MEDIA_QUEUE_BYTES", 10)
    metrics = WorkerMetrics()
    showcase = RedisShowcase(valkey, dropped=metrics.not_shown)
    showcase.put(record("a", image=Blob(data=picture("red"))), embedding("a"))
    showcase.close()
    count = metrics.registry.get_sample_value
    assert count("braid_showcase_dropped_total", {"what": "media"}) == 1
    found = payloads.get_many(["a"])
    assert found is not None
    assert found["a"].text == "words"
    assert media_cache.get("thumb", "a") is None


@pytest.mark.redis
def test_a_budget_of_nothing_makes_nothing(valkey: str) -> None:
    showcase = RedisShowcase(valkey, media_bytes=0)
    showcase.put(record("a", image=Blob(data=picture("red"))), embedding("a"))
    showcase.close()
    assert MediaCache(Payloads(valkey)).get("thumb", "a") is None
    assert Payloads(valkey).get_many(["a"])


@pytest.fixture(scope="module")
def settings(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with Deployment(kafka, tmp_path_factory.mktemp("rebuild")) as deployed:
        yield deployed.settings


def send(settings: Settings, **parts: Any) -> tuple[int, int]:
    async def one() -> tuple[int, int]:
        async with Producer(settings) as producer:
            sent = await producer.send(**parts)
            assert sent is not None
            return sent

    return asyncio.run(one())


def rebuilt(rebuilder: Rebuilder, *places: tuple[str, int, int]) -> list[Rebuilt | None]:
    async def all_of_them() -> list[Rebuilt | None]:
        return await asyncio.gather(*(rebuilder.rebuild(*place) for place in places))

    return asyncio.run(all_of_them())


@pytest.mark.kafka
def test_a_record_is_read_back_at_its_place(settings: Settings, tmp_path: Path) -> None:
    linked = tmp_path / "linked.png"
    linked.write_bytes(picture("blue"))
    settings = settings.replace(links={"roots": [tmp_path]})
    both = send(settings, id="both", text="x", image=picture("red"), audio=tone("red"))
    link = send(settings, id="link", image=linked.as_uri(), labels={"colour": "blue"})
    away = send(settings, id="away", image=(tmp_path / "nothing.png").as_uri(), text="y")
    rebuilder = Rebuilder(settings, timeout_s=5.0)
    try:
        found = rebuilt(rebuilder, ("both", *both), ("link", *link), ("away", *away))
        first, second, third = found
        assert first is not None
        assert first.payload == Payload(text="x")
        assert first.media["thumb"] == thumb(picture("red"), LIMITS)
        assert set(first.media) == {"thumb", "snippet"}
        assert second is not None
        assert second.payload.uri == {"image": linked.as_uri()}
        assert second.payload.labels == {"colour": "blue"}
        assert second.media["thumb"] == thumb(picture("blue"), LIMITS)
        assert third is not None
        assert (third.payload.text, third.media) == ("y", {})
        again = rebuilt(rebuilder, *[("both", *both)] * 20)
        assert all(one == first for one in again)
    finally:
        rebuilder.close()


@pytest.mark.kafka
def test_what_is_gone_or_another_is_absent(settings: Settings) -> None:
    partition, offset = send(settings, id="here", text="x")
    rebuilder = Rebuilder(settings, timeout_s=1.0)
    try:
        places = [("other", partition, offset), ("here", partition, offset + 1000)]
        assert rebuilt(rebuilder, *places) == [None, None]
        assert rebuilt(rebuilder, ("here", partition, offset)) != [None]
    finally:
        rebuilder.close()
    assert rebuilt(rebuilder, ("here", partition, offset)) == [None]


def test_a_broker_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    rebuilder = Rebuilder(
        Settings(home=tmp_path, kafka={"bootstrap": "127.0.0.1:1"}), timeout_s=0.3
    )
    try:
        found = rebuilt(rebuilder, *[(f"r{n}", 0, n) for n in range(100)])
        assert found == [None] * 100  # most of them at once: only so many may wait
    finally:
        rebuilder.close()


@pytest.mark.kafka
def test_a_place_without_a_message_gives_none_of_the_next(deployment: Deployment) -> None:
    """Compaction leaves gaps, and so does the marker that ends a transaction."""
    settings = deployment.settings
    producer = RawProducer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "transactional.id": settings.prefix,
            "log_level": 0,
        }
    )
    producer.init_transactions(30)
    value = encode_record(record("same"))
    for _ in range(2):
        producer.begin_transaction()
        producer.produce(settings.topic("records"), key=b"same", value=value, partition=0)
        producer.commit_transaction(30)
    rebuilder = Rebuilder(settings, timeout_s=10.0)
    try:
        first, gap, second = rebuilt(rebuilder, *[("same", 0, offset) for offset in range(3)])
    finally:
        rebuilder.close()
    assert first == second == Rebuilt(payload=Payload(text="words"))
    assert gap is None
