"""Downloads the jars of Apache Kafka by their Maven coordinates into a cache folder.

`kafka-jars.sha256` beside this file lists each jar with its SHA-256 digest, so that the tested jars
run. To make the list again, after a change of Kafka's version in `ROOTS`:

    python -m braid.stream.local.kafka_jars > stream/local/kafka-jars.sha256
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import EmbeddedError
from .filelock import file_lock

log = logging.getLogger(__name__)

# Without a binding SLF4J prints nothing: the log of a failed broker would be empty.
ROOTS = ("org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:1.7.36")
LIST = Path(__file__).with_name("kafka-jars.sha256")
ATTEMPTS = 3
THREADS = 8
FETCHED_WITHIN_S = 900.0  # how long to wait for another process that fetches them


def kafka_jars(cache: Path) -> Path:
    """The folder of the broker's jars, see `listed_jars`."""
    return listed_jars(cache, LIST, "kafka")


def listed_jars(cache: Path, listing: Path, name: str) -> Path:
    """The folder of a server's jars, each as listed; missing ones are fetched.

    Local Maven repositories (`M2_REPO`, else ~/.m2/repository) are read and never written.

    Args:
        cache: the folder of downloads; the jars get one below it, named after the list.
        listing: a file with the SHA-256 and the coordinates of each jar.
        name: of the server.

    Raises:
        EmbeddedError: jgo is not installed, or a jar cannot be fetched.
        FileLockError: another process fetches them for longer than FETCHED_WITHIN_S.
    """
    listed = _listed(listing)
    digest = hashlib.sha256(listing.read_bytes()).hexdigest()[:12]
    parent = cache / name
    jars = parent / f"jars-{digest}"
    if _complete(jars, listed):
        return jars
    with file_lock(parent / "jars.lock", what=f"jars in {parent}", timeout=FETCHED_WITHIN_S):
        for left in parent.glob("fetching-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        if _complete(jars, listed):
            return jars
        if jars.exists():
            log.warning("the jars in %s are damaged: fetched again", jars)
        began = time.monotonic()
        log.info("fetching the %d jars of %s once into %s", len(listed), name, jars)
        work = Path(tempfile.mkdtemp(prefix="fetching-", dir=parent))
        try:
            _fetch(listed, work)
            shutil.rmtree(jars, ignore_errors=True)
            (work / "jars").rename(jars)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        log.info("fetched in %.1f s", time.monotonic() - began)
    return jars


def _listed(listing: Path = LIST) -> dict[str, str]:
    """Coordinates (group:artifact:version) and the SHA-256 of each jar."""
    lines = [line.split() for line in listing.read_text().splitlines()]
    return {coordinates: digest for digest, coordinates in lines}


def _file_name(coordinates: str) -> str:
    _, artifact, version = coordinates.split(":")
    return f"{artifact}-{version}.jar"


def _complete(jars: Path, listed: dict[str, str]) -> bool:
    return all(_sha256(jars / _file_name(name)) == digest for name, digest in listed.items())


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _fetch(listed: dict[str, str], work: Path) -> None:
    """Fetch every jar into `work`/jars. Raises EmbeddedError for the first that fails."""
    target = work / "jars"
    target.mkdir()
    contexts = [_context(work / "local", _maven_repository())]
    contexts += [_context(work / str(attempt)) for attempt in range(ATTEMPTS)]

    def fetch(entry: tuple[str, str]) -> None:
        coordinates, digest = entry
        reason = ""
        for attempt, context in enumerate(contexts):
            if attempt > 1:
                time.sleep(2.0 ** (attempt - 2))
            try:
                path = context.create_dependency(coordinates).artifact.resolve()
            except Exception as error:  # noqa: BLE001 (jgo lets every error of its parts through)
                reason = f"{type(error).__name__}: {error}"
                continue
            if _sha256(path) == digest:
                shutil.copyfile(path, target / _file_name(coordinates))
                return
            reason = f"its SHA-256 is {_sha256(path)}, {digest} is expected"
        raise EmbeddedError(
            f"no embedded broker: {coordinates} cannot be fetched ({reason[:500]}); the first "
            "start needs the network, or set KAFKA_BOOTSTRAP to a broker that runs"
        )

    with ThreadPoolExecutor(THREADS) as pool:
        pending = [pool.submit(fetch, entry) for entry in listed.items()]
        try:
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _context(cache: Path, *repositories: Path) -> Any:
    """jgo's Maven context that writes to `cache` only. Raises EmbeddedError."""
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise EmbeddedError(
            "no embedded broker: the package jgo is not installed "
            "(pip install 'braid-stream[embedded]')"
        ) from error
    return MavenContext(repo_cache=cache, local_repos=list(repositories))


def _maven_repository() -> Path:
    from jgo.constants import default_maven_repo

    return Path(default_maven_repo())


def resolve(roots: Sequence[str] = ROOTS) -> list[str]:
    """A new list from the POM files: jgo resolves and fetches the dependencies."""
    from jgo.parse import Coordinate

    with tempfile.TemporaryDirectory(prefix="braid-jars-") as folder:
        context = _context(Path(folder))
        dependencies = [
            context.create_dependency(dataclasses.replace(Coordinate.parse(root), scope="compile"))
            for root in roots
        ]
        inputs, transitive = context.resolver.resolve(dependencies)
        run = [*inputs, *(each for each in transitive if each.scope in ("compile", "runtime"))]
        return sorted(
            (
                f"{_sha256(each.artifact.resolve())}  "
                f"{each.groupId}:{each.artifactId}:{each.version}"
                for each in run
            ),
            key=lambda line: line.split()[1],
        )


if __name__ == "__main__":
    print("\n".join(resolve()))
