"""Retraining: `records` is replayed into samples; a new version is trained and announced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from encoders.config import preset as preset_named
from encoders.manifest import Manifest
from encoders.training import train
from encoders.types import Sample

from .announcements import announce
from .broker import Admin, replay
from .errors import BadRecord, RegistryError
from .flipping import promote as promote_version
from .links import Links
from .models import Champion, Registry
from .records import Blob, decode_record
from .settings import Settings
from .topics import ensure

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the trainer saw of `records`: the latest record of each id up to the end offsets."""

    samples: list[Sample]
    offsets: dict[int, tuple[int, int]]
    unreadable: int
    deleted: int

    def provenance(self, topic: str) -> dict[str, Any]:
        return {
            "topic": topic,
            "offsets": {str(number): list(span) for number, span in self.offsets.items()},
            "samples": len(self.samples),
            "unreadable": self.unreadable,
            "deleted": self.deleted,
        }


def read_window(settings: Settings, progress: Progress | None = None) -> Window:
    """Replay `records` from the beginning to where it ends now.

    Records that a worker would bury are left out and counted; of each id the latest stays.
    """
    topic = settings.topic("records")
    partitions = ensure(settings)
    spans = Admin(settings).ends(topic, partitions)
    expected = sum(end - start for start, end in spans.values())
    latest: dict[str, Sample] = {}
    unreadable = deleted = read = 0
    links = Links(settings)
    try:
        for message in replay(settings, topic, stop_at={n: end for n, (_, end) in spans.items()}):
            read += 1
            if progress is not None:
                progress("replay", read, expected, {})
            if message.value is None:
                deleted += (
                    latest.pop((message.key or b"").decode(errors="replace"), None) is not None
                )
                continue
            try:
                record = decode_record(message.key, message.value, default_ts=message.ts)
                sample = Sample(
                    id=record.id,
                    text=record.text,
                    image=_bytes_of("image", record.image, links),
                    audio=_bytes_of("audio", record.audio, links),
                    labels=record.labels,
                )
            except BadRecord as error:
                unreadable += 1
                log.debug("left out %s[%d]@%d: %s", topic, message.partition, message.offset, error)
                continue
            latest.pop(record.id, None)
            latest[record.id] = sample
    finally:
        links.close()
    samples = [latest[id_] for id_ in sorted(latest)]  # the order must not depend on arrival
    return Window(samples=samples, offsets=spans, unreadable=unreadable, deleted=deleted)


def retrain(
    settings: Settings,
    *,
    preset: str,
    heads_only: bool,
    seed: int,
    promote: bool | None,
    progress: Progress | None = None,
) -> tuple[Manifest, bool]:
    """Train one version from Kafka and announce it; returns its manifest and whether it serves.

    Args:
        heads_only: keep the champion's encoders, projections and fusion, so that the space stays.
        promote: make it champion; None does so only when there is no champion yet.

    Raises:
        RegistryError: heads_only without a champion, or the promotion is refused.
        TrainingError: too few samples, no labels, or a loss that is not finite.
    """
    registry = Registry(settings.models_dir, base=settings.model_name)
    champion = registry.champion()
    if heads_only and champion is None:
        raise RegistryError("--heads-only keeps the champion's space, but there is no champion")
    window = read_window(settings, progress)
    name, version = registry.next()
    manifest = train(
        window.samples,
        preset_named(preset),
        out=registry.path(name),
        name=name,
        version=version,
        parent=registry.path(champion.name) if champion is not None and heads_only else None,
        heads_only=heads_only,
        window=window.provenance(settings.topic("records")),
        seed=seed,
        progress=progress,
    )
    facts = {
        "name": name,
        "version": version,
        "space": manifest.space,
        "generation": settings.generation,
        "uri": registry.path(name).as_uri(),
        "sha256": manifest.files.get("model.safetensors"),
        "status": "candidate",
        "metrics": manifest.metrics,
    }
    announce(settings, f"version/{name}", facts)
    serves = champion is None if promote is None else promote
    if serves:  # a version of another space does so only when its generation is built
        serves = isinstance(promote_version(settings, registry, name), Champion)
    return manifest, serves


def _bytes_of(name: str, blob: Blob | None, links: Links) -> bytes | None:
    if blob is None or blob.data is not None:
        return None if blob is None else blob.data
    return links.fetch(f"{name}.uri", blob.uri or "")
