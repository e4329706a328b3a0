"""What a new user types in the first hours: wrong addresses, wrong names, all kinds of files."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from braid.stream.cli.main import common_first, main
from braid.stream.kafka import connection
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import decode_record
from braid.stream.local.child import free_port
from tests.documents import blocks, commands, pages
from tests.stream.conftest import picture, tone
from tests.stream.harness import Deployment

Braid = Callable[..., tuple[int, str, str]]

OBJECTS = re.compile(r"object at|0x[0-9a-f]{6}|<_io|Path\(|Traceback|Error\(|\{'\w|<class|\(got <")
"""What Python writes of its objects, and no person reads."""


@pytest.fixture
def braid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Braid:
    """Runs a command in this process: its exit status, and what it prints."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("BRAID_", "KAFKA_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRAID_KAFKA__BROKER_TIMEOUT_S", "6")
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("BRAID_HTTP__PORT", str(free_port()))

    def run(*words: object, **env: str) -> tuple[int, str, str]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["braid", *map(str, words)])
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        printed = capsys.readouterr()
        return int(status), printed.out, printed.err

    return run


# ---- the installation


def test_the_pages_install_torch_for_cpus() -> None:
    """Without the flag 3.4 GB are downloaded."""
    installs = [
        line
        for page in pages()
        for block in blocks(page)
        if block.language == "sh"
        for line in commands(block.code)
        if "pip install" in line
    ]
    assert any("[cpu," in line for line in installs)
    assert [line for line in installs if "[cpu" in line and "--torch-backend cpu" not in line] == []


# ---- which broker, which home


