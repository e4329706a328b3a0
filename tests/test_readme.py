"""The README's commands and programs, run as written, in its order, on Apache Kafka.

Only addresses are replaced: the README says where things are by default, a test takes free ports.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.stream.local.child import Child, free_port, port_answers
from tests.services import KafkaBroker
from tests.stream.conftest import COLOURS, picture, tone
from tests.stream.harness import wait_for

README = Path(__file__).parent.parent / "README.md"
ENDLESS = ("up", "embed", "index", "--every")

pytestmark = [pytest.mark.redis, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Block:
    language: str
    code: str


def blocks() -> list[Block]:
    result = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.S | re.M)
    return [Block(language, code) for language, code in result]


def commands(block: Block) -> list[list[str]]:
    lines = [line for line in block.code.splitlines() if line.startswith("braid ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


class Newcomer:
    """Someone in an empty folder who types what the README says."""

    def __init__(self, folder: Path, bootstrap: str, redis_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.other_port = free_port()
        self._bootstrap = bootstrap
        self._children: list[Child] = []
        self._env = {
            "KAFKA_BOOTSTRAP": bootstrap,
            "REDIS_URL": redis_url,
            "BRAID_HOME": str(folder / "home"),
            "BRAID_HTTP__PORT": str(self.port),
            "BRAID_KAFKA__PARTITIONS": "2",
        }

    def start(self, arguments: list[str]) -> Child:
        """A command that runs until it is stopped."""
        replaced = [
            str(self.other_port) if word in ("8078", "9101") else word for word in arguments
        ]
        child = Child(
            " ".join(arguments),
            [sys.executable, "-m", "braid", *replaced],
            log=self.folder / "logs" / f"{len(self._children)}.log",
            env=self._env,
            cwd=self.folder,
        )
        self._children.append(child)
        return child.start()

    def run(self, arguments: list[str]) -> str:
        """A command that ends; what it prints."""
        return self._ended([sys.executable, "-m", "braid", *arguments], " ".join(arguments))

    def run_program(self, code: str) -> str:
        code = code.replace('".braid/', f'"{self.folder}/home/')
        code = code.replace("127.0.0.1:9092", self._bootstrap)
        code = code.replace("127.0.0.1:8077", f"127.0.0.1:{self.port}")
        return self._ended([sys.executable, "-W", "error", "-c", code], code)

    def run_curl(self, line: str) -> str:
        words = shlex.split(line.replace("127.0.0.1:8077", f"127.0.0.1:{self.port}"))
        return self._ended(words, line)

    def close(self) -> None:
        for child in reversed(self._children):
            child.stop()

    def _ended(self, command: list[str], what: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self._env},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{what}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path, own_kafka: KafkaBroker, valkey: str) -> Iterator[Newcomer]:
    person = Newcomer(tmp_path, own_kafka.address, valkey)
    for number in range(60):
        colour = sorted(COLOURS)[number % 2]
        stem = tmp_path / "pictures" / colour / f"{colour}-{number // 2}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(picture(colour, number))
        stem.with_suffix(".wav").write_bytes(tone(colour, number))
        stem.with_suffix(".txt").write_text(f"a {colour} square")
    (tmp_path / "bird.png").write_bytes(picture("red"))
    (line,) = [block.code for block in blocks() if block.language == "json"]
    (tmp_path / "events.jsonl").write_text(line)
    try:
        yield person
    finally:
        person.close()


def test_the_readme_runs_as_written(newcomer: Newcomer) -> None:
    ran: list[str] = []
    with Client(f"http://127.0.0.1:{newcomer.port}") as client:
        for block in blocks():
            for arguments in commands(block) if block.language == "sh" else []:
                if arguments[0] == "search":
                    wait_for("61 are searchable", lambda: searchable(client) >= 61, timeout=120)
                output = type_in(newcomer, arguments)
                if arguments[0] == "search" and "--json" not in arguments:
                    assert "red" in output.splitlines()[0]
                if arguments[:2] == ["models", "list"]:
                    assert "* braid-0001" in output
                if arguments[:2] in (["dead-letters", "list"], ["dead-letters", "replay"]):
                    assert not output.startswith("0 "), output
                ran.append(arguments[0])
            for line in block.code.splitlines() if block.language == "sh" else []:
                if line.startswith("curl "):
                    answer = json.loads(newcomer.run_curl(line))
                    result = answer.get("answers", [answer])[-1]
                    assert len(result["hits"]) == 3, answer
                    ran.append("curl")
            if block.language == "python":
                output = newcomer.run_program(block.code)
                if "client.search(" in block.code:
                    assert len(output.splitlines()) == 3
                if "Embedder.load" in block.code:
                    assert output.split() == ["(64,)", "red"]
                if "dead-letters" in block.code:
                    assert "BRAID_LINKS__HOSTS" in output  # the parts' link, which nobody allowed
                ran.append("python")
    assert {"up", "produce", "retrain", "search", "models", "status", "doctor"} <= set(ran)
    assert ran.count("python") >= 10
    assert ran.count("curl") >= 3


def type_in(newcomer: Newcomer, arguments: list[str]) -> str:
    """Run a command to its end, or start it and see that it works."""
    if not any(word in arguments for word in ENDLESS):
        return newcomer.run(arguments)
    child = newcomer.start(arguments)
    if arguments[0] == "up":
        child.wait_until(lambda: "query service" in child.tail(), timeout=60)
        return child.tail()
    signs = {
        "embed": lambda: port_answers(newcomer.other_port),
        "index": lambda: port_answers(newcomer.other_port),
        "retrain": lambda: "waits: braid models promote" in child.tail(100),
    }
    child.wait_until(signs[arguments[0]], timeout=120)
    assert child.stop() is not None
    return child.tail()


def searchable(client: Client) -> int:
    return int(client.status()["records"]) if client.ready() else -1


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "up", "produce", "embed", "index", "search", "retrain", "status", "doctor"),
        *("models list", "models promote", "models rollback"),
        *("dead-letters list", "dead-letters show", "dead-letters replay", "dead-letters purge"),
    ],
)
def test_each_command_explains_itself_with_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "braid", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Example: braid {command}" in done.stdout


def test_the_command_line_lists_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "braid", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "up", "produce", "embed", "index", "search", "retrain", "models"):
        assert command in done.stdout


def test_an_unreachable_broker_is_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "braid", "status"],
        env={
            "PATH": os.environ["PATH"],
            "KAFKA_BOOTSTRAP": f"127.0.0.1:{free_port()}",
            "BRAID_KAFKA__BROKER_TIMEOUT_S": "1",
            "BRAID_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("braid: ")
    assert "no broker at 127.0.0.1:" in done.stderr
    assert "KAFKA_BOOTSTRAP" in done.stderr
    assert "Traceback" not in done.stderr
