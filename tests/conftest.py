"""Fixtures: real servers, started once a test run and only if a test asks for them.

`kafka`   bootstrap address of an Apache Kafka broker: `KAFKA_BOOTSTRAP`, else one started here
          for all processes of the test run.
`own_kafka` a broker of the test's own, which it may stop, pause and start again.
`valkey`  url of an empty Valkey: `REDIS_URL` (its database is flushed!), else one started here.
`own_valkey` a Valkey of the test's own, which it may stop, pause and start again.
`s3`      an S3-compatible server with a bucket; take a prefix of your own.
`topics`  makes topics with unique names on `kafka` and deletes them at the end.
`chromium` a headless Chromium: `CHROMIUM`, else one found on the path.
`tab`     a tab of it, of which console errors and refused scripts fail the test.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
import redis
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from braid.stream.errors import EmbeddedError
from braid.stream.local.embedded import Server
from braid.stream.local.filelock import file_lock
from tests.object_storage import S3Server
from tests.services import KafkaBroker, Valkey, chromium_path, in_ci
from tests.time_limit import TimeLimit, WhereTestsHang

S = TypeVar("S", bound=Server)

NEEDS = ("kafka", "redis", "browser", "s3")  # marks whose tests may not be skipped in CI

CI_LIMIT_S = 75 * 60  # of all tests; CI as a whole has 90 minutes
LAST_WITHIN_S = 1200.0  # between the ends of the first and of the last process of a test run

# Files of a minute and more, the longest first.
LONGEST = (
    "test_docs.py",
    "simulation/test_simulation.py",
    "stream/kafka/test_hanging.py",
    "chaos/test_chaos.py",
    "stream/index_node/test_generations_flip.py",
    "stream/test_acls.py",
    "stream/cli/test_up.py",
    "index/segments/test_crashes.py",
    "stream/registry/test_object_store.py",
    "stream/worker/test_imported.py",
    "stream/worker/test_hot_swap.py",
    "fuzz/test_fuzz.py",
    "stream/worker/test_lost_broker.py",
    "encoders/training/test_golden_losses.py",
    "stream/trainer/test_retrain_job.py",
    "encoders/training/test_fit.py",
    "stream/worker/test_health.py",
    "stream/test_secured_servers.py",
    "stream/worker/ingest/test_every_format.py",
    "stream/worker/join/test_join_kafka.py",
    "stream/worker/test_exactly_once.py",
    "index/test_soak.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let children end by SIGINT, which a script's background commands ignore.

    Tests run side by side, on arrays so small that threads of BLAS and torch only wait for each
    other: one each, in children too.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.disable()  # it would look at what the modules of all tests import, again and again
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(WhereTestsHang(config))
    elif in_ci():
        config.pluginmanager.register(TimeLimit(CI_LIMIT_S))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, long files come first and quick ones last.

    Or a long file that begins last leaves all processes but one idle.
    """
    if not hasattr(config, "workerinput"):  # not a process of pytest-xdist
        return
    longest = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    starts = {item.path for item in items if any(map(item.get_closest_marker, (*NEEDS, "slow")))}
    items.sort(key=lambda item: (longest.get(item.path, len(LONGEST)), item.path not in starts))


def missing(reason: str) -> NoReturn:
    if in_ci():
        pytest.fail(f"in CI nothing is skipped: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, object, None]:
    """In CI a skipped test that needs Kafka or Redis is a failed one, whoever skipped it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    marks = [name for name in NEEDS if item.get_closest_marker(name)]
    if in_ci() and report.skipped and not hasattr(report, "wasxfail") and marks:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI although marked {', '.join(marks)}: {report.longrepr}"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all processes of a test run. Nobody may change it."""
    root = folder_of_run(factory)
    folder = root / name
    with file_lock(root / f"{name}.lock", what=name, timeout=240):
        if not folder.is_dir():
            partial = root / f"{name}.partial-{uuid.uuid4().hex}"  # one that failed stays
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


def folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of a test run share."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def started_once(
    add_cleanup: Callable[[Callable[[], None]], object], folder: Path, server: Server
) -> str:
    """The address of a server of all processes of a test run.

    The process that started it stops it, after its own tests and once no other one uses it. One
    that asks later starts it again.
    """
    folder.mkdir(exist_ok=True)
    users = (folder / "users").open("w")
    fcntl.flock(users, fcntl.LOCK_SH)
    add_cleanup(users.close)
    address = folder / "address"
    with file_lock(folder / "lock", what=server.name, timeout=240):
        if not address.exists():

            def stop() -> None:
                users.close()
                try:
                    with file_lock(folder / "users", what=server.name, timeout=LAST_WITHIN_S):
                        address.unlink()
                        server.stop(grace=0)
                finally:
                    server.stop(grace=0)

            address.write_text(started(server).address)
            add_cleanup(stop)
    return address.read_text()


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given:
        return given
    folder = folder_of_run(tmp_path_factory) / "kafka"
    return started_once(pytestconfig.add_cleanup, folder, KafkaBroker(folder))


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path / "kafka") as broker:
        yield started(broker)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield started(server)


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield started(server).address


@pytest.fixture
def valkey(_shared_valkey: str) -> str:
    with redis.Redis.from_url(_shared_valkey) as client:
        client.flushdb()
    return _shared_valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield started(server)


def started(server: S) -> S:
    """The server, running; without a part of it the test is skipped, in CI it fails."""
    try:
        server.start()
    except EmbeddedError as error:
        missing(str(error))
    return server


@dataclass
class Topics:
    """Makes topics whose names begin with a prefix that no other test has."""

    bootstrap: str
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}-")

    def create(self, name: str, *, partitions: int = 1, **config: str) -> str:
        """Make one topic (`cleanup_policy="compact"` sets `cleanup.policy`); its full name."""
        full = self.prefix + name
        settings = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(full, num_partitions=partitions, replication_factor=1, config=settings)
        admin = self._admin()  # its futures fail when it is collected
        deadline = time.monotonic() + 30
        while True:
            try:
                admin.create_topics([topic])[full].result(30)
                return full
            except KafkaException as error:  # a broker that answers, and is fenced still
                code = error.args[0].code()
                if code != KafkaError.INVALID_REPLICATION_FACTOR or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def delete_all(self) -> None:
        admin = self._admin()
        names = [name for name in admin.list_topics(timeout=30).topics if self.owns(name)]
        if names:
            for future in admin.delete_topics(names).values():
                future.result(30)

    def owns(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap})


@pytest.fixture
def topics(kafka: str) -> Iterator[Topics]:
    made = Topics(kafka)
    try:
        yield made
    finally:
        made.delete_all()


# Without sandbox and GPU it runs as root in a container; the rest keeps it off the network. The
# microphone is a made one, which beeps.
CHROMIUM = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update
    --use-fake-ui-for-media-stream --use-fake-device-for-media-stream
    --autoplay-policy=no-user-gesture-required
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For one module: while it is there, its thread cannot run an event loop of its own."""
    try:
        path = chromium_path()
    except EmbeddedError as error:
        missing(str(error))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM.split())
        yield browser
        browser.close()


@pytest.fixture
def expected_errors() -> list[str]:
    """Parts of console errors that a test provokes, such as a 404; all others fail it."""
    return []


@pytest.fixture
def tab(chromium: Browser, expected_errors: list[str]) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(15_000)
    output: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            output.append(f"{message.text} ({message.location.get('url')})")

    page.on("console", note)
    page.on("pageerror", lambda error: output.append(repr(error)))
    yield page
    context.close()
    assert [line for line in output if not any(part in line for part in expected_errors)] == []
