"""The embedded Kafka and Valkey: what they keep, what ends them, and that they leave nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from braid.stream.errors import EmbeddedError
from braid.stream.local.child import Child, ChildError, free_port, start_server
from braid.stream.local.embedded import EmbeddedServices, Kafka, _works
from braid.stream.local.filelock import FileLockError

MAX_BYTES = 17_825_792
LARGE = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    with EmbeddedServices(tmp_path_factory.mktemp("embedded") / "services", grace=0) as running:
        yield running


def make_topic(bootstrap: str, name: str, partitions: int = 1, **config: str) -> str:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    settings = {key.replace("_", "."): value for key, value in config.items()}
    admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(20)
    return name


def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    """The first values of partition 0, read committed."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "unused",
            "isolation.level": "read_committed",
            "fetch.message.max.bytes": MAX_BYTES,
        }
    )
    reader.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes | None] = []
    deadline = time.monotonic() + 60
    while len(values) < count and time.monotonic() < deadline:
        message = reader.poll(1)
        if message is not None and not message.error():
            values.append(message.value())
    reader.close()
    return values


def send(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": MAX_BYTES})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(60) == 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.slow
def test_kafka_carries_sixteen_mebibytes(services: EmbeddedServices) -> None:
    name = make_topic(services.bootstrap, "large", max_message_bytes=str(MAX_BYTES))
    values = [os.urandom(LARGE) for _ in range(4)]
    send(services.bootstrap, name, *values)
    assert read(services.bootstrap, name, 4) == values


@pytest.mark.slow
def test_a_program_path_without_java_and_maven_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert shutil.which("java") is None
    assert shutil.which("mvn") is None
    kafka = Kafka(tmp_path / "kafka")
    kafka.start()
    try:
        send(kafka.address, make_topic(kafka.address, "t"), b"x")
        assert read(kafka.address, "t", 1) == [b"x"]
    finally:
        kafka.stop(grace=0)


@pytest.mark.slow
def test_what_was_produced_is_there_after_an_orderly_stop_and_after_a_kill(tmp_path: Path) -> None:
    """The same address as well, so that clients and other terminals need not be told."""
    folder = tmp_path / "services"
    addresses = set()
    for number, grace in enumerate((20, 0, 0)):
        with EmbeddedServices(folder, grace=grace) as services:
            addresses.add((services.bootstrap, services.redis_url))
            if not number:
                make_topic(services.bootstrap, "t")
            send(services.bootstrap, "t", b"%d" % number)
            expected = [b"%d" % earlier for earlier in range(number + 1)]
            assert read(services.bootstrap, "t", number + 1) == expected
            with redis.Redis.from_url(services.redis_url) as client:
                assert client.rpush("texts", number) == number + 1
    assert len(addresses) == 1


@pytest.mark.slow
def test_a_port_that_another_process_took_is_left_to_it(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path / "kafka")
    kafka.start()
    make_topic(kafka.address, "t")
    send(kafka.address, "t", b"x")
    kafka.stop(grace=0)
    code = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])));"
        "time.sleep(600)"
    )
    before = kafka.port
    taker, _ = start_server(
        "taker",
        lambda port: [sys.executable, "-c", code, str(port)],
        log=tmp_path / "taker.log",
        port=before,
    )
    try:
        again = Kafka(tmp_path / "kafka")
        again.start()
        try:
            assert again.port != before
            assert read(again.address, "t", 1) == [b"x"]
        finally:
            again.stop(grace=0)
    finally:
        taker.stop(grace=0)


@pytest.mark.slow
def test_a_start_killed_while_it_formats_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "kafka" / "data.partial"
    partial.mkdir(parents=True)
    (partial / "meta.properties").write_text("version=1\n")
    kafka = Kafka(tmp_path / "kafka")
    kafka.start()
    kafka.stop(grace=0)
    assert not partial.exists()


@pytest.mark.slow
def test_a_format_that_fails_says_why(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path / "kafka", properties={"process.roles": "juggler"})
    with pytest.raises(EmbeddedError, match=r"(?s)formatting .*failed.*juggler"):
        kafka.start()
    assert not (tmp_path / "kafka" / "data").exists()


@pytest.mark.slow
def test_one_folder_serves_one_process(services: EmbeddedServices) -> None:
    with pytest.raises(FileLockError, match=rf"services of .*in use .*pid {os.getpid()}"):
        EmbeddedServices(services.folder).start()


@pytest.mark.redis
def test_valkey_answers(services: EmbeddedServices) -> None:
    with redis.Redis.from_url(services.redis_url) as client:
        assert client.set("key", b"\x00\xff")
        assert client.get("key") == b"\x00\xff"
        assert client.config_get("bind")["bind"] == "127.0.0.1"


