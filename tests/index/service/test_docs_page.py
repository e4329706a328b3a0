"""`/docs` and `/openapi.json` are complete and load nothing from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import httpx

from braid.index.service.routes.docs import render


class Reader(HTMLParser):
    """Anchors, links to them, and everything that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif "src" in given or tag in ("script", "link", "iframe", "img", "object"):
            self.loaded.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_tells_every_call_and_loads_nothing(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    reader = Reader()
    reader.feed(answer.text)
    assert reader.loaded == []
    assert not re.search(r"https?://|url\(|@import", answer.text)
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link for link in reader.links if link.removeprefix("#") not in reader.ids} == {
        "openapi.json"
    }
    assert "#SearchUpload" in reader.links
    described = http.get("/openapi.json").json()
    for path, calls in described["paths"].items():
        assert path in reader.text
        for call in calls.values():
            assert call["description"].split("\n")[0] in reader.text
    for name in described["components"]["schemas"]:
        assert name in reader.ids
    for words in ("multipart/form-data", "application/json", "from 1, to 1000", "retry-after"):
        assert words in reader.text


def test_every_call_tells_what_it_takes_and_every_error(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    schemas = described["components"]["schemas"]

    def fields(media_type: str) -> tuple[set[str], dict[str, Any]]:
        content = described["paths"]["/v1/search"]["post"]["requestBody"]["content"][media_type]
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        assert schema["additionalProperties"] is False
        return set(schema["properties"]), schema["properties"]

    json_names, _ = fields("application/json")
    part_names, parts = fields("multipart/form-data")
    assert json_names == part_names
    assert parts["image"]["format"] == parts["audio"]["format"] == "binary"
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    for path, calls in described["paths"].items():
        for call in calls.values():
            answers = call["responses"]
            if path.startswith("/v1/"):
                assert {"401", "413", "415", "422", "429", "500"} <= set(answers)
            for status, answer in answers.items():
                if status >= "400" and path != "/readyz":
                    assert answer["content"]["application/json"]["schema"] == error
    assert {"409", "412", "503"} <= set(described["paths"]["/v1/search"]["post"]["responses"])


def test_what_is_described_is_shown_as_text() -> None:
    page = render(
        {
            "info": {"title": "<b>&", "description": "<script>alert(1)</script>"},
            "paths": {"/'><i>": {"get": {"summary": "<u>", "responses": {}}}},
            "components": {"schemas": {"'<s>": {"properties": {"<p>": {"type": "<t>"}}}}},
        }
    )
    reader = Reader()
    reader.feed(page)
    assert reader.loaded == []
    for words in ("<b>&", "<script>alert(1)</script>", "/'><i>", "<u>", "'<s>", "<p>", "<t>"):
        assert words in reader.text
