"""A query service for the page's tests: an in-memory store and a real Valkey, served by uvicorn.

Its model is a toy that a test can read: colours are directions. Everything else is the real thing.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from braid.encoders.config import Limits
from braid.index.errors import Busy
from braid.index.media_cache import SHARED_PREFIX, Media, MediaCache
from braid.index.payloads import Payload, Payloads
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import QueryInput, QueryVectors, ServiceDeps, Serving, create_app
from braid.index.service.hit_details import Large, Rebuilt
from braid.index.service.recent_writes import RecentWrites
from braid.index.store import Array, Delete, Upsert
from braid.modalities import MEDIA
from braid.stream.media.thumbnails import media_of
from tests.index.conftest import serve as serve_app
from tests.stream.conftest import tone
from tests.stream.harness import wait_for

DIM = 4
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def picture(colour: str, size: tuple[int, int] = (48, 36)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, format="png")
    return file.getvalue()


def direction(weights: Any, shift: float = 0.0) -> Array:
    vector_D = np.array([*weights, shift], dtype=np.float64)
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


def of_text(text: str) -> Array:
    """A text's direction: the mean of the colours that it names."""
    named = [COLOURS[word] for word in text.split() if word in COLOURS]
    return direction(np.mean(named or [(1, 1, 1)], axis=0), 1.0)


def of_image(data: bytes) -> Array:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)
    return direction(pixels.mean(axis=(0, 1)))


def of_audio(data: bytes) -> Array:
    return direction(COLOURS["green"], len(data) % 7)


def of_video(data: bytes) -> Array:
    return direction(COLOURS["blue"], len(data) % 5)


EMBED: Mapping[str, Callable[[Any], Array]] = {
    "text": of_text,
    "image": of_image,
    "audio": of_audio,
    "video": of_video,
}


