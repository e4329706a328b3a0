"""What the cache of features gains and costs: a worker on a stream in which contents repeat.

    python -m benchmarks.cache [--part all] [--records 150] [--rounds 4] [--shares 0 50 90] [--json]

The encoders are those of the demo preset, the records those of `benchmarks.throughput`; of them a
share repeats the content of another one under an id of its own. Runs take turns: without a cache,
with one in memory, with one in memory and in Valkey (the one that REDIS_URL names, else the
embedded one), each empty at first; and for a stream without repeats with an empty memory and all
its features in Valkey, as a new generation is built whose encoders did not change. Time is from the
first record that is prepared to the last commit, CPU time that of the worker's process, in which
the benchmark's own producer has ended. Ratios are of the same round.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from braid.encoders import Sample
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.model.torch_model import TorchModel
from braid.stream.feature_cache import RedisFeatures, feature_cache_of
from braid.stream.local.fleet import services
from braid.stream.media.thumbnails import isolated_decoding
from braid.stream.settings import Settings

from .common import arguments
from .throughput import PARTS, demo_model, samples_of, worker
from .vectors import finish_here

WAIT_S = 60.0

Way = Callable[[Settings, TorchModel, Sequence[Sample]], tuple[float, float]]


def repeating(samples: Sequence[Sample], share: float) -> list[Sample]:
    """As many samples, of which a share has the content of another one."""
    chance = random.Random(0)
    distinct = max(1, round(len(samples) * (1 - share)))
    contents = [*samples[:distinct], *chance.choices(samples[:distinct], k=len(samples) - distinct)]
    chance.shuffle(contents)
    return [replace(sample, id=f"r{number}") for number, sample in enumerate(contents)]


def run(
    settings: Settings,
    model: TorchModel,
    samples: Sequence[Sample],
    cache: FeatureCache | None,
    after: Callable[[FeatureCache], None] = lambda cache: None,
) -> tuple[float, float]:
    """Seconds, and CPU seconds, of one worker."""
    model.cache = None
    if cache is not None:
        model.use(cache)
    try:
        return worker_cpu(settings, model, samples)
    finally:
        model.cache = None
        if cache is not None:
            after(cache)
            cache.close()


def worker_cpu(
    settings: Settings, model: TorchModel, samples: Sequence[Sample]
) -> tuple[float, float]:
    spent: list[float] = []

    class Counted:
        """Notes the CPU time when the first record is prepared."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def prepare(self, sample: Sample) -> Any:
            if not spent:
                spent.append(time.process_time())
            return model.prepare(sample)

    took_s = worker(settings, Counted(), samples)  # type: ignore[arg-type]
    return took_s, time.process_time() - spent[0]


def ways() -> dict[str, Way]:
    return {
        "without": lambda settings, model, some: run(settings, model, some, None),
        "memory": lambda settings, model, some: run(
            settings, model, some, feature_cache_of(settings.replace(cache={"redis_bytes": 0}))
        ),
        "memory and Redis": lambda settings, model, some: run(
            settings, model, some, feature_cache_of(fresh(settings))
        ),
    }


def fresh(settings: Settings) -> Settings:
    """Settings under whose prefix Redis has nothing."""
    return settings.replace(prefix=f"c{uuid.uuid4().hex[:8]}-")


def filled(settings: Settings, model: TorchModel, samples: Sequence[Sample]) -> tuple[float, float]:
    """With all features in Redis: by a run that does not count."""
    settings = fresh(settings)
    first, second = feature_cache_of(settings), feature_cache_of(settings)
    assert first is not None
    assert second is not None
    run(settings, model, samples, first, after=_until_written)
    return run(settings, model, samples, second)


def _until_written(cache: FeatureCache) -> None:
    assert isinstance(cache.store, RedisFeatures)
    until = time.monotonic() + WAIT_S
    while cache.store.events["written"] < len(cache):
        if time.monotonic() > until:
            raise RuntimeError(f"not all features were written: {dict(cache.store.events)}")
        time.sleep(0.05)


def measure(
    settings: Settings,
    model: TorchModel,
    samples: Sequence[Sample],
    rounds: int,
    chosen: Mapping[str, Way],
) -> dict[str, Any]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for turn in range(rounds):
        for name in list(chosen)[turn % 2 :] + list(chosen)[: turn % 2]:
            taken[name].append(chosen[name](settings, model, samples))
    row: dict[str, Any] = {
        f"{name}, records a second": round(
            len(samples) / statistics.median(seconds for seconds, _ in times), 1
        )
        for name, times in taken.items()
    }
    for name in list(chosen)[1:]:
        pairs = list(zip(taken["without"], taken[name], strict=True))
        row[f"{name} / without"] = round(statistics.median(a / b for (a, _), (b, _) in pairs), 3)
        row[f"{name} / without, CPU"] = round(
            statistics.median(b / a for (_, a), (_, b) in pairs), 3
        )
    return row


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, PARTS, seeds=False)
    parser.add_argument("--records", type=int, default=150, help="of one run")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--shares", type=int, nargs="+", default=[0, 50, 90], help="per cent that repeat"
    )
    given = parser.parse_args(argv)
    rows = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
        isolated_decoding(settings),
    ):
        model = demo_model(Path(folder) / "version")
        samples = samples_of(given.part or "all", given.records)
        worker(settings, model, samples[:20])
        for share in given.shares:
            chosen = ways() | ({} if share else {"all in Redis": filled})
            rows[f"{share} % repeat"] = measure(
                settings, model, repeating(samples, share / 100), given.rounds, chosen
            )
    return finish_here("cache", given, rows)


if __name__ == "__main__":
    main()
