"""What the clients return: models, tables of pandas, arrays of numpy, and HTML for notebooks."""

from __future__ import annotations

import base64
import pickle
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from braid.index import calls
from braid.index.client import Client
from braid.index.display import PICTURES, SHOWN
from braid.index.errors import ServiceError
from braid.index.media_cache import Kind, Media
from braid.index.payloads import Payload
from braid.index.responses import EmbeddingsAnswer, Hit, SearchAnswer
from braid.index.service.limits.auth import ApiKeys
from tests.index.conftest import IDS, Node, serving
from tests.index.oracle import DIM, unit, upsert

KEY = "a-key-of-the-test-0123456789"
HOSTILE = """</td></table><script>alert(1)</script><img src=x onerror=alert(1)>"'&"""
WEBP = b"RIFF\x00\x00\x00\x00WEBP"
FRAME = ["table", "caption", "thead", "tbody", "tr", "th", "td", "br", "img"]


class Shown:
    """Payloads and pictures without Redis; all of r1 is hostile."""

    available = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_many(self, ids: Sequence[str]) -> dict[str, Payload]:
        labels = {HOSTILE: HOSTILE}
        return {id: Payload(text=HOSTILE, labels=labels, predicted=labels) for id in ids}

    def get(self, kind: Kind, id: str, *, version: int | None = None) -> Media | None:
        self.asked.append(id)
        return None if id == "r3" else Media(data=WEBP, type="image/webp")


@pytest.fixture
def shown(node: Node) -> Iterator[tuple[Shown, Client]]:
    """A client of a node with keys that has pictures."""
    fake: Any = Shown()
    options = {"payloads": fake, "media_cache": fake, "keys": ApiKeys([KEY])}
    with serving(node, **options) as (url, _), Client(url, api_key=KEY) as client:
        yield fake, client


def answer_of(*hits: Hit) -> SearchAnswer:
    return SearchAnswer(
        hits=list(hits),
        model=None,
        space="s",
        generation="g0001",
        as_of={},
        exact=True,
        payloads="ok",
        took_ms=1.0,
    )


def hit_of(id: str, **fields: Any) -> Hit:
    given: dict[str, Any] = {"text": None, "uri": None, "meta": {}, "model": "m", "version": 1}
    return Hit(**{"id": id, "score": 0.5, "partition": 0, **given, **fields})


