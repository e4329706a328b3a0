"""`braid bench`: what this machine does with a version, and which settings to change."""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, WorkerError
from ..registry.versions import registry_of
from ..settings import Settings
from .common import AsJson, bar

if TYPE_CHECKING:
    from collections import deque

    from braid.encoders.types import Model, Prepared, Sample

SIZES = (1, 8, 32, 128, 512)  # records in one micro-batch
RATE_S = 3.0  # per size
STREAM_S = 600.0
ENOUGH = 0.95  # of the best rate
Progress = Callable[[str, int, int, Mapping[str, float]], None]


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def bench(
        context: typer.Context,
        model: Annotated[
            str | None, typer.Option(help="A model folder or a version's name; else the champion.")
        ] = None,
        data: Annotated[
            Path | None, typer.Option(help="A folder of your own files; else made-up records.")
        ] = None,
        records: Annotated[int, typer.Option(min=8, max=100_000, help="At most so many.")] = 300,
        as_json: AsJson = False,
    ) -> None:
        """Measure this machine: records a second of preparing, of encoding by modality and size of
        the micro-batch, and of a worker behind Kafka; and say which setting to change.

        Kafka is that of the settings, else an embedded one. Topics of its own, deleted at the end.

        Example: braid bench --records 300
        """
        settings = settings_of(context)
        with bar("bench", as_json) as progress:
            report = measure(settings, _folder(settings, model), data, records, progress)
        print(json.dumps(report) if as_json else "\n".join(lines(report)), flush=True)


def measure(
    settings: Settings, version: str | Path, data: Path | None, records: int, progress: Progress
) -> dict[str, Any]:
    """The report of one version on this machine.

    Raises:
        ConfigError: the data has nothing that the version encodes.
        WorkerError: the worker ended, or takes longer than STREAM_S.
    """
    from braid.encoders import Sample, load

    from ..media.thumbnails import isolated_decoding

    model = load(version, **settings.loading)
    samples = _given(data, records) if data else list(_made(model.modalities, records))
    with isolated_decoding(settings):
        modalities: dict[str, Any] = {}
        for name in model.modalities:
            alone = [
                Sample(id=sample.id, **{name: getattr(sample, name)})
                for sample in samples
                if name in sample.present
            ]
            if alone:
                progress(f"encode {name}", 0, 0, {})
                modalities[name] = _modality(settings, model, alone)
        if not modalities:
            raise ConfigError(
                f"--data: nothing in {data} that {model.name} encodes"
                if data
                else f"{model.name} encodes videos alone: give some with --data"
            )
        progress("embed", 0, 0, {})
        offline = len(samples) / _offline(settings, model, samples)
        progress("stream", 0, 0, {})
        stream = len(samples) / _stream(settings, model, samples)
    report: dict[str, Any] = {
        "model": model.name,
        "cores": len(os.sched_getaffinity(0)),
        "records": len(samples),
        "modalities": modalities,
        "offline": round(offline, 1),
        "stream": round(stream, 1),
        "stream / offline": round(stream / offline, 2),
    }
    return report | {"advice": advice(settings, report)}


