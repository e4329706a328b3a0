"""Inputs of `braid produce`: shards, tables, URLs, mappings, checkpoints, rates."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from braid.stream.cli.produce.checkpoint import Checkpoint
from braid.stream.cli.produce.inputs import inputs_of, linked
from braid.stream.cli.produce.sending import BEHIND_S, Pace
from braid.stream.cli.produce.storage import Location, locations
from braid.stream.errors import BadRecord, ConfigError
from braid.stream.kafka.schemas import MAX_RECORD_BYTES, Blob
from braid.stream.settings.source_groups import Source
from braid.stream.sources.rows import fields_of

PNG = b"\x89PNG"


def shard(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(*paths: object, skip: int = 0, **options: Any) -> list[Any]:
    """The fields of all entries of the paths; what is wrong with one is a text."""
    found: list[Any] = []
    options = {"label": None, "mapped": None} | options
    for one in inputs_of(locations([str(path) for path in paths]), **options):
        for entry in one.entries(skip):
            assert 0 <= entry.share <= 1
            try:
                found.append(entry.fields())
            except (ValueError, OSError) as error:
                found.append(f"{entry.where}: {error}")
    return found


def fields(id_: str, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": id_,
        "labels": {},
        "meta": {},
        "image": None,
        "audio": None,
        "video": None,
    }
    return base | more


# ---- WebDataset shards


def test_members_of_one_key_are_a_record(tmp_path: Path) -> None:
    more = {"text": "no", "id": 9, "labels": {"kind": "bird"}, "lang": "en", "exif": {"x": 1}}
    members = {
        "./000/1.jpg": b"jpg",
        "./000/1.txt": "ä bird\n".encode(),
        "./000/1.cls": b"3",
        "._000/2.jpg": b"of a Mac",
        "000/2.wav": b"wav",
        "000/2.json": json.dumps(more | {"tags": ["a", 1]}).encode(),
        "b.png": PNG,
        "b.npy": b"left out",
    }
    (tmp_path / "a.tar").write_bytes(shard(members))
    assert read(tmp_path / "a.tar", label="class") == [
        fields(
            "000/1",
            text="ä bird",
            image=Blob(data=b"jpg", media_type="image/jpeg"),
            labels={"class": "3"},
        ),
        fields(
            "9",
            text="no",
            audio=Blob(data=b"wav", media_type="audio/wav"),
            labels={"kind": "bird"},
            meta={"lang": "en", "tags": ["a", 1]},
        ),
        fields("b", image=Blob(data=PNG, media_type="image/png")),
    ]
    assert [one["id"] for one in read(tmp_path / "a.tar", skip=1)] == ["9", "b"]


def test_what_is_wrong_with_a_sample_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    members = {
        "a.json": b"[]",
        "b.jpg": b"x",
        "b.png": b"y",
        "c.0.jpg": b"x",
        "c.1.jpg": b"y",
        "d.bin": bytes(MAX_RECORD_BYTES + 1),
        "e.json": b'{"x": NaN}',
        "f.txt": b"good",
    }
    raw = shard(members)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(raw))
    assert read(tmp_path / "a.tgz") == [
        "a.tgz: a: its .json is no object",
        "a.tgz: b: has two members for image",
        "a.tgz: c: has two members .jpg",
        f"a.tgz: d: is over the limit of {MAX_RECORD_BYTES} bytes",
        "a.tgz: e: NaN is not JSON",
        fields("f", text="good"),
    ]
    (tmp_path / "cut.tar").write_bytes(shard({"a.txt": b"one", "b.txt": bytes(2000)})[:2000])
    (tmp_path / "none.tar").write_bytes(b"no tar")
    cut = read(tmp_path / "cut.tar")
    assert cut[0] == fields("a", text="one")
    assert cut[1].startswith("all after cut.tar: a: ")
    assert read(tmp_path / "none.tar")[0].startswith("none.tar: ")


# ---- tables


def test_tables_may_be_packed_by_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n\n{"id": "b"}\n'))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id,text\nc,x\n"))
    found = read(tmp_path / "a.jsonl.gz", tmp_path / "a.csv.gz")
    assert [one["id"] for one in found] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_are_left_out_by_their_number(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    file = tmp_path / f"a.{kind}"
    ids = [f"r{number}" for number in range(10)]
    if kind == "csv":
        file.write_text("id\n" + "".join(f"{id_}\n" for id_ in ids))
    elif kind == "jsonl":
        file.write_text("".join(f'{{"id": "{id_}"}}\n\n' for id_ in ids))
    else:
        parquet.write_table(pa.table({"id": ids}), file, row_group_size=3)
    for skip in range(11):
        assert [one["id"] for one in read(file, skip=skip)] == ids[skip:]


def test_rows_may_be_mapped_by_a_source(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    import pyarrow as pa
    from pyarrow import parquet

    mapping = {
        "id": "sku",
        "text": "${title} for ${price}",
        "ts": "changed",
        "meta": {"lang": "details.lang"},
    }
    rows = {
        "sku": [7, None],
        "title": ["a bird", "x"],
        "price": [Decimal("2.50"), None],
        "changed": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)] * 2,
        "details": [{"lang": "en"}, None],
    }
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    mapped = fields_of(Source(topic="t", map=mapping))
    first, second = read(tmp_path / "a.parquet", mapped=mapped)
    assert (first["id"], first["text"], first["ts"]) == ("7", "a bird for 2.5", 1_767_312_000_000)
    assert first["meta"] == {"lang": "en"}
    assert second == "a.parquet: row 2: map.id: path 'sku' gives nothing in the row"
    with pytest.raises(ConfigError, match="its messages are parts"):
        fields_of(Source(topic="t", map={**mapping, "expects": ["text"]}))


def test_media_of_a_row_are_beside_the_table_links_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (folder,) = locations([str(tmp_path)])
    assert linked("a.png", folder) == PNG
    assert linked({"bytes": PNG, "path": "x.png"}, folder) == PNG
    assert linked({"bytes": None, "path": "a.png"}, folder) == PNG
    assert linked("https://example.org/a.png", folder) == "https://example.org/a.png"
    for wrong in (5, {"other": 1}):
        with pytest.raises(ValueError, match="paths or links"):
            linked(wrong, folder)
    with pytest.raises(OSError, match="none"):
        linked("none.png", folder)


# ---- URLs


@pytest.fixture
def bucket() -> Any:
    """A file system that is none of this machine's."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe("/b/pictures/red/one.png", PNG)
    fs.pipe("/b/pictures/red/one.txt", b"a red one")
    fs.pipe("/b/pictures/.hidden.txt", b"no")
    for number in range(3):
        fs.pipe(f"/b/t-{number:02}.jsonl", json.dumps({"id": f"r{number}"}).encode())
    fs.pipe("/b/table.csv", b"id,image\nc,pictures/red/one.png\n")
    yield fs
    fs.store.clear()


