"""The training window: `records` at one moment, as immutable shards.

    window.json                  its origin (offsets), and each shard's sha256
    shards/00003-0001.msgpack    samples of partition 3, its second shard, sorted by id

`records` is compacted: the same records cannot be read from Kafka a week later. So a run and its
repetitions read the window from disk. `window.json` is written last, by a rename: a window is
complete or absent. Links are fetched when the window is written, since their targets may change.

Memory holds the ids and one shard. Messages are appended to one spool file per partition as they
arrive; then the latest of each id is read back, in order.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import msgpack

from braid.encoders.types import MEDIA, Sample
from braid.index.files import replaced, sync_folder, synced

from ..errors import BadRecord, WindowError, bad_record
from ..kafka.access import prepare
from ..kafka.admin import Admin
from ..kafka.client import Message, replay
from ..kafka.schemas import MIB, Blob, Record, check_deletion, decode_record, pack
from ..media.links import Links
from ..settings import Settings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, Mapping[str, float]], None]

FORMAT = 1
FILE_NAME = "window.json"
SHARDS = "shards"
SHARD_BYTES = 64 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of samples, all of one partition of `records`."""

    name: str
    partition: int
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window on disk: the latest record of each id up to the end offsets.

    Attributes:
        offsets: partition to (first offset, end offset) when it was read.
        unreadable: records that become dead letters in a worker, and links that were not fetched.
        deleted: ids that had a record and were deleted.
    """

    folder: Path
    topic: str
    offsets: Mapping[int, tuple[int, int]]
    shards: tuple[Shard, ...] = field(default_factory=tuple)
    unreadable: int = 0
    deleted: int = 0

    def samples(self, rank: int = 0, size: int = 1) -> Samples:
        """All samples, or those of the partitions that process `rank` of `size` reads."""
        numbers = sorted({shard.partition for shard in self.shards})
        mine = set(numbers[rank::size])
        return Samples(self, [shard for shard in self.shards if shard.partition in mine])

    def provenance(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "run": self.folder.name,
            "topic": self.topic,
            "offsets": {str(number): list(span) for number, span in self.offsets.items()},
            "samples": sum(shard.samples for shard in self.shards),
            "unreadable": self.unreadable,
            "deleted": self.deleted,
            "shards": {shard.name: shard.sha256 for shard in self.shards},
        }

    def check(self) -> None:
        """Compare every shard with its sha256. Raises WindowError."""
        for shard in self.shards:
            self.content(shard)

    def content(self, shard: Shard) -> bytes:
        """The bytes of a shard, checked. Raises WindowError."""
        path = self.folder / SHARDS / shard.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WindowError(f"{path}: {error.strerror}: the window is not whole") from error
        digest = sha256(content).hexdigest()
        if digest != shard.sha256:
            raise WindowError(f"{path} is damaged: sha256 {digest}, wanted {shard.sha256}")
        return content


class Samples:
    """The samples of some shards, read from disk at each iteration."""

    def __init__(self, window: Window, shards: list[Shard]) -> None:
        self._window = window
        self._shards = shards

    def __len__(self) -> int:
        return sum(shard.samples for shard in self._shards)

    def __iter__(self) -> Iterator[Sample]:
        """Raises WindowError before the first sample of a damaged shard."""
        for shard in self._shards:
            unpacker = msgpack.Unpacker(raw=False, max_buffer_size=0)
            unpacker.feed(self._window.content(shard))
            for raw in unpacker:
                yield Sample(**raw)


def open_window(folder: Path) -> Window:
    """The window in a run's folder. Raises WindowError: absent or incomplete."""
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            raise WindowError(f"{path}: format {raw['format']}, this braid reads {FORMAT}")
        return Window(
            folder=folder,
            topic=raw["topic"],
            offsets={int(number): (span[0], span[1]) for number, span in raw["offsets"].items()},
            shards=tuple(Shard(**shard) for shard in raw["shards"]),
            unreadable=raw["unreadable"],
            deleted=raw["deleted"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WindowError(f"{path}: no readable window: {error!r}") from error


def read_records(settings: Settings, folder: Path, progress: Progress | None = None) -> Window:
    """Replay `records` from the beginning to its current end into a window below `folder`.

    Raises:
        Unreachable, ConfigError: the broker, or the topics.
    """
    topic = settings.topic("records")
    spans = Admin(settings).ends(topic, prepare(settings, settings.generation, "trainer"))
    messages = replay(settings, topic, stop_at={n: end for n, (_, end) in spans.items()})
    links = Links(settings)
    try:
        return write_window(
            messages, folder, topic=topic, offsets=spans, links=links, progress=progress
        )
    finally:
        links.close()


def write_window(
    messages: Iterable[Message],
    folder: Path,
    *,
    topic: str,
    offsets: Mapping[int, tuple[int, int]],
    links: Links | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Window:
    """Write the messages' samples as a window, the latest of each id.

    Records that become dead letters in a worker are left out and counted. An id in two partitions
    (producers that partition differently): the later record timestamp wins.

    Args:
        folder: the run's folder; leftovers of an unfinished window are removed.
        links: fetches linked pictures and sounds; None: records with links are unreadable.
        shard_bytes: a shard is closed at this size.
    """
    sweep(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{SHARDS}.{uuid.uuid4().hex[:8]}.tmp"
    draft.mkdir()
    expected = sum(end - start for start, end in offsets.values())
    spool = _Spool(draft)
    with spool:
        for read, message in enumerate(messages, 1):
            spool.add(message)
            if progress is not None:
                progress("replay", read, expected, {})
    shards: list[Shard] = []
    reading = _Reading(spool, links)
    for number in reading.partitions():
        shards += _write_shards(reading.samples(number), draft, number, shard_bytes)
    spool.remove()
    sync_folder(draft)
    draft.rename(folder / SHARDS)
    window = Window(
        folder=folder,
        topic=topic,
        offsets=dict(offsets),
        shards=tuple(shards),
        unreadable=spool.unreadable + reading.unreadable,
        deleted=spool.deleted,
    )
    raw = {
        "format": FORMAT,
        "topic": topic,
        "offsets": {str(number): list(span) for number, span in offsets.items()},
        "unreadable": window.unreadable,
        "deleted": window.deleted,
        "shards": [asdict(shard) for shard in shards],
    }
    sync_folder(folder)
    replaced(folder / FILE_NAME, json.dumps(raw, indent=1).encode())
    return window


def sweep(folder: Path) -> None:
    """Remove the files of a window that a killed trainer had not finished."""
    if (folder / FILE_NAME).is_file():
        return
    for path in [*folder.glob(f".{SHARDS}.*.tmp"), folder / SHARDS]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".{FILE_NAME}.*"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of an id's latest record in the spool files."""

    partition: int
    start: int
    size: int
    ts: int


class _Spool:
    """Messages on disk in their order, and the position of each id's latest; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.latest: dict[str, _Place] = {}
        self.unreadable = self.deleted = 0
        self._folder = folder
        self._files: dict[int, IO[bytes]] = {}
        self._open = ExitStack()

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, message: Message) -> None:
        try:
            if message.value is None:
                self._delete(check_deletion(message.key), message.partition)
                return
            record = decode_record(message.key, message.value, default_ts=message.ts)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (no record may fail the run)
            self.unreadable += 1
            bad = bad_record(error, stage="decode")
            log.debug("left out [%d]@%d: %s", message.partition, message.offset, bad)
            return
        known = self.latest.get(record.id)
        if known and known.partition != message.partition and known.ts > record.ts:
            return
        file = self._files.get(message.partition)
        if file is None:
            file = self._open.enter_context(self.path(message.partition).open("wb"))
            self._files[message.partition] = file
        self.latest[record.id] = _Place(
            message.partition, file.tell(), file.write(message.value), record.ts
        )

    def _delete(self, id_: str, partition: int) -> None:
        known = self.latest.get(id_)
        if known is not None and known.partition == partition:
            del self.latest[id_]
            self.deleted += 1

    def path(self, partition: int) -> Path:
        return self._folder / f"spool-{partition}"

    def remove(self) -> None:
        for number in self._files:
            self.path(number).unlink(missing_ok=True)


class _Reading:
    """Reads the latest records back, as samples in the order of their ids."""

    def __init__(self, spool: _Spool, links: Links | None) -> None:
        self.unreadable = 0
        self._spool = spool
        self._links = links
        self._ids: dict[int, list[str]] = {}
        for id_ in sorted(spool.latest):  # the order must not depend on arrival
            self._ids.setdefault(spool.latest[id_].partition, []).append(id_)

    def partitions(self) -> list[int]:
        return sorted(self._ids)

    def samples(self, partition: int) -> Iterator[dict[str, Any]]:
        with self._spool.path(partition).open("rb") as file:
            for id_ in self._ids[partition]:
                place = self._spool.latest[id_]
                file.seek(place.start)
                value = file.read(place.size)
                try:
                    sample = self._sample(decode_record(id_.encode(), value, default_ts=place.ts))
                except MemoryError:
                    raise
                except Exception as error:  # noqa: BLE001 (as in _Spool.add)
                    self.unreadable += 1
                    log.debug("left out %s: %s", id_, bad_record(error, stage="prepare"))
                    continue
                yield sample

    def _sample(self, record: Record) -> dict[str, Any]:
        whole = {
            "id": record.id,
            "text": record.text,
            **{name: self._bytes_of(name, getattr(record, name)) for name in MEDIA},
            "labels": dict(record.labels) or None,
            "group": group if isinstance(group := record.meta.get("group"), str) else None,
        }
        return {name: value for name, value in whole.items() if value is not None}

    def _bytes_of(self, name: str, blob: Blob | None) -> bytes | None:
        if blob is None or blob.data is not None:
            return None if blob is None else blob.data
        if self._links is None:
            raise BadRecord(name, "is a link, and links are not fetched here", stage="prepare")
        return self._links.fetch(f"{name}.uri", blob.uri or "")


def _write_shards(
    samples: Iterator[dict[str, Any]], folder: Path, partition: int, shard_bytes: int
) -> Iterator[Shard]:
    """Write samples to files; the sample that reaches `shard_bytes` is a file's last."""
    packed = (pack(sample) for sample in samples)
    first = next(packed, None)
    number = 0
    while first is not None:
        name = f"{partition:05d}-{number:04d}.msgpack"
        digest, count, size = sha256(), 0, 0
        with synced(folder / name) as file:
            while first is not None and size < shard_bytes:
                file.write(first)
                digest.update(first)
                count, size = count + 1, size + len(first)
                first = next(packed, None)
        yield Shard(
            name=name, partition=partition, samples=count, bytes=size, sha256=digest.hexdigest()
        )
        number += 1
