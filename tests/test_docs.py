"""The commands and programs of the README and of `docs/`, run as written, on Apache Kafka.

All pages that need a running stack share one, and one folder that is empty at first: what the quick
start makes, later pages use, and a command that an earlier page shows is not run again. Only
addresses are replaced: a page names the defaults, a test takes free ports. What is not run is in
NOT_RUN, with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.stream.local.child import Child, free_port, port_answers
from tests.documents import ROOT, Block, blocks, commands, pages
from tests.notebooks import executed
from tests.notebooks import shown as shown_by
from tests.services import KafkaBroker
from tests.stream.harness import wait_for

# In this order: what makes records, versions and dead letters comes before what shows them.
ORDER = (
    "docs/quickstart.md",
    "docs/tutorials/predictions.md",
    "docs/tutorials/search-page.md",
    "docs/tutorials/retraining.md",
    "docs/how-to/retrain.md",  # its second command needs the window of the second run
    "README.md",
    "docs/how-to/produce.md",
    "docs/how-to/sources.md",
    "docs/how-to/search.md",
    "docs/how-to/clients.md",
    "docs/how-to/evaluate.md",
    "docs/how-to/promote.md",
    "docs/how-to/canary.md",
    "docs/how-to/drift.md",
    "docs/how-to/encoder.md",
    "docs/how-to/library.md",
    "docs/how-to/milvus.md",
    "docs/how-to/deploy.md",
    "docs/how-to/secure.md",
    "docs/how-to/kubernetes.md",
    "docs/how-to/replicas.md",
    "docs/how-to/simulate.md",
    "docs/how-to/operate.md",
    "docs/how-to/import.md",
    "docs/how-to/hub.md",
    "docs/checks.md",
)
# The beginning of a command, and why it is not run here.
NOT_RUN = {
    "BRAID_CONFIG=.braid/services": "needs braid up --secured; tests/stream/test_acls.py has it",
    "git clone ": "the tests run in a clone",
    "cd braid": "the tests run in a clone",
    "uv ": "installs from the network what the tests run with",
    "make ": "runs minutes and more; tests/test_repository.py checks the targets",
    "docker ": "needs docker; tests/deploy/test_compose.py checks the services",
    "helm ": "needs a cluster; tests/deploy/test_helm.py renders the chart",
    "kubectl ": "needs a cluster",
    "braid models import sentence-transformers/": "downloads from the hub",
    "braid models import clip/": "needs a CLIP; tests/stream/worker/test_imported.py writes one",
    "braid models import clap/": "needs a CLAP; tests/encoders/test_bridging.py writes one",
    "braid models bridge": "of the same two; tests/stream/trainer/test_import_version.py has it",
    "braid models push 1 hf:": "needs a hub; tests/stream/trainer/test_exchange.py has one",
    "braid models push 1 s3:": "needs a bucket; the same tests have one",
    "braid models pull hf:": "needs a hub",
    "braid produce photos/": "of pictures that the page does not have",
    'braid search "a dog on a beach"': "among the same pictures",
    "torchrun ": "trains the demo preset; tests/encoders/training/test_parallel.py starts torchrun",
    "BRAID_MILVUS__URI=http": "needs a Milvus server; the page shows Milvus Lite, too",
    "braid produce s3:": "needs a bucket; tests/stream/cli/produce reads from one",
    "braid bench": "measures for a minute; tests/stream/cli/test_bench.py runs it, made smaller",
    "braid eval --benchmark": "trains for minutes; tests/test_benchmarks.py runs it, made smaller",
}
RECORDS = 61  # of the quick start

pytestmark = [pytest.mark.redis, pytest.mark.timeout(900)]


class Newcomer:
    """Someone in an empty folder who types what the pages show."""

    def __init__(self, folder: Path, bootstrap: str, redis_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.other_port = free_port()
        self._bootstrap = bootstrap
        self._children: list[Child] = []
        self._env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP": bootstrap,
            "REDIS_URL": redis_url,
            "BRAID_HOME": str(folder / ".braid"),
            "BRAID_HTTP__PORT": str(self.port),
            "BRAID_KAFKA__PARTITIONS": "2",
        }

    def start(self, command: str) -> Child:
        """A command that runs until it is stopped."""
        child = Child(
            command,
            ["env", *shlex.split(self._replaced(command), comments=True)],
            log=self.folder / "logs" / f"{len(self._children)}.log",
            env=self._env,
            cwd=self.folder,
        )
        self._children.append(child)
        return child.start()

    def run(self, command: str) -> str:
        """A command that ends; what it prints."""
        return self._ended(["bash", "-c", self._replaced(command)], command)

    def run_program(self, code: str) -> str:
        return self._ended([sys.executable, "-W", "error", "-c", self._replaced(code)], code)

    def close(self) -> None:
        for child in reversed(self._children):
            child.stop()

    def _replaced(self, text: str) -> str:
        text = text.replace("127.0.0.1:9092", self._bootstrap)
        text = text.replace("127.0.0.1:8077", f"127.0.0.1:{self.port}")
        return re.sub(r"--(metrics-)?port \d+", rf"--\1port {self.other_port}", text)

    def _ended(self, command: list[str], what: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self._env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{what}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path, own_kafka: KafkaBroker, valkey: str) -> Iterator[Newcomer]:
    person = Newcomer(tmp_path, own_kafka.address, valkey)
    try:
        yield person
    finally:
        person.close()


def shown(page: str) -> list[Block]:
    return [block for block in blocks(ROOT / page) if block.language in ("sh", "python")]


def test_each_page_with_commands_is_run() -> None:
    with_commands = {
        str(page.relative_to(ROOT)) for page in pages() if shown(str(page.relative_to(ROOT)))
    }
    assert with_commands == set(ORDER)


def test_what_is_not_run_is_shown_somewhere() -> None:
    listed = [
        command
        for page in ORDER
        for block in shown(page)
        if block.language == "sh"
        for command in commands(block.code)
    ]
    unused = [start for start in NOT_RUN if not any(line.startswith(start) for line in listed)]
    assert unused == []


def test_the_pages_run_as_written(newcomer: Newcomer) -> None:
    ran: list[str] = []
    lines: set[str] = set()
    with Client(f"http://127.0.0.1:{newcomer.port}") as client:
        for page in ORDER:
            for block in blocks(ROOT / page):
                if block.language == "json":
                    (newcomer.folder / "events.jsonl").write_text(block.code)
                if block.language == "toml" and page == "docs/how-to/sources.md":
                    file = newcomer.folder / "braid.toml"
                    file.exists() or file.write_text(block.code)
                if block.language == "python":
                    run_program(newcomer, client, block.code)
                    ran.append("python")
                if block.language == "sh":
                    new = [line for line in commands(block.code) if line not in lines]
                    lines.update(new)
                    ran += [name for line in new for name in typed(newcomer, client, line)]
        for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
            folder = newcomer.folder / notebook.stem
            folder.mkdir()
            outputs = executed(notebook, folder, {"BRAID_URL": f"http://127.0.0.1:{newcomer.port}"})
            assert "data:image/webp;base64," in "".join(
                shown_by(one, "text/html") for one in outputs
            )
    assert {"up", "produce", "retrain", "search", "models", "status", "doctor"} <= set(ran)
    assert {"eval", "dead-letters", "config", "embed", "index"} <= set(ran)
    assert ran.count("python") >= 13
    assert ran.count("curl") >= 3


def typed(newcomer: Newcomer, client: Client, line: str) -> list[str]:
    """Run a command and check what it prints; its name, or nothing if it is not run."""
    if line.startswith(tuple(NOT_RUN)):
        return []
    words = shlex.split(line, comments=True)
    if words[0] == "curl":
        await_records(client)
        answer = json.loads(newcomer.run(line))
        result = answer.get("answers", [answer])[-1]
        assert len(result["hits"]) == 3, answer
        return ["curl"]
    if "braid" not in words:
        newcomer.run(line)
        return [words[0]]
    arguments = words[words.index("braid") + 1 :]
    if (
        arguments[0] in ("up", "embed", "index")
        or arguments[:2] == ["ingest", "--metrics-port"]
        or "--every" in arguments
    ):
        run_for_a_while(newcomer, line, arguments)
        return arguments[:1]
    if arguments[0] == "search":
        await_records(client)
    if arguments[:2] == ["dead-letters", "list"]:
        wait_for("a dead letter", lambda: not newcomer.run(line).startswith("0 "), timeout=60)
    output = newcomer.run(line)
    if arguments[0] == "search" and "--json" not in arguments:
        assert "red" in output.splitlines()[0]
    if arguments[:2] == ["models", "list"]:
        assert "* braid-0001" in output
    if arguments[:2] == ["dead-letters", "replay"]:
        assert not output.startswith("0 "), output
    return arguments[:1]


def run_program(newcomer: Newcomer, client: Client, code: str) -> None:
    """Run a program and check what it prints."""
    if "Client(" in code:
        await_records(client)
    output = newcomer.run_program(code)
    if "to_pandas" in code:
        assert output.splitlines()[0].split() == ["score", "id", "matched"]
        assert len(output.splitlines()) == 6  # with a row for each hit, and two arrays
    elif "client.search(text" in code:
        assert len(output.splitlines()) == 3
    if "Embedder.load" in code:
        assert output.split() == ["(64,)", "red"]
    if "dead-letters" in code:
        assert "BRAID_LINKS__HOSTS" in output  # the parts' link, which nobody allowed


def run_for_a_while(newcomer: Newcomer, line: str, arguments: list[str]) -> None:
    """Start a command that does not end and see that it works; only `braid up` stays."""
    if arguments[0] == "up" and client_answers(newcomer):
        return  # the pages share one
    child = newcomer.start(line)
    if arguments[0] == "up":
        child.wait_until(lambda: "query service" in child.tail(), timeout=120)
        wait_for("the query service", lambda: client_answers(newcomer), timeout=120)
        return
    signs = {
        "embed": lambda: port_answers(newcomer.other_port),
        "index": lambda: port_answers(newcomer.other_port),
        "ingest": lambda: has_taken_all(newcomer),
        "retrain": lambda: "braid models promote" in child.tail(100),
    }
    child.wait_until(signs[arguments[0]], timeout=180)
    assert child.stop() is not None


def has_taken_all(newcomer: Newcomer) -> bool:
    """Whether the sources of the page have no lag."""
    sources = json.loads(newcomer.run("braid status --json"))["sources"]
    return all(set(source["lag"].values()) == {0} for source in sources.values())


def client_answers(newcomer: Newcomer) -> bool:
    return port_answers(newcomer.port)


def await_records(client: Client) -> None:
    """Wait until the records of the quick start are searchable."""
    wait_for(
        f"{RECORDS} records are searchable",
        lambda: client.ready() and client.status().records >= RECORDS,
        timeout=180,
    )


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
