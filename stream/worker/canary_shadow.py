"""A challenger in the worker: it predicts the records of a canary beside the champion.

The worker asks three times, and a canary that goes wrong harms nothing: whatever happens here, the
record has the champion's vector and a prediction.

1. on the CPU threads, `attempt`: is this record one of the canary's, and prepared for the
   challenger
2. on the device thread, after the champion's batch, `encode`
3. when outputs are made, `spoken`: which prediction is published, and what stands beside it

What cannot be caught is a challenger that takes the process with it, or a GPU's memory that does
not hold both models.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from braid.encoders.types import Embedding, Label, Model, Prepared, Sample, TaskPrediction

from ..registry.canaries import Canary

log = logging.getLogger(__name__)

REASON = 120  # characters of a failure's reason


class CanaryShadow:
    """One canary in one worker.

    Args:
        model: the challenger; None: it could not be loaded, and every record says so.
        broken: why it could not.
    """

    def __init__(self, canary: Canary, model: Model | None, *, broken: str = "") -> None:
        self.canary = canary
        self._model = model
        self._broken = short(broken)
        self._salt = f"canary/{canary.number}/{canary.model}/".encode()
        self._logged: set[str] = set()

    def takes(self, record_id: str, partition: int) -> bool:
        """Whether a record is the canary's: the same answer in every worker, each time.

        By the sha256 of a salt and the id: neither another canary's records, nor those of the
        training's splits (`braid.encoders.training.splits`).
        """
        if self.canary.partitions and partition not in self.canary.partitions:
            return False
        digest = hashlib.sha256(self._salt + record_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.canary.share * 2**64

    def shadow_result(
        self, sample: Sample, prepared: Prepared, partition: int
    ) -> ShadowResult | None:
        """Prepare a record for the challenger; None: it is not the canary's. Thread-safe.

        Args:
            prepared: for the champion; taken where both prepare alike.
        """
        if not self.takes(sample.id, partition):
            return None
        shadow_result = ShadowResult(shadow=self)
        if self._model is None:
            shadow_result.failed = self._broken
        elif self._model.preprocessing == prepared.preprocessing:
            shadow_result.prepared = prepared
        else:
            try:
                shadow_result.prepared = self._model.prepare(sample)
            except Exception as error:  # noqa: BLE001 (nothing of the challenger may do harm)
                self._fail([shadow_result], error)
        return shadow_result

    def encode(self, shadow_results: Iterable[ShadowResult], *, champion_s: float) -> None:
        """Encode what is prepared, on the device thread.

        Args:
            champion_s: what the champion took a record, in seconds.
        """
        ready = [result for result in shadow_results if result.prepared is not None]
        if not ready or self._model is None:
            return
        began = time.perf_counter()
        try:
            embeddings = self._model.encode(
                [result.prepared for result in ready if result.prepared is not None]
            )
            took_s = (time.perf_counter() - began) / len(ready)
            for result, embedding in zip(ready, embeddings, strict=True):
                result.prepared = None
                if all(map(math.isfinite, numbers(embedding.tasks))):
                    result.tasks, result.seconds = embedding.tasks, (champion_s, took_s)
                else:
                    self._fail([result], FloatingPointError("a prediction is not finite"))
        except Exception as error:  # noqa: BLE001 (see above)
            self._fail(ready, error)

    def _fail(self, shadow_results: Sequence[ShadowResult], error: Exception) -> None:
        reason = short(f"{type(error).__name__}: {error}")
        for result in shadow_results:
            result.prepared, result.tasks, result.failed = None, None, reason
        kind = type(error).__name__
        if kind not in self._logged:  # once: it may be every record's
            self._logged.add(kind)
            log.error("canary %d, %s: %s", self.canary.number, self.canary.model, reason)


@dataclass(slots=True, eq=False)
class ShadowResult:
    """One record on its way through a trial.

    Attributes:
        tasks: what the challenger predicts; None: it did not get there.
        failed: why not.
        seconds: encoding a record took the champion and the challenger, each in its batch.
    """

    shadow: CanaryShadow
    prepared: Prepared | None = None
    tasks: Mapping[str, TaskPrediction] | None = None
    failed: str = ""
    seconds: tuple[float, float] | None = None


class Shadowed(Protocol):
    """What is on its way through the worker (`braid.stream.worker.in_flight.Item`)."""

    shadow_result: ShadowResult | None


def active_results(
    items: Iterable[Shadowed], shadow: CanaryShadow | None, champion: Model
) -> list[ShadowResult]:
    """The attempts of a micro-batch under this trial.

    Those of a trial that has ended since they were prepared end too, and so does a trial beside
    another champion than this.
    """
    if shadow is not None and shadow.canary.champion != champion.name:
        shadow = None
    for item in items:
        if item.shadow_result is not None and item.shadow_result.shadow is not shadow:
            item.shadow_result = None
    return [item.shadow_result for item in items if item.shadow_result is not None]


def encode_both(
    champion: Model, prepared: Sequence[Prepared], shadow_results: Sequence[ShadowResult]
) -> list[Embedding]:
    """A micro-batch by the champion, and then the attempts in it by the challenger."""
    began = time.perf_counter()
    embeddings = champion.encode(prepared)
    if shadow_results:
        champion_s = (time.perf_counter() - began) / len(prepared)
        shadow_results[0].shadow.encode(shadow_results, champion_s=champion_s)
    return embeddings


def published_prediction(
    shadow_result: ShadowResult | None,
    champion: str,
    tasks: Mapping[str, Any],
    labels: Mapping[str, Label],
) -> tuple[str, Mapping[str, Any], Mapping[str, Any] | None]:
    """Whose prediction is published: the model's name, its tasks, and the mark
    (`braid.stream.kafka.schemas`).

    Args:
        tasks: the champion's, as plain maps.
        labels: the record's own.
    """
    if shadow_result is None:
        return champion, tasks, None
    mark: dict[str, Any] = {"number": shadow_result.shadow.canary.number, "model": champion}
    if shadow_result.tasks is None:
        return champion, tasks, mark | {"failed": shadow_result.failed or "not encoded"}
    mark |= {"tasks": tasks, "seconds": list(shadow_result.seconds or ())}
    if labels:
        mark["labels"] = dict(labels)
    mine = {name: asdict(task) for name, task in shadow_result.tasks.items()}
    return shadow_result.shadow.canary.model, mine, mark


def numbers(tasks: Mapping[str, TaskPrediction]) -> Iterator[float]:
    """All numbers of the predictions that are published."""
    for task in tasks.values():
        yield from _numbers(asdict(task))


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)


def short(reason: str) -> str:
    """Short enough to be counted."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON else line[: REASON - 1] + "…"