def advice(settings: Settings, report: Mapping[str, Any]) -> list[str]:
    """Which settings to change, with the measured reason."""
    lines = []
    threads, cores = settings.worker.prepare_threads, report["cores"]
    for name, row in report["modalities"].items():
        rates = {int(size): rate for size, rate in row["encode"].items()}
        best = max(rates.values())
        size = min(size for size, rate in rates.items() if rate >= ENOUGH * best)
        if size > settings.batch.records:
            lines.append(
                f"batch.records: {settings.batch.records} -> {size}, {name} is encoded at "
                f"{best:g} a second then"
            )
        if row["prepare"] < best and threads < cores:
            enough = min(cores, math.ceil(threads * best / row["prepare"]))
            lines.append(
                f"worker.prepare_threads: {threads} -> {enough}, preparing {name} "
                f"({row['prepare']:g} a second) is slower than encoding it ({best:g})"
            )
    room = settings.batch.records * 4
    if report["stream / offline"] < ENOUGH and settings.worker.inflight_records < room:
        lines.append(
            f"worker.inflight_records: {settings.worker.inflight_records} -> {room}, so that full "
            "micro-batches wait while two are encoded and one is published"
        )
    return lines


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person."""
    sizes = list(next(iter(report["modalities"].values()))["encode"])
    head = "".join(f"{size:>9}" for size in sizes)
    rows = [
        f"model {report['model']}, {report['cores']} cores, {report['records']} records",
        "",
        f"{'records a second':18s}{'prepare':>9}   encode in micro-batches of",
        f"{'':18s}{'':>9}{head}",
    ]
    for name, row in report["modalities"].items():
        rates = "".join(f"{row['encode'].get(size, ''):>9}" for size in sizes)
        rows.append(f"{name:18s}{row['prepare']:>9}{rates}")
    rows += [
        "",
        f"all modalities: {report['offline']:g} a second without Kafka, {report['stream']:g} by a "
        f"worker ({report['stream / offline']:.0%})",
        *(report["advice"] or ["no setting to change"]),
    ]
    return rows


def _folder(settings: Settings, model: str | None) -> str | Path:
    if model and (model.startswith("null:") or Path(model).is_dir()):
        return model
    registry = registry_of(settings)
    champion = registry.champion()
    if model is None and champion is None:
        raise ConfigError("--model: there is no champion yet; name a version or a folder")
    name = registry.resolve(model) if model else champion.name if champion else ""
    return registry.folder(name)


def _given(data: Path, records: int) -> list[Sample]:
    from braid.encoders import Sample

    from ..datasets.sources import folder

    return [
        Sample(id=item.id, text=item.text, **item.media)
        for item in folder(data, whole=True)[:records]
    ]


def _made(modalities: Sequence[str], count: int) -> Iterator[Sample]:
    """Texts of 3 to 200 words, JPEG pictures of 320 x 240, WAV sounds of 1 to 4 s."""
    import io
    import wave

    import numpy as np
    from PIL import Image

    from braid.encoders import Sample

    chance, rng = random.Random(0), np.random.default_rng(0)
    words = [
        "a",
        "red",
        "bird",
        "sings",
        "over",
        "the",
        "old",
        "harbour",
        "while",
        "three",
        "small",
        "boats",
        "wait",
        "for",
        "rain",
    ]

    def text() -> str:
        number = min(200, max(3, round(chance.lognormvariate(3.3, 0.9))))
        return " ".join(chance.choices(words, k=number))

    def image() -> bytes:
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        return file.getvalue()

    def audio() -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16_000)
            noise = rng.normal(0, 3000, int(rng.integers(16_000, 64_000)))
            sound.writeframes(noise.astype("<i2").tobytes())
        return file.getvalue()

    make: dict[str, Callable[[], Any]] = {"text": text, "image": image, "audio": audio}
    for number in range(count):  # videos are measured with --data only
        yield Sample(
            id=f"bench-{number}", **{name: make[name]() for name in modalities if name in make}
        )


def _modality(settings: Settings, model: Model, samples: Sequence[Sample]) -> dict[str, Any]:
    with ThreadPoolExecutor(settings.worker.prepare_threads) as threads:
        began = time.perf_counter()
        prepared = list(threads.map(model.prepare, samples))
        rate = len(samples) / (time.perf_counter() - began)
    encode = {
        str(size): round(_rate(model, prepared, size), 1)
        for size in SIZES
        if size <= max(len(prepared), SIZES[0])
    }
    return {"prepare": round(rate, 1), "encode": encode}


def _rate(model: Model, prepared: Sequence[Prepared], size: int) -> float:
    """Records a second in micro-batches of a size, as many at a time as the worker encodes."""
    from collections import deque

    from braid.encoders.embedder import IN_FLIGHT, DeviceThreads

    batches = [prepared[start : start + size] for start in range(0, len(prepared), size)]
    whole = [batch for batch in batches if len(batch) == size]
    model.encode(whole[0])
    device, running = DeviceThreads(model.lanes), deque[tuple[int, Future[Any]]]()
    done, number, began = 0, 0, time.perf_counter()
    try:
        while time.perf_counter() - began < RATE_S or running:
            if time.perf_counter() - began < RATE_S and len(running) < IN_FLIGHT:
                batch = whole[number % len(whole)]
                running.append((len(batch), device.submit(model.encode, batch)))
                number += 1
            else:
                done += _taken(running)
        return done / (time.perf_counter() - began)
    finally:
        device.close()


def _taken(running: deque[tuple[int, Future[Any]]]) -> int:
    count, future = running.popleft()
    future.result()
    return count


def _offline(settings: Settings, model: Model, samples: Sequence[Sample]) -> float:
    """Seconds of `Embedder.embed`."""
    from braid.encoders import Embedder

    with Embedder(model, threads=settings.worker.prepare_threads) as embedder:
        embedder.embed(samples[:8])
        began = time.perf_counter()
        embedder.embed(samples)
        return time.perf_counter() - began


def _stream(settings: Settings, model: Model, samples: Sequence[Sample]) -> float:
    """Seconds of a worker, from its assignment to the commit of the last record."""
    from ..kafka.admin import Admin
    from ..kafka.topics import ensure
    from ..local.fleet import services
    from ..monitoring.metrics import WorkerMetrics
    from ..worker.worker import Worker

    with (
        tempfile.TemporaryDirectory() as folder,
        services(settings, Path(folder) / "services") as running,
    ):
        own = running.replace(prefix=f"{settings.prefix}bench-{uuid.uuid4().hex[:8]}-")
        ensure(own, own.generation)
        admin = Admin(own)
        try:
            _send(own, samples)
            metrics, id_ = WorkerMetrics(), f"{own.group(own.generation)}-bench"
            member = Worker(
                own, model, generation=own.generation, transactional_id=id_, metrics=metrics
            )
            thread = threading.Thread(target=member.run)
            thread.start()
            try:
                return _until_done(member, thread, metrics, own, len(samples))
            finally:
                member.stop()
                thread.join()
                admin.delete_group(own.group(own.generation))
        finally:
            topics = [name for name in admin.partition_counts() if name.startswith(own.prefix)]
            admin.delete(topics)


def _until_done(
    member: Any, thread: threading.Thread, metrics: Any, settings: Settings, count: int
) -> float:
    deadline, began = time.monotonic() + STREAM_S, math.inf
    labels = {"generation": settings.generation}
    while metrics.registry.get_sample_value("braid_records_total", labels) != count:
        if member.owned:
            began = min(began, time.perf_counter())
        if not thread.is_alive() or time.monotonic() > deadline:
            raise WorkerError(f"the worker ended, or took over {STREAM_S:g} s")
        time.sleep(0.005)
    return time.perf_counter() - began


def _send(settings: Settings, samples: Sequence[Sample]) -> None:
    import asyncio

    from ..kafka.producer import Producer

    async def send() -> None:
        async with Producer(settings) as producer:
            for sample in samples:
                fields = {name: getattr(sample, name) for name in sample.present}
                await producer.send(id=sample.id, **fields, wait=False)

    asyncio.run(send())
