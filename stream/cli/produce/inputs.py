"""The inputs of `braid produce`, and the records in them, in an order that does not change."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath, PurePosixPath
from typing import Any, NamedTuple, Protocol

from braid.modalities import MEDIA, listed

from ...datasets.sources import Item, folder_of, single_files
from ...errors import BadRecord, plain
from ...kafka.producer import BlobLike
from ...kafka.schemas import Blob
from .shards import shard_rows
from .storage import Location, failures
from .tables import TABLES, Row, check_columns, own_fields, refuse

SHARDS = (".tar", ".tgz")
Fields = dict[str, Any]
Convert = Callable[[Mapping[str, Any]], Fields]


class Entry(NamedTuple):
    """One record to send, read when its turn comes.

    Attributes:
        where: for a person: the record's id, or the file and the line.
        share: of its input that is read by now, from 0 to 1.
        fields: the arguments of `Producer.send`. Raises what `REFUSED` in `sending` lists.
    """

    where: str
    share: float
    fields: Callable[[], Fields]


class Input(Protocol):
    """What is read from its beginning to its end.

    Attributes:
        name: unlike that of any other input.
        size: in bytes, 0 if it is not known.
        version: changes when its content changes.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> str: ...

    def entries(self, skip: int) -> Iterator[Entry]:
        """The entries but the first `skip`."""
        ...


@dataclass(frozen=True, slots=True)
class Table:
    """A table, JSON lines or a shard.

    Args:
        rows: reads the rows of the file, but for some.
        convert: the arguments of `Producer.send` of a row. Raises ValueError.
    """

    file: Location
    rows: Callable[[Location, int], Iterator[Row]]
    convert: Convert

    @property
    def name(self) -> str:
        return str(self.file)

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def version(self) -> str:
        return self.file.version

    def entries(self, skip: int) -> Iterator[Entry]:
        where = ""
        try:
            for where, share, read in self.rows(self.file, skip):
                yield Entry(where, share, partial(self._fields, read))
        except failures() as error:  # the other files are still sent
            place = f"all after {where}" if where else self.file.name
            yield Entry(place, 1.0, partial(refuse, plain(error)))

    def _fields(self, read: Callable[[], Fields]) -> Fields:
        value = self.convert(read())
        folder = self.file.folder
        return value | {name: linked(value.get(name), folder) for name in MEDIA}


class Files:
    """Folders and single files: files of one folder and stem are one record.

    Raises:
        DatasetError: a file is of no known kind, a folder holds nothing to send, or two pictures
            (or sounds) share a stem.
    """

    def __init__(
        self, folders: Sequence[Location], files: Sequence[Location], label: str | None
    ) -> None:
        self._label = label
        listed = [(one, one.files()) for one in folders]
        placed: list[tuple[PurePath, Item]] = []
        for one, below in listed:
            placed += [
                (PurePosixPath(str(one)), item) for item in folder_of(below, str(one), whole=True)
            ]
        singles = single_files([(PurePosixPath(str(one)), one) for one in files])
        self._items = _apart([*placed, *singles])
        everything = [one for _, below in listed for _, one in below] + list(files)
        self.name = ", ".join(str(one) for one in (*folders, *files))
        self.size = sum(one.size for one in everything)
        digest = hashlib.sha256("\n".join(f"{one} {one.version}" for one in everything).encode())
        self.version = digest.hexdigest()

    def entries(self, skip: int) -> Iterator[Entry]:
        ids: set[str] = set()
        for number, item in enumerate(self._items, start=1):
            again = item.id in ids
            ids.add(item.id)
            if number <= skip:
                continue
            fields = partial(_fields_of, item, self._label)
            doubled = partial(refuse, "another file here has this id")
            yield Entry(item.id, number / len(self._items), doubled if again else fields)


def inputs_of(
    locations: Sequence[Location], *, label: str | None, mapped: Convert | None
) -> list[Input]:
    """The inputs, files and folders first.

    Args:
        label: the task that top folders, or `.cls` of shards, are the classes of.
        mapped: makes the fields of rows; None: their columns are those of a record.

    Raises:
        BadRecord: a table has the wrong columns, or an input is named twice.
        ConfigError: a package is not installed.
        DatasetError: see `Files`.
    """
    tables: list[Input] = []
    files: list[Location] = []
    for location in locations:
        if not location.is_folder and location.kind in TABLES:
            check_columns(location, mapped=mapped is not None)
            tables.append(Table(location, TABLES[location.kind], mapped or own_fields))
        elif not location.is_folder and location.kind in SHARDS:
            rows = partial(shard_rows, label=label)
            tables.append(Table(location, rows, dict))
        else:
            files.append(location)
    folders = [location for location in files if location.is_folder]
    singles = [location for location in files if not location.is_folder]
    inputs = ([Files(folders, singles, label)] if files else []) + tables
    doubled = [name for name, count in Counter(one.name for one in inputs).items() if count > 1]
    if doubled:
        raise BadRecord("PATH", f"{doubled[0]} is named twice")
    return inputs


def linked(value: Any, folder: Location) -> BlobLike:
    """The bytes of a path relative to a table's folder; a value with a scheme is sent as a link.

    A map with `bytes` and `path` is a picture or sound as the package datasets writes it.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes | Blob):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{listed(MEDIA)} are paths or links")
    return value if "://" in value else folder.beside(value).read_bytes()


def _fields_of(item: Item, label: str | None) -> Fields:
    return {
        "id": item.id,
        "text": item.text,
        **{name: _blob(item.content(name), item.types.get(name)) for name in MEDIA},
        "labels": {label: item.category} if label and item.category else {},
    }


def _blob(data: bytes | None, media_type: str | None) -> Blob | None:
    return None if data is None else Blob(data=data, media_type=media_type)


def _apart(placed: Sequence[tuple[PurePath, Item]]) -> list[Item]:
    """The items; where two have the same id, it begins with the folder that each is from.

    Args:
        placed: (folder, item).
    """
    counts = Counter(item.id for _, item in placed)
    doubled = {str(base) for base, item in placed if counts[item.id] > 1}
    above = PurePosixPath(os.path.commonpath(doubled)) if doubled else PurePosixPath()
    return [
        replace(item, id=(base.relative_to(above) / item.id).as_posix())
        if counts[item.id] > 1
        else item
        for base, item in placed
    ]
