"""The client of the schema registry: its cache, what is a message's fault and what is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from braid.stream.errors import BadRecord, ConfigError, SchemaRegistryAway
from braid.stream.local.child import free_port
from braid.stream.settings.source_groups import SchemaRegistry as RegistrySettings
from braid.stream.sources import schema_registry
from braid.stream.sources.schema_registry import Reference, Schema, SchemaRegistry, unframed

AVRO = {"schema": '"string"'}


class Answers:
    """A server that answers each path as told; tests of the formats run a real registry."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.asked.append(self.path)
                answers.headers = {k.lower(): v for k, v in self.headers.items()}
                status, body = answers.by_path[self.path]
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(answers: Answers, clock: Clock) -> SchemaRegistry:
    settings = RegistrySettings(url=f"{answers.url}/", user="u", password="geheim")
    return SchemaRegistry(settings, clock=clock)


def test_a_schema_is_asked_for_once(registry: SchemaRegistry, answers: Answers) -> None:
    answers.by_path["/schemas/ids/7"] = (200, AVRO)
    references = [{"name": "a", "subject": "s", "version": 2}]
    answers.by_path["/schemas/ids/8"] = (
        200,
        {"schema": "x", "schemaType": "PROTOBUF", "references": references},
    )
    assert [registry.schema(7) for _ in range(3)] == [Schema("AVRO", '"string"')] * 3
    assert registry.schema(8) == Schema("PROTOBUF", "x", (Reference("a", "s", 2),))
    assert answers.asked == ["/schemas/ids/7", "/schemas/ids/8"]
    assert answers.headers["authorization"] == "Basic dTpnZWhlaW0="


def test_the_subject_of_a_reference_is_one_part_of_the_path(
    registry: SchemaRegistry, answers: Answers
) -> None:
    answers.by_path["/subjects/a%2Fb%20c/versions/3"] = (200, AVRO)
    assert registry.referenced(Reference("n", "a/b c", 3)).text == '"string"'


def test_an_unknown_id_is_the_messages_fault_and_is_asked_for_again_later(
    registry: SchemaRegistry, answers: Answers, clock: Clock
) -> None:
    answers.by_path["/schemas/ids/7"] = (404, {"error_code": 40403, "message": "not found"})
    for _ in range(3):
        with pytest.raises(BadRecord, match="schema 7 is not in the schema registry"):
            registry.schema(7)
    assert len(answers.asked) == 1
    answers.by_path["/schemas/ids/7"] = (200, AVRO)
    clock.now = schema_registry.UNKNOWN_S + 1
    assert registry.schema(7).text == '"string"'


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, {"error_code": 50001, "message": "store"}, "answers 500 store"),
        (401, {"error_code": 40101}, "answers 401"),
        (403, b"{}", "answers 403"),
        (404, {"message": "no such path"}, "answers 404 no such path"),
        (404, b"<html>", "answers 404, and no JSON"),
        (200, b"[]", "answers 200"),
        (200, {"schema": 5}, "answers 200"),
        (302, b"{}", "answers 302"),
    ],
)
def test_any_other_answer_is_not_the_messages_fault(
    registry: SchemaRegistry, answers: Answers, status: int, body: Any, says: str
) -> None:
    answers.by_path["/schemas/ids/7"] = (status, body)
    with pytest.raises(SchemaRegistryAway, match=says) as raised:
        registry.schema(7)
    assert "geheim" not in str(raised.value)
    answers.by_path["/schemas/ids/7"] = (200, AVRO)
    assert registry.schema(7).text == '"string"'  # nothing of it is kept


def test_no_answer_is_not_the_messages_fault(tmp_path: Path) -> None:
    url = f"http://user:geheim@127.0.0.1:{free_port()}"
    with pytest.raises(SchemaRegistryAway, match="no answer from") as raised:
        SchemaRegistry(RegistrySettings(url=url)).schema(1)
    assert "geheim" not in str(raised.value)


def test_the_caches_are_bounded(
    registry: SchemaRegistry, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_registry, "CACHED", 3)
    for number in range(6):
        answers.by_path[f"/schemas/ids/{number}"] = (200, AVRO)
    for number in (0, 1, 2, 0, 3, 4, 0, 1):
        registry.schema(number)
    assert [path[-1] for path in answers.asked] == ["0", "1", "2", "3", "4", "1"]


def test_wrong_settings_are_errors_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"schema_registry\.url is not set"):
        SchemaRegistry(RegistrySettings())
    with pytest.raises(ConfigError, match=r"schema_registry\.ca"):
        SchemaRegistry(RegistrySettings(url="https://x", ca=tmp_path / "none.pem"))


@pytest.mark.parametrize("raw", [b"", b"\0\0\0\0", b"\1\0\0\0\7x", b'{"id": 1}'])
def test_a_message_without_the_prefix_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRecord, match="has no schema registry's prefix"):
        unframed(raw)
    assert unframed(b"\0\0\0\1\7x") == 263
