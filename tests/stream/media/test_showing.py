"""Thumbnails and snippets: made beside the hot path, and again when Redis has lost them."""

from __future__ import annotations

import asyncio
import io
import threading
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
from braid.index.errors import BadQuery, Busy
from braid.index.media_cache import Media, MediaCache
from braid.index.payloads import Payload, Payloads
from braid.index.service.hit_details import Rebuilt
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import Blob, Record, encode_record
from braid.stream.media.payload_writer import RedisShowcase
from braid.stream.media.rebuild import READERS, WAITING, Rebuilder
from braid.stream.media.thumbnails import LARGE_SIDE, SECONDS, SIDE, snippet, thumb
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from tests.stream.conftest import picture, tone
from tests.stream.harness import Deployment

LIMITS = Limits()
PREDICTED = {"mood": "warm", "size": 2.5}
PREDICTIONS: dict[str, dict[str, Any]] = {
    "mood": {"prob": 1.0, "by": {"text": {"label": "warm", "prob": 0.75}}},
    "size": {"by": {}},
    "says": {"text": "a caption", "by": {}},
}


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
        "mood": TaskPrediction(
            kind="classification",
            rule="weighted",
            label=label,
            prob=1.0,
            by={"text": {"label": label, "prob": 0.75}},
        ),
        "size": TaskPrediction(kind="regression", rule="weighted", value=2.5),
        "says": TaskPrediction(kind="generation", rule="consensus", text="a caption"),
    }
    return Embedding(id=id_, fused=np.zeros(2, np.float32), by={}, tasks=tasks)


def record(id_: str, **parts: Any) -> Record:
    return Record(id=id_, ts=1, **({"text": "words"} | parts))


@pytest.mark.redis
def test_the_worker_shows_what_it_embeds(valkey: str) -> None:
    payloads = Payloads(valkey)
    media_cache = MediaCache(payloads)
    old = thumb(picture("blue"), LIMITS)
    assert old is not None
    media_cache.put_many({("thumb", "a"): old, ("thumb", "gone"): old, ("thumb", "other"): old})
    showcase = RedisShowcase(valkey)
    showcase.put(record("a", labels={"n": 3, "tags": ["x", "y"]}), embedding("a", "cold"))
    showcase.put(record("gone"), embedding("gone"))
    showcase.put(record("c", image=Blob(data=b"broken", uri="file:///c.png")), embedding("c"))
    showcase.put(record("a", labels={"n": 3, "tags": ["x", "y"]}), embedding("a"))
    showcase.drop("gone")
    showcase.close()
    assert payloads.get_many(["a", "c", "gone"]) == {
        "a": Payload(
            text="words",
            labels={"n": 3, "tags": ["x", "y"]},
            predicted=PREDICTED,
            predictions=PREDICTIONS,
        ),
        "c": Payload(
            text="words",
            uri={"image": "file:///c.png"},
            predicted=PREDICTED,
            predictions=PREDICTIONS,
        ),
    }
    # An older version's are dropped; the index node makes those of this one.
    assert [media_cache.get("thumb", id_) for id_ in ("a", "gone", "other")] == [None, None, old]


@pytest.mark.redis
def test_a_full_queue_drops_the_text_and_counts_it(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Event()
    monkeypatch.setattr(RedisShowcase, "_write", lambda self: writing.wait(30))
    monkeypatch.setattr(braid.stream.media.payload_writer, "QUEUE", 2)
    metrics = WorkerMetrics()
    showcase = RedisShowcase(valkey, dropped=metrics.not_shown)
    for id_ in ("a", "b", "c"):
        showcase.put(record(id_), embedding(id_))
    writing.set()
    assert metrics.registry.get_sample_value("braid_showcase_dropped_total") == 1


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
        records = rebuilt(rebuilder, ("both", *both), ("link", *link), ("away", *away))
        first, second, third = records
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
def test_one_record_is_read_back_large(settings: Settings) -> None:
    wide = file_of(Image.new("RGB", (3000, 1500), "red"), "PNG")
    words = "a long text " * 1000
    place = send(settings, id="large", text=words, image=wide, audio=tone("red", seconds=9.0))
    few = send(settings, id="few", text="x")
    rebuilder = Rebuilder(settings, timeout_s=10.0)
    try:
        shown = asyncio.run(rebuilder.enlarge("picture", "large", *place))
        assert shown is not None
        with Image.open(io.BytesIO(shown.data)) as large:
            assert large.size == (LARGE_SIDE, LARGE_SIDE // 2)
        sound = asyncio.run(rebuilder.enlarge("sound", "large", *place))
        assert sound is not None
        wave, rate = soundfile.read(io.BytesIO(sound.data))
        assert len(wave) / rate == pytest.approx(9.0, abs=0.2)  # not its first seconds only
        text = asyncio.run(rebuilder.enlarge("text", "large", *place))
        assert text == Media(data=words.encode(), type="text/plain")
        assert asyncio.run(rebuilder.enlarge("picture", "few", *few)) is None
        assert asyncio.run(rebuilder.enlarge("sound", "few", *few)) is None
        assert asyncio.run(rebuilder.enlarge("text", "other", *few)) is None
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
    with pytest.raises(Busy, match="is stopping"):
        rebuilt(rebuilder, ("here", partition, offset))


def test_a_broker_that_is_away_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    rebuilder = Rebuilder(
        Settings(home=tmp_path, kafka={"bootstrap": "127.0.0.1:1"}), timeout_s=0.3
    )

    async def all_of_them() -> list[object]:
        small = [rebuilder.rebuild(f"r{n}", 0, n) for n in range(READERS + WAITING + 5)]
        large = rebuilder.enlarge("text", "r0", 0, 0)  # with a queue of its own
        return await asyncio.gather(*small, large, return_exceptions=True)

    try:
        *small, large = asyncio.run(all_of_them())
    finally:
        rebuilder.close()
    assert all(isinstance(one, BadQuery) and one.status == 503 for one in small)
    reasons = [str(one) for one in small]
    assert sum("does not answer" in reason for reason in reasons) >= READERS
    assert ["many records" in reason for reason in reasons[-5:]] == [True] * 5
    assert "does not answer" in str(large)


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
