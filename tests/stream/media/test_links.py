"""Links: every one that cannot be fetched is a bad record, within its bounds of bytes and time."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from braid.stream.errors import REASON_CHARS, BadRecord, ConfigError
from braid.stream.media import links as links_module
from braid.stream.media.links import Links
from braid.stream.settings import Settings

Answer = Callable[[socket.socket], object]
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def serving(*answers: Answer) -> Iterator[tuple[int, list[bytes]]]:
    """A server on loopback that gives each connection the next answer (the last one again)."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket, how: Answer) -> None:
        with connection:
            try:
                requests.append(connection.recv(65536))
                how(connection)
            except OSError:  # the client has gone
                pass

    def accept() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            how = answers[min(number, len(answers) - 1)]
            threading.Thread(target=answer, args=(connection, how), daemon=True).start()
            number += 1

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def whole(body: bytes, *headers: bytes, status: bytes = OK) -> Answer:
    """An answer with a body and its length."""
    lines = [*headers, b"Content-Length: %d" % len(body)]
    return lambda connection: connection.sendall(status + b"\r\n".join(lines) + b"\r\n\r\n" + body)


def dripping(head: bytes, drop: bytes) -> Answer:
    """An answer that goes on for ever, some bytes every 50 ms."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    return answer


_OPEN: list[Links] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Connections that are kept for the next link are closed with the test."""
    yield
    while _OPEN:
        _OPEN.pop().close()


def links_to(tmp_path: Path, port: int = 80, **settings: Any) -> Links:
    links = Links(Settings(home=tmp_path, links={"hosts": [f"127.0.0.1:{port}"], **settings}))
    _OPEN.append(links)
    return links


def refused(links: Links, uri: str) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        links.fetch("image.uri", uri)
    error = caught.value
    assert (error.field, error.stage) == ("image.uri", "prepare")
    assert 0 < len(error.reason) <= REASON_CHARS
    assert "0x" not in error.reason
    return error


@pytest.mark.parametrize(
    "uri",
    [
        "http://[",
        "http://[::1",
        "http://",
        "http:///x",
        "http://host:abc/",
        "http://127.0.0.1:abc/",
        "http://127.0.0.1:99999999/",
        "http://127.0.0.1:0/",
        "http://℀.com/",
        "http://\x00/",
        "http://127.0.0.1:80/\r\nHost: other",
        "http://" + "a" * 2000,
        "http://a@b@127.0.0.1/",
        "file:///a%00b",
        "file://",
        "file:///" + "a/" * 900,
        "file:///" + "a" * 1000,
        "file:///" + "../" * 300 + "etc/passwd",
        "ftp://127.0.0.1/x",
        "data:image/png;base64,AAAA",
        "",
        " ",
        "x",
        "\ud800",
        "http://\udfff/",
    ],
)
def test_a_link_that_is_none_is_a_bad_record(tmp_path: Path, uri: str) -> None:
    refused(links_to(tmp_path, roots=[tmp_path], timeout_s=1), uri)


def test_a_loop_of_symbolic_links_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(links_to(tmp_path, roots=[tmp_path]), (tmp_path / "a").as_uri())


