"""`braid mcp` with the official client, over stdio and over HTTP, on a real query service."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters

from braid.stream.local.child import free_port, port_answers
from braid.stream.mcp_server import mcp_server
from tests.index.conftest import Node, serving
from tests.index.oracle import unit
from tests.stream.harness import wait_for

PNG = b"\x89PNG a picture"


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    with serving(made) as (url, _):
        made.url = url
        made.reset()
        yield made


def asked(server: Any, ask: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Client(server, read_timeout_seconds=60) as client:
            return await ask(client)

    return asyncio.run(run())


def call(server: Any, tool: str, **arguments: Any) -> Any:
    return asked(server, lambda client: client.call_tool(tool, arguments))


def ids(result: Any) -> list[str]:
    assert not result.is_error, result.content
    return [hit["id"] for hit in result.structured_content["hits"]]


def test_over_stdio_a_program_searches_and_reads(node: Node, tmp_path: Path) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "braid", "--home", str(tmp_path), "mcp", "--url", node.url],
    )

    async def ask(client: Client) -> tuple[Any, ...]:
        tools = await client.list_tools()
        found = await client.call_tool("search_text", {"text": "a red bird", "k": 3})
        record = await client.call_tool("get_record", {"id": "r3"})
        return tools, found, record

    tools, found, record = asked(command, ask)
    assert {tool.name for tool in tools.tools} == {
        *("search_text", "search_picture", "search_sound", "search_video"),
        *("similar_records", "get_record", "stream_status"),
    }
    assert all(tool.annotations.read_only_hint for tool in tools.tools)
    assert ids(found) == node.expected(unit("a red bird", None, None), k=3)
    assert record.structured_content["id"] == "r3"
    assert "vectors" not in record.structured_content


def test_over_http_the_same_and_deletions_where_they_are_allowed(
    node: Node, tmp_path: Path
) -> None:
    port = free_port()
    command = ["-m", "braid", "--home", str(tmp_path), "mcp", "--url", node.url, "--allow-delete"]
    url = f"http://127.0.0.1:{port}/mcp"

    async def ask(client: Client) -> tuple[Any, ...]:
        found = await client.call_tool("search_text", {"text": "a red bird", "k": 3})
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        deleted = await client.call_tool("delete_record", {"id": "r3"})
        return found, tools, deleted

    with subprocess.Popen([sys.executable, *command, "--http", "--port", str(port)]) as process:
        try:
            wait_for("the server listens", lambda: port_answers(port), timeout=60)
            found, tools, deleted = asked(url, ask)
            # As a page sends it whose host name was made to lead here.
            rebound = httpx.post(url, headers={"host": "evil.example"}, json={}, timeout=20)
        finally:
            process.terminate()
    assert ids(found) == node.expected(unit("a red bird", None, None), k=3)
    assert tools["delete_record"].annotations.destructive_hint
    assert tools["search_text"].annotations.read_only_hint
    assert (deleted.structured_content["id"], node.deleted) == ("r3", ["r3"])
    assert rebound.status_code in (403, 421)


def test_pictures_sounds_and_records_are_asked_for_too(node: Node) -> None:
    encoded = base64.b64encode(PNG).decode()
    found = call(mcp_server(node.url), "search_picture", picture=encoded, k=2)
    assert ids(found) == node.expected(unit(None, PNG, None), k=2)
    found = call(mcp_server(node.url), "search_sound", sound=encoded, k=2)
    assert ids(found) == node.expected(unit(None, None, PNG), k=2)
    assert ids(call(mcp_server(node.url), "similar_records", id="r5", k=1)) == ["r5"]
    found = call(mcp_server(node.url), "search_text", text="x", k=9, filter={"number": {"lt": 2}})
    assert set(ids(found)) == {"r0", "r1"}
    status = call(mcp_server(node.url), "stream_status").structured_content
    assert status["generation"] == "g0001"


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("search_text", {"text": "x", "k": 51}, "less than or equal to 50"),
        ("search_text", {"text": ""}, "at least 1"),
        ("search_text", {"text": "x", "filter": {"a": {"like": 1}}}, "filter.a.like"),
        ("search_picture", {"picture": "?"}, "picture: is not base64"),
        ("search_video", {"video": "?"}, "video: is not base64"),
        ("search_picture", {"picture": "aGk="}, "image: does not decode"),
        ("get_record", {"id": "nobody"}, "no record 'nobody'"),
    ],
)
def test_a_bad_call_is_an_error_that_names_its_field(
    node: Node, tool: str, arguments: dict[str, Any], reason: str
) -> None:
    result = call(mcp_server(node.url), tool, **arguments)
    assert result.is_error
    assert reason in result.content[0].text


def test_a_record_is_deleted_only_where_that_is_allowed(node: Node) -> None:
    refused = call(mcp_server(node.url), "delete_record", id="r3")
    assert (refused.is_error, node.deleted) == (True, [])
    result = call(mcp_server(node.url, deletes=True), "delete_record", id="r3")
    assert (result.is_error, node.deleted) == (False, ["r3"])


def test_a_service_that_is_away_is_named() -> None:
    result = call(mcp_server(f"http://127.0.0.1:{free_port()}"), "stream_status")
    assert result.is_error
    assert "no answer from" in result.content[0].text