@pytest.mark.slow
def test_both_listen_on_loopback_only(services: EmbeddedServices) -> None:
    """Every listening socket of both processes, that of Kafka's controller too."""
    sockets = {
        os.readlink(descriptor)
        for child in services.children
        for descriptor in Path(f"/proc/{child.pid}/fd").iterdir()
    }
    listening: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            listening += [
                row[1].split(":")[0]
                for row in rows
                if row[3] == "0A" and f"socket:[{row[9]}]" in sockets
            ]
    assert len(listening) == 3
    assert {address[-8:] for address in listening} == {"0100007F"}


@pytest.mark.slow
def test_stop_leaves_no_process(tmp_path: Path) -> None:
    services = EmbeddedServices(tmp_path)
    services.start()
    pids = [child.pid for child in services.children]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    services.stop()
    services.stop()
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_start_that_fails_half_way_stops_what_had_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Kafka, "command", lambda self, port: [sys.executable, "-c", "raise SystemExit('no room')"]
    )
    services = EmbeddedServices(tmp_path)
    with pytest.raises(ChildError, match="no room"):
        services.start()
    assert services.redis_url
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(services.redis_url) as client:
        client.ping()
    EmbeddedServices(tmp_path, broker=False, redis=False).start()  # the folder is free again


@pytest.mark.slow
def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL of the parent: nothing of it can run, the kernel ends the children."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from braid.stream.local.embedded import EmbeddedServices\n"
        "services = EmbeddedServices(Path(sys.argv[1])); services.start()\n"
        "print(*[child.pid for child in services.children], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as out:
        pids = [int(pid) for pid in out.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with EmbeddedServices(tmp_path, grace=0):  # at once: it waits for what still ends
        assert all(gone(pid) for pid in pids)


def test_a_child_that_ends_shows_its_log(tmp_path: Path) -> None:
    child = Child("talker", ["sh", "-c", "echo last words; exit 3"], log=tmp_path / "log").start()
    with pytest.raises(ChildError, match=r"(?s)talker ended with status 3.*last words"):
        child.wait_until(lambda: False, timeout=20)


def test_a_child_that_never_answers_times_out(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"did not answer within 0\.2 s"):
        start_server("mute", lambda port: ["sleep", "60"], log=tmp_path / "log", timeout=0.2)


def test_a_server_on_a_taken_port_is_not_believed(tmp_path: Path, own_port: int) -> None:
    """Something else answers there: the child that could not bind must not count as started."""
    with pytest.raises(ChildError):
        start_server(
            "late", lambda port: ["sh", "-c", "exit 1"], log=tmp_path / "log", port=own_port
        )


@pytest.fixture
def own_port() -> Iterator[int]:
    import socketserver
    import threading

    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_an_unknown_program_is_named(tmp_path: Path) -> None:
    child = Child("ghost", ["no-such-program"], log=tmp_path / "log").start()
    assert child.wait(20) == 127
    assert "no-such-program" in child.tail()


def test_free_ports_are_free_and_not_those_of_outgoing_connections() -> None:
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40
    assert all(20_000 <= port < 32_768 for port in ports)


@pytest.mark.parametrize(("failures", "moves"), [(0, False), (1, False), (2, True)])
def test_a_server_that_fails_to_bind_tries_its_port_once_more(
    tmp_path: Path, failures: int, moves: bool
) -> None:
    """An outgoing connection may have had the port for a moment."""
    tried: list[int] = []
    code = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])));"
        "time.sleep(600)"
    )

    def command(port: int) -> list[str]:
        tried.append(port)
        fails = len(tried) <= failures
        return ["sh", "-c", "exit 1"] if fails else [sys.executable, "-c", code, str(port)]

    kept = free_port()
    child, port = start_server("server", command, log=tmp_path / "log", prefer=kept)
    child.stop(grace=0)
    assert (port != kept) == moves
    assert tried[: failures or 1] == [kept] * (failures or 1)


def test_two_servers_that_start_at_once_do_not_take_each_other_for_themselves(
    tmp_path: Path,
) -> None:
    """Both prefer a port on which nothing answers yet; the second cannot bind it."""
    code = (
        "import socket, sys, time; time.sleep(1);"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    )

    def start(name: str) -> tuple[Child, int]:
        return start_server(
            name,
            lambda port: [sys.executable, "-c", code, str(port)],
            log=tmp_path / name,
            prefer=kept,
        )

    kept = free_port()
    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(start, ("one", "other")))
        time.sleep(1.5)  # what could not bind has ended by now
        assert all(child.running for child, _ in servers)
        assert len({port for _, port in servers}) == 2
        for child, _ in servers:
            child.stop(grace=0)


@pytest.mark.parametrize("error", [TimeoutError(), KafkaException("not yet")])
def test_a_broker_that_does_not_answer_in_time_is_asked_again(error: Exception) -> None:
    def call() -> None:
        raise error

    assert not _works(call)
    assert _works(lambda: None)