class Tags(HTMLParser):
    """The tags of a page, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[str | None]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


# ---- models


def test_a_field_is_an_attribute_and_has_a_type(client: Client) -> None:
    answer = client.search(text="a red bird", k=3)
    assert isinstance(answer, SearchAnswer)
    assert [type(hit) for hit in answer.hits] == [Hit] * 3
    again = SearchAnswer.model_validate_json(answer.model_dump_json())
    assert again.model_dump() == answer.model_dump()
    status = client.status()
    assert (status.records, status.dim, status.lag) == (len(IDS), DIM, {"0": 0})
    assert status.model_extra is not None
    assert status.model_extra["device"] == "cpu"  # what only this store says


def test_an_answer_of_another_form_is_the_services_error() -> None:
    with pytest.raises(ServiceError, match="200 with another form: generation: Field required"):
        calls.read(calls.STATUS, 200, b"{}")
    more = b'{"serving": "g0001", "generations": [], "of a later version": 1}'
    assert calls.read(calls.GENERATIONS, 200, more).serving == "g0001"


# ---- numpy and pandas


def test_the_hits_are_a_table(node: Node, client: Client) -> None:
    fake: Any = Shown()
    node.payloads = fake
    answer = client.search(text="a red bird", k=5, explain=True)
    table = answer.to_pandas()
    assert list(table["id"]) == [hit.id for hit in answer.hits]
    np.testing.assert_array_equal(table["score"], [hit.score for hit in answer.hits])
    assert list(table["meta.number"]) == [hit.meta["number"] for hit in answer.hits]
    assert list(table[f"labels.{HOSTILE}"]) == [HOSTILE] * 5
    assert set(table["meta.lang"]) <= {"de", "fr"}
    assert table["scores.text"].notna().all()
    times = [pd.Timestamp(hit.ts, unit="ms", tz="UTC") for hit in answer.hits]
    assert list(table["ts"]) == times
    assert "meta" not in table


def test_what_only_some_hits_have_is_missing_in_the_others() -> None:
    far = 10**17  # milliseconds that no time in nanoseconds holds
    table = answer_of(
        hit_of("a", meta={"x": 1}, ts=far), hit_of("b", meta={"y": [1, 2]})
    ).to_pandas()
    assert list(table["meta.x"].isna()) == [False, True]
    assert table["meta.y"][1] == [1, 2]
    assert table["ts"].isna().all()
    empty = answer_of().to_pandas()
    assert len(empty) == 0
    assert {"id", "score", "text", "ts", "matched"} <= set(empty.columns)


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'braid-stream\[pandas\]'"):
        answer_of(hit_of("a")).to_pandas()


def test_scores_and_vectors_are_arrays_of_float32(node: Node, client: Client) -> None:
    answer = client.search(text="a red bird", k=4)
    scores_N = answer.to_numpy()
    assert scores_N.dtype == np.float32
    expected = [np.float32(hit.score) for hit in answer.hits]
    assert list(scores_N) == expected
    vectors = client.get("r3").to_numpy()
    row = node.oracle.rows["r3"]
    assert vectors["fused"].dtype == np.float32
    np.testing.assert_array_equal(vectors["fused"], row.fused)
    texts = ["a red bird", "rain"]
    vectors_ND = client.embed(texts).to_numpy()
    expected_ND = np.stack([unit(text, None, None) for text in texts]).astype(np.float32)
    np.testing.assert_array_equal(vectors_ND, expected_ND)


def test_vectors_come_in_the_order_of_the_inputs_base64_too() -> None:
    packed = base64.b64encode(np.array([0.25, 0.5], "<f4").tobytes()).decode()
    data = [
        {"object": "embedding", "index": 1, "embedding": packed},
        {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
    ]
    given = {"object": "list", "data": data, "model": "m", "space": "s"}
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    answer = EmbeddingsAnswer.model_validate(given | {"usage": usage})
    np.testing.assert_array_equal(answer.to_numpy(), [[1.0, 0.0], [0.25, 0.5]])


# ---- notebooks


def test_a_hostile_record_is_shown_as_text(node: Node, shown: tuple[Shown, Client]) -> None:
    node.store.apply([upsert(HOSTILE, 99, meta={HOSTILE: HOSTILE})], positions={}, progress={})
    _, client = shown
    page = Tags(client.search(id=HOSTILE, k=1)._repr_html_())
    assert {tag for tag, _ in page.tags} <= set(FRAME)
    assert {name for _, attributes in page.tags for name in attributes} <= {"src", "alt", "style"}
    assert page.text.count("<script>alert(1)</script>") >= 2  # its id and its text
    assert all(str(uri).startswith("data:image/webp;base64,") for uri in page.pictures())


def test_pictures_are_fetched_with_the_key_even_after_the_client_is_closed(
    shown: tuple[Shown, Client],
) -> None:
    fake, client = shown
    answer = client.search(text="a", k=len(IDS))
    client.close()
    page = Tags(answer._repr_html_())
    expected = f"data:image/webp;base64,{base64.b64encode(WEBP).decode()}"
    assert set(page.pictures()) == {expected}
    first = [hit.id for hit in answer.hits][:PICTURES]
    assert fake.asked == first
    assert len(page.pictures()) == PICTURES - ("r3" in first)


def test_a_copy_of_an_answer_does_not_hold_the_key(shown: tuple[Shown, Client]) -> None:
    fake, client = shown
    answer = client.search(text="a", k=3)
    packed = pickle.dumps(answer)
    assert KEY.encode() not in packed
    assert KEY not in repr(answer) + answer.model_dump_json() + repr(answer._thumbnail)
    again = pickle.loads(packed)
    assert again.hits == answer.hits
    assert Tags(again._repr_html_()).pictures() == []
    assert fake.asked == []


def test_where_nobody_answers_the_hits_are_shown_without_pictures() -> None:
    asked: list[str] = []

    def gone(id: str) -> str | None:
        asked.append(id)
        raise ServiceError("no thumbnail: ConnectError")

    answer = answer_of(*[hit_of(f"r{n}", modalities=["image"]) for n in range(SHOWN + 9)])
    answer._thumbnail = gone
    page = Tags(answer._repr_html_())
    assert (page.pictures(), asked) == ([], ["r0"])
    assert f"{SHOWN + 9} hits, the first {SHOWN} shown" in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + SHOWN


def test_a_long_text_is_cut() -> None:
    page = Tags(answer_of(hit_of("a", text="x" * 10_000))._repr_html_())
    assert 100 < page.text.count("x") < 1000
