"""The OpenAPI description against the running service: answers conform to it.

schemathesis generates valid and invalid requests from the description: JSON, uploads and batches.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.index.conftest import IDS, Node
from tests.index.oracle import DIM, SPACE

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SEARCH = ("POST", "/v1/search")
# Method, path, the body's media type, and how many requests of each mode.
CALLS = [
    (*SEARCH, "application/json", 60),
    (*SEARCH, "multipart/form-data", 60),
    ("POST", "/v1/search/batch", "application/json", 30),
    ("POST", "/v1/embeddings", "application/json", 30),
    ("GET", "/v1/models", None, 1),
    ("GET", "/v1/records/{id}", None, 20),
    ("DELETE", "/v1/records/{id}", None, 20),
    ("GET", "/v1/status", None, 1),
    ("GET", "/v1/generations", None, 1),
    ("GET", "/v1/dead-letters", None, 1),
    ("GET", "/healthz", None, 1),
    ("GET", "/readyz", None, 1),
    ("GET", "/metrics", None, 1),
]


@pytest.fixture
def description(http: httpx.Client) -> dict[str, Any]:
    result: dict[str, Any] = http.get("/openapi.json").json()
    return result


def test_no_call_is_left_out(description: dict[str, Any]) -> None:
    result = {
        (method.upper(), path, media_type)
        for path, methods in description["paths"].items()
        for method, call in methods.items()
        for media_type in call.get("requestBody", {"content": [None]})["content"]
    }
    assert result == {call[:3] for call in CALLS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "media_type", "examples", "mode"),
    [(*call, GenerationMode.POSITIVE) for call in CALLS]
    + [(*call, GenerationMode.NEGATIVE) for call in CALLS if call[2]],  # those with a body
)
def test_what_is_described_is_answered_as_described(
    node: Node,
    description: dict[str, Any],
    method: str,
    path: str,
    media_type: str | None,
    examples: int,
    mode: Any,
) -> None:
    if media_type:  # nothing else restricts schemathesis to one of them
        body = description["paths"][path][method.lower()]["requestBody"]
        body["content"] = {media_type: body["content"][media_type]}
    described = schemathesis.openapi.from_dict(description)
    strategy = described[path][method].as_strategy(generation_mode=mode)
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, real=st.booleans())
    def ask(case: Case, real: bool) -> None:
        assert (case.media_type or None) == media_type
        hurry(case)
        if real:
            name_what_is_there(case)
        answer = case.call_and_validate(base_url=node.url, checks=CHECKS, session=session)
        statuses[answer.status_code] += 1
        if path.endswith("/batch") and answer.status_code == 200:
            inside = [one["status"] for one in answer.json()["answers"] if "error" in one]
            assert all(status < 500 for status in inside), inside

    with requests.Session() as session:
        ask()
    # It came as far as it should, and was not stopped at the door every time.
    good = statuses[200] + statuses[202]
    assert good if mode == GenerationMode.POSITIVE else statuses[422], statuses


def queries(case: Case) -> list[dict[str, Any]]:
    """The queries in a body, whatever else it may be."""
    body: Any = case.body
    if not isinstance(body, dict) or case.path == "/v1/embeddings":
        return []
    result = body.get("queries", [body])
    return [one for one in result if isinstance(one, dict)] if isinstance(result, list) else []


def hurry(case: Case) -> None:
    """Wait only shortly for offsets that never come."""
    if "timeout_ms" in (case.query or {}) or "min_offsets" in (case.query or {}):
        case.query["timeout_ms"] = 20
    for one in queries(case):
        if isinstance(one.get("timeout_ms", 0), int):
            one["timeout_ms"] = min(one.get("timeout_ms", 20), 20)


def name_what_is_there(case: Case) -> None:
    """Ask for a record, a space and a generation that exist, where there is one in the case."""
    if "id" in case.path_parameters:
        case.path_parameters["id"] = IDS[1]
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "champion"
        case.body.pop("dimensions", None)
    for one in [case.query or {}, *queries(case)]:
        for name, there in {"id": IDS[1], "generation": "g0001"}.items():
            if isinstance(one.get(name), str):
                one[name] = there
        if isinstance(one.get("query"), dict):
            one["query"] = {"values": [0.5] * DIM, "space": SPACE}
