"""API keys and rate limits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest

from braid.index.client import Client, Retry
from braid.index.errors import BadQuery, ServiceError
from braid.index.service.app import Limits, ServiceDeps
from braid.index.service.limits.auth import MOST_CALLERS, ApiKeys, RateLimit, cost, read_keys
from tests.index.conftest import MAX_BODY, Node, serving
from tests.index.service.test_bad_queries import chunks, problem

KEY, OTHER, HASHED = "first-key-0123456789", "second-key-0123456789", "hashed-key-0123456789"
DIGEST = "sha256:" + hashlib.sha256(HASHED.encode()).hexdigest()
PATHS = ["/v1/status", "/v1/generations", "/v1/records/r1", "/v1/nothing", "/v1/"]


@pytest.fixture
def locked(node: Node) -> Iterator[tuple[str, ServiceDeps]]:
    with serving(node, keys=ApiKeys([KEY, OTHER, DIGEST])) as result:
        yield result


def count(deps: ServiceDeps, reason: str) -> float:
    value = deps.metrics.registry.get_sample_value("braid_refused_total", {"reason": reason})
    assert value is not None
    return value


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "x"},
        {"x-api-key": DIGEST},
        {"x-api-key": DIGEST.removeprefix("sha256:")},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Digest {KEY}"},  # as long as Bearer
        {"authorization": "Bearer"},
        {"authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_a_known_key_nothing_is_told(
    node: Node, locked: tuple[str, ServiceDeps], headers: dict[str, str]
) -> None:
    url, deps = locked
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    with httpx.Client(base_url=url, headers=encoded, timeout=20) as http:
        for path in PATHS:
            answer = http.get(path)
            assert problem(answer, 401)[0] == "authorization"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert problem(http.post("/v1/search", json={"text": "q"}), 401)
        assert problem(http.delete("/v1/records/r1"), 401)
    assert node.asked == []
    assert node.deleted == []
    assert count(deps, "key") == len(PATHS) + 2


@pytest.mark.parametrize("key", [KEY, OTHER, HASHED])
def test_a_known_key_opens(locked: tuple[str, ServiceDeps], key: str) -> None:
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"x-api-key": key},
        {"authorization": "Basic of-a-proxy", "x-api-key": key},
    ):
        with httpx.Client(base_url=locked[0], headers=headers, timeout=20) as http:
            assert http.post("/v1/search", json={"text": "q"}).status_code == 200
            assert http.get("/v1/status").status_code == 200
            assert http.get("/v1/nothing").status_code == 404
    with Client(locked[0], api_key=key) as client:
        assert client.get("r1").id == "r1"


def test_probes_scrapers_and_the_description_need_no_key(locked: tuple[str, ServiceDeps]) -> None:
    with httpx.Client(base_url=locked[0], timeout=20) as http:
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200
        described = http.get("/openapi.json").json()
    for path, calls in described["paths"].items():
        for call in calls.values():
            assert ("security" in call) == path.startswith("/v1/")
    assert set(described["components"]["securitySchemes"]) == {"bearer", "header"}


@pytest.mark.slow
def test_a_large_body_without_a_key_gets_its_answer_and_is_not_kept(
    locked: tuple[str, ServiceDeps],
) -> None:
    size = 300 * MAX_BODY  # more than sockets hold
    with httpx.Client(base_url=locked[0], timeout=20) as http:
        for content in (b" " * size, chunks(size), b"{}"):
            assert problem(http.post("/v1/search", content=content), 401)


def test_the_client_with_a_wrong_key_and_with_none(locked: tuple[str, ServiceDeps]) -> None:
    for key in (None, "not-a-known-key-0000"):
        with Client(locked[0], api_key=key) as client, pytest.raises(BadQuery) as caught:
            client.search(text="q")
        assert caught.value.status == 401
    with pytest.raises(ServiceError, match="printable"):
        Client(locked[0], api_key="a\nb")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], "no key"),
        (["short"], "key 1: has 5 characters, at least 16"),
        ([KEY, "with a space in the middle"], "key 2: .*without spaces"),
        ([KEY, "ümlaut-0123456789abcdef"], "key 2: .*ASCII"),
        ([""], "key 1"),
        (["sha256:abc"], "key 1: .*64 hexadecimal"),
    ],
)
def test_keys_that_do_not_fit_are_named_by_number_and_not_shown(
    keys: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ApiKeys(keys)
    for key in keys:
        assert not key or key not in str(caught.value)


def test_keys_are_not_kept_nor_shown() -> None:
    keys = ApiKeys([KEY])
    assert KEY not in repr(keys)
    assert KEY not in str(vars(keys))
    assert read_keys(f"# ours\n\n  {KEY}  \n{DIGEST}\n") == [KEY, DIGEST]


# ---- rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_burst_and_fills_at_its_rate() -> None:
    clock = Clock()
    limit = RateLimit(2.0, 3, clock=clock)
    assert [limit.wait_s("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.wait_s("b") == 0.0  # each has its own
    clock.now += 0.5
    assert limit.wait_s("a") == 0.0
    assert limit.wait_s("a") == 0.5
    clock.now += 1000.0  # no more than the burst gathers
    assert [limit.wait_s("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_what_is_owed_is_waited_for() -> None:
    clock = Clock()
    limit = RateLimit(2.0, 3, clock=clock)
    assert limit.wait_s("a") == 0.0
    limit.charge("a", 9)  # 3 - 10
    assert limit.wait_s("a") == 4.0
    clock.now += 4.0
    assert limit.wait_s("a") == 0.0


def test_only_so_many_callers_are_remembered() -> None:
    limit = RateLimit(1.0, 1, clock=Clock())
    for number in range(MOST_CALLERS + 50):
        limit.wait_s(str(number))
    assert len(limit) == MOST_CALLERS
    assert limit.wait_s(str(MOST_CALLERS + 49)) > 0
    assert limit.wait_s("0") == 0.0  # forgotten


SLOW = Limits(body_bytes=MAX_BODY, rate_per_s=0.01, burst=3)


def test_who_asks_too_often_is_told_when_to_come_back(node: Node) -> None:
    with serving(node, limits=SLOW) as (url, deps), httpx.Client(base_url=url, timeout=20) as http:
        for _ in range(3):
            assert http.get("/v1/status").status_code == 200
        elsewhere = {"x-forwarded-for": "192.0.2.7"}  # said, but not so
        answer = http.post("/v1/search", json={"text": "q"}, headers=elsewhere)
        assert problem(answer, 429)[0] == "request"
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert count(deps, "rate") == 1
        assert http.get("/healthz").status_code == 200  # whoever watches is not turned away
        slept: list[float] = []
        retry = Retry(longest_s=1000.0)
        with (
            Client(url, sleep=slept.append, retry=retry) as client,
            pytest.raises(BadQuery) as caught,
        ):
            client.status()
        assert caught.value.status == 429
        assert len(slept) == 2
        assert all(1 <= wait <= 100 for wait in slept)
    assert node.asked == []


def test_each_key_has_a_rate_of_its_own_and_guesses_have_one_too(node: Node) -> None:
    keys = ApiKeys([KEY, OTHER])
    with (
        serving(node, limits=SLOW, keys=keys) as (url, _),
        httpx.Client(base_url=url, timeout=20) as http,
    ):

        def statuses(key: str, times: int) -> list[int]:
            headers = {"x-api-key": key}
            return [http.get("/v1/status", headers=headers).status_code for _ in range(times)]

        assert statuses(KEY, 4) == [200, 200, 200, 429]
        assert statuses(OTHER, 1) == [200]
        assert statuses("guess", 5) == [401, 401, 401, 429, 429]
        assert statuses(OTHER, 1) == [200]


def test_a_batch_costs_what_its_queries_cost(node: Node) -> None:
    with serving(node, limits=SLOW) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        batch = {"queries": [{"id": "r1"}] * 10}
        assert http.post("/v1/search/batch", json=batch).status_code == 200
        answer = http.get("/v1/status")
        assert problem(answer, 429)
        assert int(answer.headers["retry-after"]) > 700  # (3 - 10 - 1) / 0.01 less what passed


@pytest.mark.parametrize(
    ("ks", "tokens"),
    [([10], 1), ([1], 1), ([11], 2), ([1000], 100), ([1, 1, 20], 4), ([15] * 2, 3)],
)
def test_a_query_costs_by_its_hits(ks: list[int], tokens: int) -> None:
    assert cost(ks) == tokens


def test_many_hits_are_paid_for(node: Node) -> None:
    limits = Limits(body_bytes=MAX_BODY, rate_per_s=1.0, burst=3)
    with serving(node, limits=limits) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        assert http.post("/v1/search", json={"id": "r1", "k": 1000}).status_code == 200
        assert int(http.get("/v1/status").headers["retry-after"]) > 90
    with serving(node, limits=limits) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        batch = {"queries": [{"id": "r1", "k": 1000}] * 10}
        assert http.post("/v1/search/batch", json=batch).status_code == 200
        assert int(http.get("/v1/status").headers["retry-after"]) > 900
