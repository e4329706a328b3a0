"""Host and origin headers: another web page cannot reach a node on loopback."""

from __future__ import annotations

import httpx
import pytest

from braid.index.service.limits.auth import ApiKeys
from braid.index.service.limits.hosts import Hosts
from tests.index.conftest import Node, serving
from tests.index.service.test_bad_queries import problem

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "right"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("localhost.:8077", True),
        ("127.0.0.1:8077", True),
        ("[::1]:8077", True),
        ("node.example", True),
        ("Node.Example:443", True),
        ("search.example", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@localhost", False),
        ("localhost@evil.example", False),
        ("localhost#.evil.example", False),
        ("192.0.2.7", False),
        ("[::ffff:127.0.0.1", False),
        ("localhost:x", False),
        ("", False),
        (":8077", False),
    ],
)
def test_a_host_is_ours_or_not(host: str, right: bool) -> None:
    assert Hosts("node.example", ["search.example"]).accepts(host) is right
    assert Hosts("127.0.0.1", ["*"]).accepts("evil.example")


def test_a_node_on_all_addresses_is_asked_by_any_address_but_not_by_any_name() -> None:
    for bind in ("0.0.0.0", "::"):
        hosts = Hosts(bind, ["index"])
        for host in ("192.0.2.7:8077", "[2001:db8::1]:8077", "index:8077", "127.0.0.1"):
            assert hosts.accepts(host)
        assert not hosts.accepts("evil.example:8077")


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", "", "a b"])
def test_a_name_that_is_none_is_refused_at_start(name: str) -> None:
    with pytest.raises(ValueError, match="must be a name"):
        Hosts("127.0.0.1", [name])


@pytest.mark.parametrize("keys", [None, ApiKeys([KEY])])
def test_another_host_is_refused_everywhere(node: Node, keys: ApiKeys | None) -> None:
    headers = {"x-api-key": KEY, "host": "evil.example"}
    with serving(node, keys=keys) as (url, deps), httpx.Client(base_url=url, timeout=20) as http:
        for method, path in (
            ("GET", "/v1/status"),
            ("DELETE", "/v1/records/r1"),
            ("GET", "/"),
            ("GET", "/metrics"),
            ("GET", "/healthz"),
        ):
            answer = http.request(method, path, headers=headers)
            assert problem(answer, 421)[0] == "host"
            assert "http.hosts" in answer.json()["error"]["reason"]
        value = deps.metrics.registry.get_sample_value("braid_refused_total", {"reason": "host"})
        assert value == 5
        assert http.get("/healthz").status_code == 200
    assert node.deleted == []


def test_a_page_of_another_origin_is_refused(node: Node) -> None:
    hosts = Hosts("127.0.0.1", ["search.example"])
    with serving(node, hosts=hosts) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "file://"):
            headers = {"origin": origin}
            answer = http.delete("/v1/records/r1", headers=headers)
            assert problem(answer, 403)[0] == "origin"
            answer = http.post("/v1/search", files={"text": (None, "q")}, headers=headers)
            assert problem(answer, 403)[0] == "origin"
        assert node.deleted == []
        assert node.asked == []
        for origin in (url, "https://search.example"):  # its own page, and behind a proxy
            answer = http.delete("/v1/records/r1", headers={"origin": origin})
            assert answer.status_code == 202
