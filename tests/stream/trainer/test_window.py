"""The training window: what is in its shards, and that they are whole or found out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from braid.encoders.types import Sample
from braid.stream.errors import WindowError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Blob, Record, encode_record, pack
from braid.stream.media.links import Links
from braid.stream.settings import Settings
from braid.stream.trainer.window import FILE_NAME, SHARDS, Window, open_window, write_window
from tests.stream.trainers import message


def made(messages: list[Message], folder: Path, **options: object) -> Window:
    return write_window(messages, folder, topic="records", offsets={0: (0, 9)}, **options)  # type: ignore[arg-type]


def text(id_: str, words: str, *, partition: int = 0, offset: int = 0, ts: int = 0) -> Message:
    return message(Sample(id=id_, text=words), offset, partition=partition, ts=ts)


def gone(id_: str, partition: int = 0) -> Message:
    return Message(topic="records", partition=partition, offset=0, key=id_.encode(), value=None)


def test_the_latest_of_each_id_stays_by_partition_and_id(tmp_path: Path) -> None:
    broken = Message(topic="records", partition=1, offset=5, key=b"x", value=b"\xc1")
    window = made(
        [
            text("b", "old"),
            text("a", "first", partition=1),
            text("c", "deleted"),
            broken,
            text("b", "new"),
            gone("c"),
            gone("never"),
            text("d", "back"),
            gone("d"),
            text("d", "again"),
        ],
        tmp_path / "run",
    )
    assert [(s.id, s.text) for s in window.samples()] == [
        ("b", "new"),
        ("d", "again"),
        ("a", "first"),
    ]
    assert (window.unreadable, window.deleted) == (1, 2)
    assert len(window.samples()) == 3
    assert [shard.name for shard in window.shards] == ["00000-0000.msgpack", "00001-0000.msgpack"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [SHARDS, FILE_NAME]
    assert sorted(p.name for p in (tmp_path / "run" / SHARDS).iterdir()) == [
        shard.name for shard in window.shards
    ]
    assert open_window(tmp_path / "run") == window


def test_an_id_in_two_partitions_is_there_once_with_the_later_timestamp(tmp_path: Path) -> None:
    window = made(
        [text("a", "later", ts=9), text("a", "earlier", partition=1, ts=3), gone("a", 1)],
        tmp_path / "run",
    )
    assert [(s.id, s.text) for s in window.samples()] == [("a", "later")]


def test_processes_share_the_partitions(tmp_path: Path) -> None:
    window = made(
        [text(f"{p}-{n}", "x" * 50, partition=p) for p in range(5) for n in range(6)],
        tmp_path / "run",
        shard_bytes=100,
    )
    assert len(window.shards) == 5 * 3
    assert [shard.samples for shard in window.shards] == [2, 2, 2] * 5
    parts = [[sample.id for sample in window.samples(rank, 2)] for rank in range(2)]
    assert {id_[0] for id_ in parts[0]} == {"0", "2", "4"}
    assert sorted(parts[0] + parts[1]) == sorted(sample.id for sample in window.samples())


def test_samples_can_be_read_again_and_hold_what_the_record_held(tmp_path: Path) -> None:
    whole = Sample(
        id="a", text="t", image=b"\x89png", audio=b"RIFF", labels={"k": "v", "n": 2.5, "l": ["x"]}
    )
    samples = made([message(whole, 0)], tmp_path / "run").samples()
    assert list(samples) == [whole]
    assert list(samples) == [whole]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_gives_no_sample(tmp_path: Path, damage: str) -> None:
    window = made([text("a", "one"), text("b", "two")], tmp_path / "run")
    path = tmp_path / "run" / SHARDS / window.shards[0].name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    reading = iter(open_window(tmp_path / "run").samples())
    with pytest.raises(WindowError, match=r"00000-0000\.msgpack"):
        next(reading)


def test_a_window_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def dies() -> Iterator[Message]:
        yield text("a", "one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_window(dies(), folder, topic="records", offsets={})
    with pytest.raises(WindowError, match="no readable window"):
        open_window(folder)
    (folder / SHARDS).mkdir()  # killed between the rename and window.json
    (folder / SHARDS / "00000-0000.msgpack").write_bytes(b"half")
    window = made([text("b", "two")], folder)
    assert [sample.id for sample in window.samples()] == ["b"]
    assert sorted(p.name for p in folder.iterdir()) == [SHARDS, FILE_NAME]


def test_a_story_of_another_format_is_refused(tmp_path: Path) -> None:
    made([text("a", "one")], tmp_path / "run")
    path = tmp_path / "run" / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(WindowError, match="format 9, this braid reads 1"):
        open_window(tmp_path / "run")


def test_links_are_resolved_when_the_window_is_made(tmp_path: Path) -> None:
    """What is behind a link may be gone when the run is repeated."""
    picture = tmp_path / "pictures" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes(b"behind the link")
    linked = [
        Record(id=name, ts=0, image=Blob(uri=path.as_uri()))
        for name, path in {"a": picture, "b": picture.with_name("none.png")}.items()
    ]
    messages = [
        Message(topic="r", partition=0, offset=0, key=r.id.encode(), value=encode_record(r))
        for r in linked
    ]
    links = Links(Settings(home=tmp_path, links={"roots": [picture.parent]}))
    try:
        window = made(messages, tmp_path / "run", links=links)
    finally:
        links.close()
    picture.unlink()
    assert [(sample.id, sample.image) for sample in window.samples()] == [("a", b"behind the link")]
    assert window.unreadable == 1


def test_no_record_fails_the_run(tmp_path: Path) -> None:
    """What a worker puts among the dead letters is left out and counted."""
    deep = b"\x84" + pack("v") + b"\x91" * 1000 + b"\x01" + pack("id") + pack("x")
    deep += pack("ts") + b"\x01" + pack("text") + pack("x")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    uris = ["http://[", "file:///a%00b", "http://℀.com/", "http://host:abc/", "\x00"]
    uris.append((tmp_path / "a").as_uri())
    linked = [
        (f"link{number}", pack({"v": 1, "id": f"link{number}", "image": {"uri": uri}}))
        for number, uri in enumerate(uris)
    ]
    bad: list[tuple[str, bytes | None]] = [("x", deep), ("k" * 3_000_000, None), *linked]
    messages = [text("good", "one")] + [
        Message(topic="r", partition=0, offset=number, key=key.encode(), value=value)
        for number, (key, value) in enumerate(bad, start=1)
    ]
    links = Links(Settings(home=tmp_path, links={"roots": [tmp_path], "hosts": ["host"]}))
    try:
        window = made(messages, tmp_path / "run", links=links)
    finally:
        links.close()
    assert [sample.id for sample in window.samples()] == ["good"]
    assert window.unreadable == len(bad)
