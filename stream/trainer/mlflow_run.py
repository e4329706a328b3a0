"""A training run in MLflow, by its client (`mlflow-skinny`)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import RestException

from .tracker import About, Result, TrackerRefused

T = TypeVar("T")

PARAMETERS = 100  # or tags, in one request, which is MLflow's limit
FIGURES = 1000
PARAMETER_CHARS, TAG_CHARS = 6000, 8000
RUN = "braid.run"
CARD = "model_card.md"
_NO_NAME = re.compile(r"[^\w\-./ ]")


class MlflowRun:
    """One run: found by its tag if it was begun before, else created.

    Args:
        address: of the server.
        experiment: created with the first run.

    Raises:
        TrackerRefused: the server refuses it.
        MlflowException: the server does not answer.
    """

    def __init__(self, address: str, experiment: str, about: About) -> None:
        self._client = MlflowClient(tracking_uri=address)
        with _refusals():
            found = self._client.get_experiment_by_name(experiment)
            id_ = self._client.create_experiment(experiment) if found is None else None
            id_ = id_ or found.experiment_id
            runs = self._client.search_runs([id_], f"tags.`{RUN}` = '{about.run}'", max_results=1)
            if runs:
                self._id = runs[0].info.run_id
                self._client.update_run(self._id, status="RUNNING")
            else:
                tags = {RUN: about.run, "braid.version": about.version}
                run = self._client.create_run(id_, tags=tags, run_name=about.version)
                self._id = run.info.run_id
            parameters = [
                Param(_name(name), str(value)[:PARAMETER_CHARS])
                for name, value in about.parameters.items()
            ]
            for some in _parts(parameters, PARAMETERS):
                self._client.log_batch(self._id, params=some)

    def figures(self, at_ms: int, step: int, figures: Mapping[str, float]) -> None:
        metrics = [Metric(_name(name), value, at_ms, step) for name, value in figures.items()]
        with _refusals():
            for some in _parts(metrics, FIGURES):
                self._client.log_batch(self._id, metrics=some)

    def end(self, result: Result) -> None:
        tags = [RunTag(f"braid.{name}", text[:TAG_CHARS]) for name, text in result.tags.items()]
        with _refusals():
            self._client.log_batch(self._id, tags=tags)
            self.figures(int(time.time() * 1000), 0, result.figures)
            self._client.set_terminated(self._id, status=result.state)
            if result.card:  # last: where artifacts are kept may be out of reach from here
                self._client.log_text(self._id, result.card, CARD)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RestException as error:  # an answer, not a failed connection
        status = error.get_http_status_code()
        if status in (408, 429) or status >= 500:
            raise  # the server is busy, or its database away: it is tried again
        raise TrackerRefused(str(error)) from error


def _name(name: str) -> str:
    """Of a parameter or a figure: MLflow takes letters, digits and few other characters."""
    return _NO_NAME.sub("_", name.replace("->", " to ").replace("@", " at "))[:250]


def _parts(values: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
