"""`/docs` and `/openapi.json` are complete and load nothing from other hosts."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.index.conftest import Node


def test_the_page_loads_files_of_this_service_only(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert "://" not in page.text
    files = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(files) == 4
    for file in files:
        assert file.startswith("/")
        assert http.get(file).status_code == 200
    for missing in ("/docs/nothing.js", "/docs/../core.py"):
        answer = http.get(missing)
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"field", "reason"}


@pytest.mark.browser
def test_the_page_shows_every_call_and_asks_no_other_host(node: Node, tab: Page) -> None:
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(f"{node.url}/docs")
    call = tab.locator(".opblock", has_text="/v1/search").first
    call.click()
    for words in ("What is like this?", "multipart/form-data", "retry-after"):
        expect(call).to_contain_text(words)
    described = httpx.get(f"{node.url}/openapi.json").json()
    shown = tab.locator(".swagger-ui")
    for path in described["paths"]:
        expect(shown).to_contain_text(path)
    for name in described["components"]["schemas"]:
        expect(shown).to_contain_text(name)
    call.get_by_role("button", name="Try it out").click()
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table")).to_contain_text('"hits"')
    assert [query.text for query in node.asked] == ["a red bird"]
    assert [url for url in requests if not url.startswith((node.url, "data:"))] == []


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
                if status >= "400" and path not in ("/readyz", "/healthz"):
                    assert answer["content"]["application/json"]["schema"] == error
    assert {"409", "412", "503"} <= set(described["paths"]["/v1/search"]["post"]["responses"])
