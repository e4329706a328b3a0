"""The records of `braid produce`: from folders and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.sources import folder
from ..errors import BadRecord
from ..kafka.producer import BlobLike, Producer
from ..kafka.schemas import Blob
from ..kafka.topics import ensure
from ..settings import Settings

Progress = Callable[[str, int, int, Mapping[str, float]], None]


async def send_all(
    settings: Settings, paths: Sequence[Path], *, label: str | None, progress: Progress
) -> dict[str, Any]:
    """Send all records below the paths; those that a limit refuses are listed.

    Raises:
        BadRecord: a path does not exist or holds nothing to send.
    """
    ensure(settings, settings.generation)
    records = [record for path in paths for record in _records(path, label)]
    if not records:
        raise BadRecord("PATH", f"nothing to send below {', '.join(map(str, paths))}")
    refused: list[str] = []
    async with Producer(settings) as producer:
        for done, record in enumerate(records, start=1):
            try:
                if isinstance(record, BadRecord):
                    raise record
                await producer.send(**record, wait=False)
            except BadRecord as error:
                name = record["id"] if isinstance(record, dict) else "line"
                refused.append(f"{name}: {error}")
            progress("producing", done, len(records), {})
    return {"sent": len(records) - len(refused), "refused": refused}


def _records(path: Path, label: str | None) -> Iterator[dict[str, Any] | BadRecord]:
    if not path.exists():
        raise BadRecord("PATH", f"{path} does not exist")
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _lines(path)
        return
    for item in folder(path):
        labels = {label: item.category} if label and item.category else {}
        yield {
            "id": item.id,
            "text": item.text,
            "image": _blob(item.image, item.image_type),
            "audio": _blob(item.audio, item.audio_type),
            "labels": labels,
        }


def _blob(data: bytes | None, media_type: str | None) -> Blob | None:
    return None if data is None else Blob(data=data, media_type=media_type)


def _lines(path: Path) -> Iterator[dict[str, Any] | BadRecord]:
    known = {"id", "text", "image", "audio", "labels", "meta", "ts"}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("must be a JSON object")
                if unknown := sorted(set(value) - known):
                    raise ValueError(f"unknown fields {', '.join(unknown)}")
                if not isinstance(value.get("id"), str):
                    raise ValueError("id must be a string")
                for name in ("image", "audio"):
                    value[name] = _linked(value.get(name), path.parent)
            except (ValueError, OSError) as error:
                yield BadRecord(f"{path.name}:{number}", str(error))
                continue
            yield value


def _linked(value: Any, base: Path) -> BlobLike:
    """The bytes of a path relative to the JSON file; a value with a scheme is sent as a link."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("image and audio are paths or links")
    return value if "://" in value else base / value
