"""Every kind of hostile request is refused or answered, and the service goes on answering."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from braid.index.service.app import Limits
from braid.index.service.limits.connections import ConnectionLimits
from tests.fuzz.requests import KINDS, requests, send
from tests.index.conftest import Node, serving

SHORT = ConnectionLimits(header_s=1.0, body_s=5.0, slow_s=1.0)


def test_the_same_seed_makes_the_same_requests() -> None:
    assert list(requests(1, 80)) == list(requests(1, 80))
    assert list(requests(1, 80)) != list(requests(2, 80))


@pytest.mark.slow
def test_each_kind_is_answered_and_the_service_lives() -> None:
    node = Node()
    node.reset()
    with serving(node, limits=Limits(connection=SHORT)) as (url, _):
        where = urlsplit(url)
        assert where.hostname is not None
        assert where.port is not None
        host, port = where.hostname, where.port
        with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=url, timeout=60) as http:
            tried = list(requests(7, 4 * len(KINDS)))
            outcomes = list(pool.map(lambda request: send(request, host, port), tried))
            assert http.get("/healthz").status_code == 200
            assert http.post("/v1/search", json={"text": "q"}).status_code == 200
    wrong = [
        (request.name, outcome)
        for request, outcome in zip(tried, outcomes, strict=True)
        if not request.allows(outcome)
    ]
    assert not wrong, wrong[:5]
    assert len(Counter(outcome.status for outcome in outcomes)) > 8
    assert node.deleted == []