def test_a_service_says_what_it_works_with(
    braid: Braid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        braid("--home", tmp_path / "h", "index", "--model", "null:x", "--port", "0")
    home = tmp_path / "h"
    assert f"home {home}, broker 127.0.0.1:1, registry {home / 'models'}" in caplog.text


@pytest.mark.parametrize(
    "command",
    ["produce a.txt", "delete a", "status", "dead-letters list", "dead-letters replay", "retrain"],
)
def test_a_command_names_the_broker_that_does_not_listen(
    braid: Braid, tmp_path: Path, command: str
) -> None:
    (tmp_path / "a.txt").write_text("a")
    status, _, err = braid(*command.split())
    assert status == 1
    assert "no broker at 127.0.0.1:1 (KAFKA_BOOTSTRAP, or bootstrap below [kafka])" in err
    assert not OBJECTS.search(err), err


def test_the_broker_is_named_within_five_seconds() -> None:
    """Where no server listens, and where one does not answer."""
    assert max(connection.CONNECT_S, connection.SAY_S) < 5


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_broker_that_never_answers_is_named_while_it_is_waited_for(
    braid: Braid, tmp_path: Path, silent: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("a")
    status, _, err = braid("produce", "a.txt", KAFKA_BOOTSTRAP=silent)
    assert status == 1
    where = f"{silent} (KAFKA_BOOTSTRAP, or bootstrap below [kafka])"
    assert f"waiting for Kafka at {where}: it does not answer" in caplog.text
    assert silent in err
    assert "KAFKA_BOOTSTRAP" in err


def test_an_unknown_variable_ends_a_process_with_the_nearest_name(braid: Braid) -> None:
    status, _, err = braid("index", BRAID_MODEL__SPECK="null:16")
    assert (status, err) == (
        os.EX_CONFIG,
        "braid: BRAID_MODEL__SPECK: no such setting; the nearest is BRAID_MODEL__SPEC\n",
    )


# ---- flags on both sides of the command


def test_the_flags_of_every_command_may_stand_behind_it(braid: Braid, tmp_path: Path) -> None:
    for line in (
        ["--home", "there", "config", "--json"],
        ["config", "--json", "--home", "there"],
        ["config", "--home=there", "--json"],
        ["--home", "elsewhere", "config", "--json", "--home", "there"],
    ):
        status, out, _ = braid(*line)
        assert status == 0
        assert json.loads(out)["home"] == {"value": str(tmp_path / "there"), "from": "flag"}
    assert braid("models", "list", "--home", "there")[0] == 0


def test_what_is_no_flag_of_every_command_stays_where_it_is() -> None:
    words = ["search", "-k", "3", "--", "--home", "x"]
    assert common_first(words) == words
    assert common_first(["embed", "--prefix", "p-", "--slot", "s", "--log-level=debug"]) == [
        *("--prefix", "p-", "--log-level=debug"),
        *("embed", "--slot", "s"),
    ]
    assert common_first(["status", "--home"]) == ["--home", "status"]
    assert common_first(["status", "--home=", "--json"]) == ["--home=", "status", "--json"]


# ---- produce and delete


@pytest.fixture
def sent(deployment: Deployment, braid: Braid, monkeypatch: pytest.MonkeyPatch) -> Braid:
    """`braid` with the settings of a deployment."""
    for name, value in deployment.settings.environment().items():
        monkeypatch.setenv(name, value)
    return braid


def records(deployment: Deployment) -> dict[str, Any]:
    """What is in `records`, the last of each id."""
    last: dict[str, Message] = {}
    for message in deployment.read("records"):
        last[(message.key or b"").decode()] = message
    return {
        id_: None if message.value is None else decode_record(message.key, message.value)
        for id_, message in last.items()
    }


@pytest.mark.kafka
def test_single_files_tables_and_folders_are_sent(
    deployment: Deployment, sent: Braid, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "red.txt").write_text("a red square")
    (tmp_path / "low.wav").write_bytes(tone("red"))
    for folder in ("here", "there"):
        (tmp_path / folder / "cats").mkdir(parents=True)
        (tmp_path / folder / "cats" / "tom.txt").write_text(f"tom is {folder}")
    (tmp_path / "here" / "cats" / "kim.txt").write_text("kim")
    (tmp_path / "table.csv").write_text(
        "id,text,image,labels.category,meta.year,meta.zip\n"
        'c1,"a, bird",red.png,animals,2020,01234\n'
        "c2,two,,,,\n"
    )
    rows = {
        "id": ["p1", "p2"],
        "text": ["one", None],
        "image": [None, picture("blue")],
        "labels.category": ["things", None],
        "meta.n": [1, 2],
    }
    parquet.write_table(pa.table(rows), tmp_path / "table.parquet")
    status, out, err = sent(
        *("produce", "red.png", "red.txt", "low.wav", "here", "there", "table.csv"),
        *("table.parquet", "--label", "category"),
    )
    assert (status, out) == (0, "sent 9 records, refused 0\n"), err
    there = records(deployment)
    assert set(there) == {
        *("red", "low", "cats/kim", "here/cats/tom", "there/cats/tom"),
        *("c1", "c2", "p1", "p2"),
    }
    assert there["red"].text == "a red square"
    assert there["red"].image.data == there["c1"].image.data == picture("red")
    assert there["low"].audio.media_type == "audio/wav"
    assert there["there/cats/tom"].text == "tom is there"
    assert there["cats/kim"].labels == {"category": "cats"}
    assert there["c1"].text == "a, bird"
    assert there["c1"].labels == {"category": "animals"}
    assert there["c1"].meta == {"year": 2020, "zip": "01234"}
    assert there["c2"].labels == there["c2"].meta == {}
    assert (there["p1"].labels, there["p1"].meta) == ({"category": "things"}, {"n": 1})
    assert there["p2"].image.data == picture("blue")


@pytest.mark.kafka
def test_of_files_with_one_id_the_first_is_sent_and_the_others_named(
    deployment: Deployment, sent: Braid, tmp_path: Path
) -> None:
    for name in ("one/a.b.txt", "one/a.c.txt", "one/x.txt", "two/x.txt", "three/one/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    status, out, err = sent("produce", "one", "two", "three")
    assert (status, out) == (1, "sent 4 records, refused 1\n"), err
    assert "refused one/x: another file here has this id" in err
    there = records(deployment)
    assert set(there) == {"a.b", "a.c", "one/x", "two/x"}
    assert there["a.c"].text == "one/a.c.txt"
    assert there["one/x"].text == "one/x.txt"


@pytest.mark.kafka
def test_bad_lines_are_listed_and_the_others_sent(
    deployment: Deployment, sent: Braid, tmp_path: Path
) -> None:
    lines = [
        b'{"id": "good", "text": "a"}',
        b'{"id": "torn", "text": ',
        b'{"id": "bytes", "text": "\xff"}',
        b'{"id": "far", "image": "gone.png"}',
        b'{"id": "extra", "text": "a", "colour": "red"}',
        b'{"id": "empty"}',
        b'{"id": "labelled", "text": "a", "labels": 3}',
        b'{"id": "deep", "text": ' + b"[" * 100_000,
        b'{"id": "last", "text": "b"}',
    ]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "table.csv").write_bytes(b"id,text\nc1,one\nc2\n,nobody\nc4,\xff\nc5,five\n")
    status, out, err = sent("produce", "events.jsonl", "table.csv")
    assert (status, out) == (1, "sent 4 records, refused 10\n"), err
    refused = re.findall(r"refused (\S+?): ", err)
    assert refused == [
        *(f"events.jsonl:{number}" for number in range(2, 9)),
        *(f"table.csv:{number}" for number in (3, 4, 5)),
    ]
    assert not OBJECTS.search(err), err
    assert "gone.png: No such file" in err
    assert set(records(deployment)) == {"good", "last", "c1", "c5"}


@pytest.mark.kafka
def test_what_cannot_be_read_is_named_and_the_others_sent(
    deployment: Deployment, sent: Braid, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    ids, rows = [f"p{n}" for n in range(9)], [f"the text of {n:04d}" for n in range(9)]
    whole = pa.table({"id": ids, "text": rows})
    damaged = tmp_path / "damaged.parquet"
    parquet.write_table(whole, damaged, row_group_size=3, compression="none", use_dictionary=False)
    content = bytearray(damaged.read_bytes())
    page = parquet.ParquetFile(damaged).metadata.row_group(1).column(1).data_page_offset
    content[page : page + 12] = b"\xff" * 12  # the header of the second group's texts
    damaged.write_bytes(bytes(content))
    days = pa.array([0, 2**31 - 1], pa.date32())  # the year 5,881,580
    parquet.write_table(
        pa.table({"id": ["d1", "d2"], "text": ["a", "b"], "meta.day": days}),
        tmp_path / "days.parquet",
    )
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "good.txt").write_text("good")
    (tmp_path / "memory" / "bad.txt").symlink_to("/proc/self/mem")
    (tmp_path / "mem.jsonl").symlink_to("/proc/self/mem")
    status, out, err = sent("produce", "mem.jsonl", "damaged.parquet", "days.parquet", "memory")
    assert (status, out) == (1, "sent 8 records, refused 4\n"), err
    assert re.findall(r"refused (.+?): (?!row)", err) == [
        "bad",
        "mem.jsonl",
        "damaged.parquet: rows 4 to 6",
        "days.parquet: row 2",
    ]
    assert not OBJECTS.search(err), err
    there = records(deployment)
    assert set(there) == {"good", "p0", "p1", "p2", "p6", "p7", "p8", "d1"}
    assert there["d1"].meta == {"day": "1970-01-01"}


@pytest.mark.kafka
def test_nan_is_no_number_of_json(deployment: Deployment, sent: Braid, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "j", "text": "a", "meta": {"n": NaN}}\n')
    (tmp_path / "a.csv").write_text("id,text,meta.code,meta.n\nc,a,NaN,1.5\nd,b,-Infinity,2\n")
    status, _, err = sent("produce", "a.jsonl", "a.csv")
    assert status == 1
    assert "refused a.jsonl:1: NaN is not JSON" in err
    there = records(deployment)
    assert there["c"].meta == {"code": "NaN", "n": 1.5}
    assert there["d"].meta == {"code": "-Infinity", "n": 2}
    status, _, err = sent("search", "words", "--filter", '{"n": NaN}')
    assert (status, "--filter: is not JSON (NaN is not JSON)" in err) == (os.EX_CONFIG, True)
    status, _, err = sent("config", BRAID_REFRESH__GATES='{"recall": NaN}')
    assert (status, "NaN is not JSON" in err) == (os.EX_CONFIG, True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"id,labels.\n1,2\n", "unknown columns labels."),
        ("a.csv", b"id,meta.\n1,2\n", "unknown columns meta."),
        ("a.doc", b"x", "is none of"),
        ("a.csv", b"name,text\n", "there is no column id"),
        ("a.csv", b"id,colour\n1,2\n", "unknown columns colour"),
        ("a.parquet", b"PAR1", "Parquet file"),
        ("gone.txt", None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_sent_is_named(
    braid: Braid, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, _, err = braid("produce", name)
    assert status == 1
    assert words in err
    assert name in err
    assert not OBJECTS.search(err), err


def test_parquet_without_pyarrow_names_the_extra(
    braid: Braid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("braid.stream.cli.produce.tables.find_spec", lambda name: None)
    status, _, err = braid("produce", "a.parquet")
    assert status == os.EX_CONFIG
    assert "a.parquet: Parquet needs pyarrow: pip install 'braid-stream[parquet]'" in err


@pytest.mark.kafka
def test_delete_sends_a_null_for_each_id(deployment: Deployment, sent: Braid) -> None:
    deployment.produce([{"id": id_, "text": id_} for id_ in ("a", "b", "c")])
    status, out, _ = sent("delete", "a", "b")
    assert status == 0
    topic = deployment.settings.topic("records")
    assert re.findall(
        rf"(\w): its deletion is sent to {topic}, partition \d+, offset \d+", out
    ) == [
        "a",
        "b",
    ]
    there = records(deployment)
    assert (there["a"], there["b"]) == (None, None)
    assert there["c"].text == "c"
    status, _, err = sent("delete", "a", "__reserved")
    assert (status, "reserved" in err) == (1, True)


# ---- errors are sentences


@pytest.mark.parametrize(
    "line",
    [
        "search words",
        "search --image gone.png",
        "search --image .",
        "search words --filter {",
        "search words --filter []",
        "produce nowhere",
        "delete __x",
        "models show 7",
        "models diff 1 2",
        "models promote braid-0001",
        "models rollback",
        "models drop g0009",
        "retrain --window nothing",
        "retrain --every often",
        "retrain --preset huge",
        "eval --model nowhere",
        "eval --data nowhere",
        "index --home /dev/null/x",
        "embed --model nowhere",
        "up --model-is-no-flag",
        "status",
    ],
)
def test_no_error_holds_an_object_of_python(braid: Braid, line: str) -> None:
    status, out, err = braid(*line.split())
    assert status != 0
    assert not OBJECTS.search(out + err), out + err
    assert err.strip(), "it says what is wrong"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRAID_KAFKA__PARTITIONS", "many"),
        ("BRAID_HTTP__API_KEYS", "["),
        ("BRAID_REFRESH__GATES", '{"a": "b"}'),
        ("BRAID_REFRESH__GATES", "[1]"),
        ("BRAID_LINKS__ROOTS", '{"a": 1}'),
        ("BRAID_MODEL", "x"),
        ("BRAID_CONFIG", "gone.toml"),
    ],
)
def test_no_error_of_a_setting_holds_an_object(braid: Braid, name: str, value: str) -> None:
    status, _, err = braid("config", **{name: value})
    assert status == os.EX_CONFIG
    assert not OBJECTS.search(err), err
    assert "Traceback" not in err
