"""What the benchmarks that train share: a version in a temporary folder, finished trainings."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from braid.encoders import Embedder, Sample, TrainConfig, train
from braid.encoders.manifest import digest
from braid.encoders.model.net import Net
from braid.encoders.training import loop
from braid.encoders.training.data import Dataset, gather

Result = TypeVar("Result")


@contextmanager
def trained(
    samples: Sequence[Sample], config: TrainConfig, seed: int
) -> Iterator[tuple[Embedder, float]]:
    """A version trained in a temporary folder, and the CPU seconds that its training took."""
    with tempfile.TemporaryDirectory() as place:
        version = Path(place) / "version"
        begun = time.process_time()
        train(samples, config, out=version, name="bench-0001", version=1, seed=seed, queries=0)
        seconds = time.process_time() - begun
        with Embedder.load(version) as embedder:
            yield embedder, seconds


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, samples that a training has encoded are not encoded again for another one with the
    same frozen encoders: another seed, other weights of the loss."""
    known: dict[str, Dataset] = {}

    def once(samples: Sequence[Sample], net: Net, config: TrainConfig, **more: Any) -> Dataset:
        about = [sample.id for sample in samples], net.encoder_hashes(), net.needs_tokens
        key = digest([*about, [asdict(task) for task in config.model.tasks.values()]])
        if key not in known:
            known[key] = gather(samples, net, config, **more)
        return known[key]

    with patch.object(loop, "gather", once):
        yield


class Finished:
    """The results of finished trainings, in a file of JSON lines.

    Args:
        path: the file, made where there is none; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results: dict[str, Any] = {}
        if path is not None and path.exists():
            self._results = dict(map(json.loads, path.read_text().splitlines()))

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def result(self, key: str, run: Callable[[], Result]) -> Result:
        """The result of `run`, JSON values, from the file if it is there.

        Args:
            key: of all that the result depends on, beside data and code; see `key_of`.
        """
        if key not in self._results:
            self._results[key] = run()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps([key, self._results[key]]) + "\n")
        finished: Result = self._results[key]
        return finished


def key_of(name: str, config: TrainConfig, seed: int, about: Any = None) -> str:
    """The key of one training: its name, its seed, and a hash of its settings and of `about`."""
    return f"{name}, seed {seed}, {digest([config.to_dict(), about], 12)}"
