"""A canary in the worker: the challenger predicts a share of the records beside the champion.

A failing challenger does no harm: the record keeps the champion's vector and prediction.

1. on the CPU threads, `prepare` selects the canary's records and prepares them for the challenger
2. on a device thread, after the champion's batch, `encode`
3. when outputs are made, `published_prediction` chooses the prediction and its mark

Not caught: a challenger that crashes the process, and a GPU without memory for both models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from braid.encoders.types import Embedding, Label, Model, Prepared, Sample

from ..registry.canaries import Canary

log = logging.getLogger(__name__)

REASON = 120  # characters of a failure's reason


class CanaryShadow:
    """One canary in one worker.

    Args:
        model: the challenger; None: it could not be loaded, and each record is marked as failed.
        broken: why it could not be loaded.
    """

    def __init__(self, canary: Canary, model: Model | None, *, broken: str = "") -> None:
        self.canary = canary
        self._model = model
        self._broken = _short(broken)
        self._salt = f"canary/{canary.number}/{canary.model}/".encode()
        self._logged: set[str] = set()

    def takes(self, record_id: str, partition: int) -> bool:
        """Whether a record belongs to the canary; the same in every worker, each time.

        By the sha256 of a salt and the id: independent of other canaries and of the training
        splits (`braid.encoders.training.splits`).
        """
        if self.canary.partitions and partition not in self.canary.partitions:
            return False
        digest = hashlib.sha256(self._salt + record_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.canary.share * 2**64

    def prepare(self, sample: Sample, prepared: Prepared, partition: int) -> ShadowResult | None:
        """Prepare a record for the challenger; None: it is not one of the canary's. Thread-safe.

        Args:
            prepared: for the champion; reused where both models have the same preprocessing.
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
            except Exception as error:  # noqa: BLE001 (a failing challenger does no harm)
                self._fail([shadow_result], error)
        return shadow_result

    def encode(self, shadow_results: Iterable[ShadowResult], *, champion_s: float) -> None:
        """Encode what is prepared, on a device thread.

        Args:
            champion_s: seconds per record that the champion took.
        """
        ready = [result for result in shadow_results if result.prepared is not None]
        prepared = [result.prepared for result in ready if result.prepared is not None]
        if not prepared or self._model is None:
            return
        began = time.perf_counter()
        try:
            embeddings = self._model.encode(prepared)
            took_s = (time.perf_counter() - began) / len(ready)
            for result, embedding in zip(ready, embeddings, strict=True):
                result.prepared = None
                tasks = {name: task.to_map() for name, task in embedding.tasks.items()}
                try:
                    json.dumps(tasks, allow_nan=False)
                except ValueError:
                    self._fail([result], FloatingPointError("a prediction is not finite"))
                else:
                    result.tasks, result.seconds = tasks, (champion_s, took_s)
        except Exception as error:  # noqa: BLE001 (as in prepare)
            self._fail(ready, error)

    def _fail(self, shadow_results: Sequence[ShadowResult], error: Exception) -> None:
        reason = _short(f"{type(error).__name__}: {error}")
        for result in shadow_results:
            result.prepared, result.tasks, result.failed = None, None, reason
        kind = type(error).__name__
        if kind not in self._logged:  # once: every record may fail alike
            self._logged.add(kind)
            log.error("canary %d, %s: %s", self.canary.number, self.canary.model, kind)
            log.debug("the first %s of the canary: %s", kind, reason)


@dataclass(slots=True, eq=False)
class ShadowResult:
    """One record on its way through the challenger."""

    shadow: CanaryShadow
    prepared: Prepared | None = None
    tasks: Mapping[str, Any] | None = None  # plain maps; None: not encoded, or failed
    failed: str = ""  # the reason why there is no prediction
    seconds: tuple[float, float] | None = None  # per record, by the champion and the challenger


class Shadowed(Protocol):
    """A record in flight (`braid.stream.worker.in_flight.Item`)."""

    shadow_result: ShadowResult | None


def active_results(
    items: Iterable[Shadowed], shadow: CanaryShadow | None, champion: Model
) -> list[ShadowResult]:
    """The results of a micro-batch that belong to this canary.

    Results of a canary that has ended since, or that was begun beside another champion, are
    dropped.
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
    """Encode a micro-batch by the champion, then the canary's records in it by the challenger."""
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
    """The prediction that is published: the model's name, its tasks, and the canary's mark
    (`braid.stream.kafka.schemas`).

    Args:
        tasks: the champion's, as plain maps.
        labels: of the record.
    """
    if shadow_result is None:
        return champion, tasks, None
    mark: dict[str, Any] = {"number": shadow_result.shadow.canary.number, "model": champion}
    if shadow_result.tasks is None:
        return champion, tasks, mark | {"failed": shadow_result.failed or "not encoded"}
    mark |= {"tasks": tasks, "seconds": list(shadow_result.seconds or ())}
    if labels:
        mark["labels"] = dict(labels)
    return shadow_result.shadow.canary.model, shadow_result.tasks, mark


def _short(reason: str) -> str:
    """A reason in one line of at most REASON characters, so that equal reasons can be counted."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON else line[: REASON - 1] + "…"
