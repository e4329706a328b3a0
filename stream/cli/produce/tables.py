"""Rows of CSV, Parquet and JSON lines.

Columns are id, text, image, audio, ts, `labels.TASK` and `meta.FIELD`, unless a mapping says where
the fields of a record are. An empty cell is absent. Files may be packed by gzip.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import IO, Any, NamedTuple

from braid.modalities import MODALITIES

from ...errors import BadRecord, ConfigError, plain
from ...strict_json import strict_json
from .storage import Location, failures

COLUMNS = ("id", *MODALITIES, "ts")
GROUPS = ("labels", "meta")
BATCH = 64  # rows of Parquet that are decoded at once

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of other bytes


class Row(NamedTuple):
    """One row, read when its turn comes.

    Attributes:
        where: it is, for a person.
        share: of the file that is read by now, from 0 to 1.
        read: its values by column. Raises ValueError.
    """

    where: str
    share: float
    read: Callable[[], dict[str, Any]]


def csv_rows(file: Location, skip: int) -> Iterator[Row]:
    """The rows of a CSV file in UTF-8 whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    with file.open() as raw, _text(file, raw, "surrogateescape") as lines:
        reader = csv.reader(lines)
        names = next(reader, [])
        while True:
            number = reader.line_num + 1
            where = f"{file.name}:{number}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = partial(refuse, str(error))
            else:
                if not cells:
                    continue
                row = partial(_from_cells, names, cells)
            if skip > 0:
                skip -= 1
                continue
            yield Row(where, _share(raw, file), row)


def csv_columns(file: Location) -> list[str]:
    with file.open() as raw, _text(file, raw, "replace") as lines:
        return next(csv.reader(lines), [])


def json_rows(file: Location, skip: int) -> Iterator[Row]:
    """The lines of a file of JSON objects that are not empty."""
    with file.open() as raw:
        for number, line in enumerate(file.unpacked(raw), start=1):
            if not line.strip():
                continue
            if skip > 0:
                skip -= 1
                continue
            yield Row(f"{file.name}:{number}", _share(raw, file), partial(_from_line, line))


def parquet_rows(file: Location, skip: int) -> Iterator[Row]:
    """The rows of a Parquet file. `labels` and `meta` may be structs, image and audio bytes.

    Of a row group that cannot be read, the rest is refused in one.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with file.open() as raw, ParquetFile(raw) as table:
        end, total = 0, max(1, table.metadata.num_rows)
        for group in range(table.num_row_groups):
            number, end = end, end + table.metadata.row_group(group).num_rows
            if end <= skip:
                continue
            try:
                for batch in table.iter_batches(batch_size=BATCH, row_groups=[group]):
                    for at in range(batch.num_rows):
                        number += 1
                        if number > skip:
                            where = f"{file.name}: row {number}"
                            yield Row(where, number / total, partial(_from_batch, batch, at))
            except (ArrowException, *failures()) as error:
                where = f"{file.name}: rows {number + 1} to {end}"
                yield Row(where, end / total, partial(refuse, plain(error)))


def parquet_columns(file: Location) -> list[str]:
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{file}: Parquet needs pyarrow: pip install 'braid-stream[parquet]'")
    from pyarrow.parquet import read_schema

    with file.open() as raw:
        names: list[str] = read_schema(raw).names
    return names


TABLES: Mapping[str, Callable[[Location, int], Iterator[Row]]] = {
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
}
"""The readers of rows, by suffix; they take the file and how many rows to leave out."""
HEADERS = {".csv": csv_columns, ".parquet": parquet_columns}


def check_columns(file: Location, *, mapped: bool) -> None:
    """Check the columns of a table; other files pass.

    Args:
        mapped: any columns will do.

    Raises:
        ConfigError: pyarrow is not installed.
        BadRecord: not a table, no column id, or an unknown column.
    """
    if file.kind not in HEADERS:
        return
    try:
        names = HEADERS[file.kind](file)
    except ConfigError:
        raise
    except (ValueError, csv.Error) as error:  # ArrowInvalid is a ValueError
        raise BadRecord("PATH", f"{file}: {error}") from None
    unknown = [name for name in names if not _known(name)]
    if not mapped and ("id" not in names or unknown):
        wrong = f"unknown columns {', '.join(unknown)}"
        if "id" not in names:
            wrong = "there is no column id"
        raise BadRecord(
            "PATH",
            f"{file}: {wrong}; columns are {', '.join(COLUMNS)}, labels.TASK and meta.FIELD, "
            "unless --source names a mapping",
        )


def own_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Producer.send` from a row by column. Raises ValueError."""
    fields: dict[str, Any] = {"labels": {}, "meta": {}}
    for name, value in row.items():
        group, _, part = name.partition(".")
        if value is None:
            continue
        if not _known(name):
            raise ValueError(f"unknown fields {name}")
        if part:
            fields[group][part] = _dated(value)
        elif name in GROUPS:
            if not isinstance(value, dict):
                raise ValueError(f"{name}: use columns {name}.NAME")
            fields[name] |= {key: _dated(one) for key, one in value.items() if one is not None}
        else:
            fields[name] = value
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    if not isinstance(fields.get("id"), str):
        raise ValueError("id must be a string")
    return fields


def refuse(reason: str) -> dict[str, Any]:
    """The fields of a row that cannot be read. Raises ValueError."""
    raise ValueError(reason)


def _known(name: str) -> bool:
    group, _, part = name.partition(".")
    return name in (*COLUMNS, *GROUPS) or (group in GROUPS and part != "")


def _text(file: Location, raw: IO[bytes], errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(file.unpacked(raw), encoding="utf-8-sig", errors=errors, newline="")


def _share(raw: IO[bytes], file: Location) -> float:
    return min(1.0, raw.tell() / max(1, file.size))


def _from_batch(batch: Any, at: int) -> dict[str, Any]:
    (row,) = batch.slice(at, 1).to_pylist()
    return dict(row)


def _from_cells(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """In labels and meta a cell that is a JSON number, true or false is taken as one."""
    if len(cells) != len(names):
        raise ValueError(f"has {len(cells)} cells, the first line names {len(names)} columns")
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if _NOT_UTF8.search(cell):
            raise ValueError(f"{name} is not UTF-8")
        row[name] = _number(cell) if name == "ts" or name.partition(".")[0] in GROUPS else cell
    return {name: value for name, value in row.items() if value != ""}


def _from_line(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    value = strict_json(text)
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _number(cell: str) -> Any:
    try:
        value = strict_json(cell)
    except ValueError:
        return cell
    return value if isinstance(value, int | float) else cell


def _dated(value: Any) -> Any:
    """Dates as ISO 8601; other values as they are."""
    return value.isoformat() if hasattr(value, "isoformat") else value