def test_only_regular_files_below_a_root_are_read(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(b"x")
    (root / "in").write_bytes(b"content")
    (root / "empty").touch()
    (root / "out").symlink_to(outside)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    links = links_to(tmp_path, roots=[root])
    assert links.fetch("image.uri", (root / "in").as_uri()) == b"content"
    assert "below" in refused(links, (root / "out").as_uri()).reason
    assert "below" in refused(links, outside.as_uri()).reason
    assert "is empty" in refused(links, (root / "empty").as_uri()).reason
    for name in ("fifo", "socket", "."):
        assert "regular file" in refused(links, f"{root.as_uri()}/{name}").reason
    assert "No such file" in refused(links, f"{root.as_uri()}/none").reason


def test_a_file_over_the_limit_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "MAX_LINKED_BYTES", 1000)
    (tmp_path / "right").write_bytes(b"x" * 1000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    links = links_to(tmp_path, roots=[tmp_path])
    assert len(links.fetch("image.uri", (tmp_path / "right").as_uri())) == 1000
    assert "limit of 1000" in refused(links, (tmp_path / "sparse").as_uri()).reason


def test_a_host_is_allowed_at_its_schemes_port_and_host_and_port_at_that_one(
    tmp_path: Path,
) -> None:
    with serving(whole(b"content")) as (port, requests):
        uri = f"http://127.0.0.1:{port}/a?b=c"
        assert links_to(tmp_path, port).fetch("image.uri", uri) == b"content"
        host_only = links_to(tmp_path, hosts=["127.0.0.1"])
        assert f"127.0.0.1:{port} is not in BRAID_LINKS__HOSTS" in refused(host_only, uri).reason
        assert "BRAID_LINKS__HOSTS" in refused(links_to(tmp_path, port + 1), uri).reason
        assert "BRAID_LINKS__HOSTS" in refused(links_to(tmp_path, hosts=[]), uri).reason
    (request,) = requests
    assert request.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"\r\naccept-encoding: identity\r\n" in request.lower()
    assert b"host: 127.0.0.1" in request.lower()
    # the port is the scheme's own: allowed, though nothing may listen there
    reason = refused(links_to(tmp_path, hosts=["127.0.0.1"]), "http://127.0.0.1/").reason
    assert "BRAID_LINKS__HOSTS" not in reason


@pytest.mark.parametrize("entry", ["", "host:abc", "http://host", "host/path", "u@host"])
def test_an_entry_that_is_no_host_stops_the_start(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match=r"links\.hosts"):
        links_to(tmp_path, hosts=[entry])


def test_an_encoding_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 10_000_000))
    with serving(whole(bomb, b"Content-Encoding: gzip, gzip")) as (port, _):
        error = refused(links_to(tmp_path, port), f"http://127.0.0.1:{port}/")
    assert "encoded as 'gzip, gzip'" in error.reason


def test_a_body_over_the_limit_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "MAX_LINKED_BYTES", 100_000)
    with serving(dripping(OK + b"\r\n", b"x" * 50_000)) as (port, _):
        error = refused(links_to(tmp_path, port), f"http://127.0.0.1:{port}/")
    assert "limit of 100000" in error.reason


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (OK, b"X-More: 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Content-Length: 100000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silent", "status", "headers", "1xx", "body", "chunks"],
)
def test_a_dripping_server_holds_a_thread_no_longer_than_the_timeout(
    tmp_path: Path, head: bytes, drop: bytes
) -> None:
    done: list[BadRecord] = []
    with serving(dripping(head, drop)) as (port, _):
        links = links_to(tmp_path, port, timeout_s=0.5)
        uri = f"http://127.0.0.1:{port}/"
        thread = threading.Thread(target=lambda: done.append(refused(links, uri)), daemon=True)
        thread.start()
        thread.join(30)  # far beyond the timeout, and beyond nothing else: the server has no end
    assert done, "still being fetched"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n", "redirects are not followed"),
        (b"HTTP/1.1 404 Not Found\r\n", "answers 404"),
        (b"HTTP/1.1 503 No\r\n", "try 3 of 3"),
        (b"garbage\r\n", "try 3 of 3"),
        (b"", "try 3 of 3"),
    ],
)
def test_other_answers_are_bad_records(tmp_path: Path, status: bytes, words: str) -> None:
    with serving(whole(b"", status=status)) as (port, requests):
        error = refused(links_to(tmp_path, port), f"http://127.0.0.1:{port}/")
    assert words in error.reason
    assert len(requests) == (3 if "3 of 3" in words else 1)


def test_a_passing_failure_is_tried_again(tmp_path: Path) -> None:
    failing = whole(b"", b"Connection: close", status=b"HTTP/1.1 503 No\r\n")
    closing: Answer = lambda connection: connection.close()  # noqa: E731
    with serving(failing, closing, whole(b"content")) as (port, _):
        links = links_to(tmp_path, port)
        assert links.fetch("image.uri", f"http://127.0.0.1:{port}/") == b"content"


def test_a_connection_serves_several_links(tmp_path: Path) -> None:
    def twice(connection: socket.socket) -> None:
        whole(b"one")(connection)
        connection.recv(65536)
        whole(b"two")(connection)

    with serving(twice) as (port, requests):
        links = links_to(tmp_path, port)
        uri = f"http://127.0.0.1:{port}/"
        assert [links.fetch("image.uri", uri) for _ in range(2)] == [b"one", b"two"]
    assert len(requests) == 1