def test_paths_may_be_urls(bucket: Any) -> None:
    found = read("memory://b/pictures", "memory://b/table.csv", label="colour")
    assert found == [
        {
            "id": "red/one",
            "text": "a red one",
            "image": Blob(data=PNG, media_type="image/png"),
            "audio": None,
            "video": None,
            "labels": {"colour": "red"},
        },
        fields("c", image=PNG),
    ]
    numbered = read("memory://b/t-{00..02}.jsonl")
    assert [one["id"] for one in numbered] == ["r0", "r1", "r2"]
    assert read("memory://b/t-*.jsonl") == numbered


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("memory://b/none", "does not exist"),
        ("memory://b/none-*.tar", "no file fits"),
        ("memory://b/t-{02..00}.jsonl", r"\{02..00\}: from 1 to"),
        ("memory://b/t-{0..9999999}.jsonl", "from 1 to"),
        ("nothing://b", "Protocol not known"),
    ],
)
def test_a_wrong_url_is_named(bucket: Any, path: str, says: str) -> None:
    with pytest.raises(BadRecord, match=says):
        read(path)


def test_an_input_is_not_read_twice(bucket: Any) -> None:
    with pytest.raises(BadRecord, match="named twice"):
        read("memory://b/t-00.jsonl", "memory://b/t-{00..01}.jsonl")


# ---- checkpoints


def test_a_checkpoint_goes_on_only_with_the_same_inputs(tmp_path: Path) -> None:
    table, file = tmp_path / "a.jsonl", tmp_path / "at" / "progress.json"
    table.write_text('{"id": "a"}\n{"id": "b"}\n')

    def inputs() -> Any:
        return inputs_of(locations([str(table)]), label=None, mapped=None)

    first = Checkpoint(file, inputs())
    first.progress.entries[str(table)] = 1
    first.progress.sent = 1
    first.progress.refuse("a: wrong")
    first.save()
    again = Checkpoint(file, inputs()).progress
    assert (again.entries, again.sent, again.refused) == ({str(table): 1}, 1, ["a: wrong"])
    table.write_text('{"id": "a"}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl is not what it was.*delete the file"):
        Checkpoint(file, inputs())
    file.write_text("{}")
    with pytest.raises(ConfigError, match="no checkpoint"):
        Checkpoint(file, inputs())
    assert Checkpoint(None, inputs()).progress.entries == {}


def test_a_folder_has_changed_if_one_of_its_files_has(tmp_path: Path) -> None:
    def version() -> str:
        (one,) = inputs_of(locations([str(tmp_path)]), label=None, mapped=None)
        return str(one.version)

    (tmp_path / "a.txt").write_text("one")
    before = version()
    assert version() == before
    (tmp_path / "b.txt").write_text("two")
    assert version() != before


# ---- rates


def test_a_rate_is_kept_from_the_first_record_on() -> None:
    now, slept = 100.0, 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        now += seconds
        slept += seconds

    async def run() -> None:
        nonlocal now
        pace = Pace(10.0, clock=lambda: now, sleep=sleep)
        for number in range(100):
            now += 5.0 if number == 50 else 0.001
            await pace.wait()

    asyncio.run(run())
    assert slept == pytest.approx(5.0, abs=0.5)  # the first half; the second catches up
    assert now - 100 == pytest.approx(10.0, abs=0.2 + BEHIND_S)


def test_a_location_names_no_secret() -> None:
    one = Location(fsspec.filesystem("memory"), "/b/x.csv")
    assert str(one) == "memory:///b/x.csv"
    with pytest.raises(BadRecord) as raised:
        locations(["nothing://user:geheim@host/b"])
    assert "geheim" not in str(raised.value)
