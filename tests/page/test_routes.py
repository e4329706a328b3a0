"""The page's routes without a browser: files, thumbnails, snippets, recent writes, map."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from braid.index.media_cache import Media
from braid.index.service.app import Limits
from braid.index.service.limits.auth import ApiKeys
from braid.index.store import Delete
from braid.modalities import MODALITIES
from tests.page.conftest import Site, picture, serving
from tests.stream.conftest import tone

pytestmark = pytest.mark.redis


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    site.fill()
    with httpx.Client(base_url=site.url, timeout=20) as http:
        yield http


def test_the_page_is_plain_files_under_a_strict_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert "://" not in page.text  # nothing comes from elsewhere
    tag = page.headers["etag"]
    assert http.get("/", headers={"if-none-match": tag}).status_code == 304
    script = http.get("/page/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    constants = http.get("/page/constants.js")
    assert constants.headers["content-type"] == script.headers["content-type"]
    table = re.fullmatch("export const MODALITIES = (.*);\n", constants.text)
    assert table is not None
    nouns = {name: one["noun"] for name, one in json.loads(table[1]).items()}
    assert nouns == {name: one.noun for name, one in MODALITIES.items()}
    for path in ("/page/nothing.js", "/page/..%2Fservice.py", "/page/__init__.py"):
        answer = http.get(path)
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"field", "reason"}


def test_thumbnails_and_snippets(site: Site, http: httpx.Client) -> None:
    version = site.store.get("red-0").version  # type: ignore[union-attr]
    thumb = http.get("/v1/thumb", params={"id": "red-0", "v": version})
    assert thumb.headers["content-type"] == "image/webp"
    assert thumb.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in thumb.headers["cache-control"]
    with Image.open(io.BytesIO(thumb.content)) as shown:
        assert shown.size == (40, 36)
    other = http.get("/v1/thumb", params={"id": "red-0", "v": version + 1})
    assert "immutable" not in other.headers["cache-control"]
    snippet = http.get("/v1/snippet", params={"id": "red-0"})
    assert snippet.headers["content-type"] == "audio/mpeg"
    wave, rate = soundfile.read(io.BytesIO(snippet.content))
    assert len(wave) / rate == pytest.approx(0.5, abs=0.15)
    assert site.read_back == []
    for path, id_ in (
        ("thumb", "nobody"),
        ("snippet", "red-1"),
        ("shown", "nobody"),
        ("thumb", ""),
    ):
        answer = http.get(f"/v1/{path}", params={"id": id_})
        assert answer.status_code in (404, 422)
        assert set(answer.json()["error"]) == {"field", "reason"}


def test_one_record_is_shown_large_or_as_small_as_it_is_kept(
    site: Site, http: httpx.Client
) -> None:
    version = site.store.get("red-0").version  # type: ignore[union-attr]
    for path, small in (("picture", "thumb"), ("sound", "snippet")):
        kept = http.get(f"/v1/{small}", params={"id": "red-0"})
        assert len(kept.content) > 50
        instead = http.get(f"/v1/{path}", params={"id": "red-0", "v": version})
        assert (instead.content, instead.headers["content-type"]) == (
            kept.content,
            kept.headers["content-type"],
        )
        assert instead.headers["cache-control"] == "private, no-cache"  # the large one may come
    assert http.get("/v1/text", params={"id": "red-0"}).status_code == 404
    assert http.get("/v1/sound", params={"id": "red-1"}).status_code == 404
    site.whole["picture", "red-0"] = Media(data=b"large", type="image/webp")
    site.whole["text", "red-0"] = Media(data="ü <b>".encode(), type="text/plain")
    large = http.get("/v1/picture", params={"id": "red-0", "v": version})
    assert (large.content, large.headers["content-type"]) == (b"large", "image/webp")
    assert "immutable" in large.headers["cache-control"]
    text = http.get("/v1/text", params={"id": "red-0"})
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.headers["x-content-type-options"] == "nosniff"
    assert text.text == "ü <b>"


@pytest.mark.parametrize("id_", ["../../x", "a/b", "..", "?#&", "line\nbreak", "ü☃"])
def test_any_id_has_a_thumbnail(site: Site, http: httpx.Client, id_: str) -> None:
    site.put(id_, "x", picture("red"))
    assert http.get("/v1/thumb", params={"id": id_}).status_code == 200
    assert http.get("/v1/shown", params={"id": id_}).json()["text"] == "x"


def test_what_redis_lost_is_rebuilt_once_and_kept(site: Site, http: httpx.Client) -> None:
    lost = site.put("lost", "words", picture("blue"), tone("red"), shown=False)
    assert http.get("/v1/thumb", params={"id": "lost"}).status_code == 200
    assert http.get("/v1/snippet", params={"id": "lost"}).status_code == 200
    assert http.get("/v1/shown", params={"id": "lost"}).json()["text"] == "words"
    assert site.read_back == ["lost"]
    assert site.media_cache.get("snippet", "lost", version=lost.version) is not None
    site.media_cache.drop_many([("thumb", "lost")])  # evicted
    assert http.get("/v1/thumb", params={"id": "lost"}).status_code == 200

    gone = site.put("gone", "words", picture("blue"), shown=False)
    del site.log[0, gone.version]
    for _ in range(3):
        assert http.get("/v1/thumb", params={"id": "gone"}).status_code == 404
    assert site.read_back == ["lost", "gone"]  # and it is not read again at once
    assert http.get("/v1/shown", params={"id": "gone"}).json()["text"] is None
    assert lost.version != gone.version


def test_a_newer_payload_is_not_overwritten(site: Site, http: httpx.Client) -> None:
    old = site.put("a", "old words", picture("red"), shown=False)
    site.put("a", "new words", None)
    site.log[0, old.version + 1] = site.log[0, old.version]  # a late answer of the older version
    assert http.get("/v1/thumb", params={"id": "a"}).status_code == 200
    rows = site.payloads.get_many(["a"])
    assert rows is not None
    assert rows["a"].text == "new words"


def test_a_picture_of_an_older_version_is_not_served_as_the_new_one(
    site: Site, http: httpx.Client
) -> None:
    """A thumbnail that was being made when the record changed is stored after the change."""
    old = site.put("a", "words", picture("red"))
    new = site.put("a", "words", picture("blue", (50, 30)), shown=False)
    thumb = site.log[0, old.version].media["thumb"]
    assert site.media_cache.put_many({("thumb", "a"): thumb}, version=old.version)
    for _ in range(2):  # rebuilt, and then from Redis
        answer = http.get("/v1/thumb", params={"id": "a", "v": new.version})
        assert "immutable" in answer.headers["cache-control"]
        with Image.open(io.BytesIO(answer.content)) as shown:
            assert shown.size == (50, 30)
    assert site.media_cache.get("thumb", "a", version=new.version) is not None


def test_what_cannot_be_read_now_is_not_remembered_as_gone(site: Site, http: httpx.Client) -> None:
    site.put("lost", "words", picture("blue"), shown=False)
    site.busy = True
    for path in ("thumb", "picture", "sound", "text"):
        answer = http.get(f"/v1/{path}", params={"id": "lost"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["reason"] == "many records are being read back; try again"
    shown = http.get("/v1/shown", params={"id": "lost"}).json()
    assert shown["text"] is None
    assert "try again" in shown["unread"]
    site.busy = False
    assert http.get("/v1/thumb", params={"id": "lost"}).status_code == 200
    shown = http.get("/v1/shown", params={"id": "lost"}).json()
    assert (shown["text"], shown["unread"]) == ("words", None)


def test_live_tells_what_is_new(site: Site, http: httpx.Client) -> None:
    first = http.get("/v1/live").json()
    assert [r["id"] for r in first["records"]][:2] == ["blue-2", "blue-1"]
    assert first["counters"]["records"] == 9
    assert first["counters"]["per_second"] > 0
    assert first["counters"]["model"] == "toy-0001"
    quiet = http.get("/v1/live", params={"since": first["number"]}).json()
    assert quiet["records"] == []
    http.get("/v1/map")
    site.put("new", "words", meta={"a": 1}, labels={"l": "x"})
    params = {"since": first["number"], "wait_ms": 5000}
    (new,) = http.get("/v1/live", params=params).json()["records"]
    assert (new["id"], new["text"], new["labels"], new["modalities"]) == (
        "new",
        "words",
        {"l": "x"},
        ["text"],
    )
    assert len(new["at"]) == 2
    next_ = site.store.positions[0]
    site.apply(Delete(id="new", partition=0, version=next_, ts=1), next_ + 1)
    assert http.get("/v1/live").json()["records"][0]["id"] == "blue-2"
    assert http.get("/v1/live", params={"wait_ms": 60_000}).status_code == 422


def test_live_of_a_node_that_has_just_come_up(site: Site, http: httpx.Client) -> None:
    """Nothing arrived since it started, but it holds records: the newest are shown."""
    site.recent_writes._ring.clear()
    records = http.get("/v1/live").json()["records"]
    assert len(records) == 9
    assert records[0]["ts"] == max(record["ts"] for record in records)
    assert records[0]["text"]


def test_the_map_and_places_outside_of_it(site: Site, http: httpx.Client) -> None:
    drawn = http.get("/v1/map").json()
    assert sorted(drawn["ids"]) == sorted(row.id for row in site.store.sample(100))
    again = http.get("/v1/map", params={"revision": drawn["revision"]})
    assert (again.status_code, again.content) == (204, b"")
    site.put("late", "red")
    answer = http.post("/v1/map", json={"ids": ["late", "red-0", "nobody"]}).json()
    assert set(answer["places"]) == {"late", "red-0"}
    at = drawn["ids"].index("red-0")
    assert answer["places"]["red-0"] == pytest.approx([drawn["x"][at], drawn["y"][at]], abs=1e-3)
    assert http.post("/v1/map", json={"ids": ["x"] * 1001}).status_code == 422


def test_hits_say_what_matched(site: Site, http: httpx.Client) -> None:
    site.put("two", "a blue text", picture("red"))

    def matched(**body: object) -> str | None:
        hits = http.post("/v1/search", json={"k": 100} | body).json()["hits"]
        result: str | None = next(hit["matched"] for hit in hits if hit["id"] == "two")
        return result

    assert matched(text="blue") == "text"
    assert matched(text="red") == "image"
    assert matched(text="red", vector="text") == "text"
    row = site.store.get("two")
    assert row is not None
    query = {"values": row.vectors["image"].astype(np.float64).tolist(), "space": "s-toy"}
    assert matched(query=query) == "image"
    hit = http.post("/v1/search", json={"id": "red-0", "k": 1}).json()["hits"][0]
    assert (hit["id"], hit["modalities"]) == ("red-0", ["audio", "image", "text"])
    assert hit["labels"] == {"colour": "red"}


def test_large_media_cost_more_than_small_ones(site: Site) -> None:
    """Each is read from Kafka and decoded anew."""
    site.fill()
    limits = Limits(rate_per_s=0.001, burst=2)
    with serving(site, limits=limits) as url, httpx.Client(base_url=url) as http:
        codes = [http.get("/v1/picture", params={"id": "red-0"}).status_code for _ in range(5)]
        assert codes == [200] * 4 + [429]
        assert http.post("/v1/search", json={"text": "red"}).status_code == 200


def test_what_the_page_asks_by_itself_costs_no_query(site: Site) -> None:
    """Twenty-four cards and the counters are no search; and they are not free of limits."""
    site.fill()
    limits = Limits(rate_per_s=0.001, burst=2)
    keys = ApiKeys(["long-enough-a-key"])
    with serving(site, limits=limits, keys=keys) as url, httpx.Client(base_url=url) as http:
        assert http.get("/").status_code == 200
        assert http.get("/v1/live").status_code == 401
        http.headers["authorization"] = "Bearer long-enough-a-key"
        for path in ("thumb", "snippet", "shown"):
            for _ in range(24):
                assert http.get(f"/v1/{path}", params={"id": "red-0"}).status_code == 200
        assert http.get("/v1/live").status_code == 200
        assert http.get("/v1/map").status_code == 200
        asked = [http.post("/v1/search", json={"text": "red"}).status_code for _ in range(3)]
        assert asked == [200, 200, 429]
        assert [http.get("/v1/live").status_code for _ in range(30)].count(200) == 26