@cache
def film() -> bytes:
    """A blue film of a second with a tone."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        frames: Any = container.add_stream("libvpx", rate=5)
        frames.width, frames.height, frames.pix_fmt = 64, 48, "yuv420p"
        sound: Any = container.add_stream("libopus", rate=48_000, layout="mono")
        for _ in range(5):
            image = Image.new("RGB", (64, 48), COLOURS["blue"])
            container.mux(frames.encode(av.VideoFrame.from_image(image)))
        tone_1T = np.sin(np.arange(48_000) / 20).astype(np.float32)[None]
        block = av.AudioFrame.from_ndarray(tone_1T, format="flt", layout="mono")
        block.rate = 48_000
        container.mux(sound.encode(block))
        for stream in (frames, sound):
            container.mux(stream.encode(None))
    return file.getvalue()


@dataclass
class Site:
    """A running page and what a test may do behind it."""

    payloads: Payloads
    url: str = ""
    store: LiveStore = field(default_factory=lambda: LiveStore(space="s-toy", dim=DIM, block=64))
    recent_writes: RecentWrites = field(default_factory=RecentWrites)
    media_cache: MediaCache = field(init=False)
    asked: list[QueryInput] = field(default_factory=list)
    log: dict[tuple[int, int], Rebuilt] = field(default_factory=dict)
    read_back: list[str] = field(default_factory=list)
    not_ready: str | None = None
    key: str | None = None
    whole: dict[tuple[Large, str], Media] = field(default_factory=dict)
    busy: bool = False  # whether no record can be read back now
    dead: dict[tuple[str, str], int] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("text", "image", "audio")

    def __post_init__(self) -> None:
        self.media_cache = MediaCache(self.payloads)

    def serving(self, name: str | None) -> Serving:
        return Serving(
            generation="g0001",
            store=self.store,
            encode=self.encode,
            model="toy-0001",
            modalities=self.modalities,
            recent_writes=self.recent_writes,
        )

    async def encode(self, query: QueryInput) -> QueryVectors:
        self.asked.append(query)
        given = {name: getattr(query, name) for name in EMBED}
        by = {name: EMBED[name](data) for name, data in given.items() if data is not None}
        fused = direction(np.sum([vector[:3] for vector in by.values()], axis=0), 0.1)
        return QueryVectors(fused=fused, by=by, space="s-toy", model="toy-0001")

    async def delete(self, id: str) -> tuple[int, int]:
        raise NotImplementedError

    async def rebuild(self, id: str, partition: int, version: int) -> Rebuilt | None:
        self.read_back.append(id)
        if self.busy:
            raise Busy("many records are being read back; try again")
        return self.log.get((partition, version))

    async def enlarge(self, what: Large, id: str, partition: int, version: int) -> Media | None:
        if self.busy:
            raise Busy("many records are being read back; try again")
        return self.whole.get((what, id))

    async def dead_letters(self) -> Mapping[str, Any]:
        by = [
            {"stage": stage, "kind": kind, "count": count}
            for (stage, kind), count in self.dead.items()
        ]
        total = sum(self.dead.values())
        return {"since_ms": 0, "total": total, "complete": total < 2000, "by": by}

    def status(self) -> Mapping[str, Any]:
        return self.state

    def put(
        self,
        id: str,
        text: str | None = None,
        image: bytes | None = None,
        audio: bytes | None = None,
        video: bytes | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        predicted: Mapping[str, Any] | None = None,
        predictions: Mapping[str, Any] | None = None,
        shown: bool = True,
        ts: int | None = None,
    ) -> Upsert:
        """One record, as worker and index node together would bring it here.

        Args:
            shown: whether Redis gets to know of it; `log` does.
        """
        given: dict[str, Any] = {"text": text, "image": image, "audio": audio, "video": video}
        by = {name: EMBED[name](data) for name, data in given.items() if data is not None}
        version = self.store.positions.get(0, 0)
        rebuilt = Rebuilt(
            payload=Payload(
                text=text,
                labels=labels or {},
                predicted=predicted or {},
                predictions=predictions or {},
            ),
            media=media_of({name: given[name] for name in MEDIA}, Limits()),
        )
        self.log[0, version] = rebuilt
        if shown:
            texts = {id: rebuilt.payload}
            media = {(kind, id): one for kind, one in rebuilt.media.items()}
            # Best effort, with a short timeout: on a busy machine it may take more than one.
            wait_for("its payload", lambda: self.payloads.put_many(texts), timeout=30)
            wait_for(
                "its media", lambda: self.media_cache.put_many(media, version=version), timeout=30
            )
        write = Upsert(
            id=id,
            partition=0,
            version=version,
            ts=int(time.time() * 1000) if ts is None else ts,
            model="toy-0001",
            # Each record in a direction of its own, so that no two are equally near.
            fused=direction(
                np.sum([vector[:3] for vector in by.values()], axis=0), 0.1 + version / 20
            ),
            by=by,
            meta=meta or {},
        )
        self.apply(write, version + 1)
        return write

    def apply(self, write: Upsert | Delete, next_: int) -> None:
        self.store.apply([write], positions={0: next_}, progress={0: next_})
        self.recent_writes.applied([write])

    def fill(self) -> None:
        """Three records of each colour: a caption, a picture, and for the first a sound."""
        for colour in COLOURS:
            for number in range(3):
                self.put(
                    f"{colour}-{number}",
                    f"a {colour} thing, number {number}",
                    picture(colour, (40 + 4 * number, 36)),
                    tone("red") if number == 0 else None,
                    meta={"lang": ("en", "de", "fr")[number], "year": 2020 + number},
                    labels={"colour": colour},
                )


@pytest.fixture
def site(valkey: str) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("braid.index.payloads.TIMEOUT_S", 5.0)  # the machine may be busy
        payloads = Payloads(valkey)
    yield from serve(Site(payloads=payloads))


def serve(site: Site) -> Iterator[Site]:
    with serving(site) as site.url:
        yield site


def deps_of(site: Site, **options: Any) -> ServiceDeps:
    """What the site's service depends on. `options` are of ServiceDeps."""
    return ServiceDeps(
        serving=site.serving,
        payloads=site.payloads,
        delete=site.delete,
        status=site.status,
        not_ready=lambda: site.not_ready,
        media_cache=site.media_cache,
        rebuild=site.rebuild,
        enlarge=site.enlarge,
        shared=MediaCache(site.payloads, prefix=SHARED_PREFIX),
        dead_letters=site.dead_letters,
        **options,
    )


@contextmanager
def serving(site: Site, **options: Any) -> Iterator[str]:
    """The site on a free port; its address."""
    with serve_app(create_app(deps_of(site, **options))) as url:
        yield url
