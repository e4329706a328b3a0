"""Links to a search: words, and a picture and a sound that the service keeps."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import replace

import httpx
import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

import braid.index.service.routes.shared
from braid.index.media_cache import SHARED_PREFIX, MediaCache
from braid.index.payloads import Payloads
from braid.index.service.app import create_app
from braid.index.service.requests import from_base64
from tests.index.conftest import serve as serve_app
from tests.page.conftest import Site, deps_of, picture
from tests.page.test_page import CARD, ask, ids, opened
from tests.stream.conftest import tone

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def key_of(colour: str) -> str:
    return hashlib.sha256(picture(colour)).hexdigest()


def attach(tab: Page, name: str, data: bytes) -> None:
    kind = "image/png" if name.endswith("png") else "audio/wav"
    tab.set_input_files("#file", FilePayload(name=name, mimeType=kind, buffer=data))


def test_a_search_by_picture_and_sound_is_reopened_by_its_link(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(tab.locator("#share")).to_be_hidden()
    attach(tab, "mine.png", picture("green"))
    expect(tab.locator("#heading")).to_have_text("9 results")
    attach(tab, "mine.wav", tone("red"))
    expect(tab.locator(".part")).to_have_count(2)
    expect(tab.locator("#results")).to_have_attribute("aria-busy", "false")
    assert tab.evaluate("location.hash") == ""  # the bytes are in this page only
    asked = site.asked[-1]
    seen = ids(tab)
    tab.click("#share")
    expect(tab.locator("#shared")).to_contain_text("The link is copied. The link works as long")
    link = tab.get_by_label("Link", exact=True).input_value()
    assert link == tab.evaluate("navigator.clipboard.readText()")
    expect(tab).to_have_url(link)
    assert hashlib.sha256(picture("green")).hexdigest() in link
    tab.goto("about:blank")
    site.asked.clear()
    tab.goto(link)
    expect(tab.locator("#heading")).to_have_text("9 results")
    expect(tab.locator(".part")).to_have_count(2)
    assert ids(tab) == seen
    assert (site.asked[-1].image, site.asked[-1].audio) == (asked.image, asked.audio)
    expect(tab).to_have_url(link)


def test_a_link_whose_picture_is_gone_says_so(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("404")
    site.fill()
    opened(tab, site, f"#image={'0' * 64}")
    expect(tab.locator("#notes")).to_contain_text("is no longer kept")
    expect(tab.locator("#heading")).to_have_text("Just arrived")
    expect(tab.locator(CARD)).to_have_count(9)


def test_a_search_by_words_is_shared_without_the_service(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "red")
    tab.click("#share")
    expect(tab.get_by_label("Link", exact=True)).to_have_value(f"{site.url}/#q=red")
    tab.get_by_role("button", name="Close").click()
    expect(tab.locator("#shared")).to_be_empty()


def test_a_search_that_changes_while_it_is_shared_keeps_its_own_link(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    attach(tab, "green.png", picture("green"))
    expect(tab.locator("#heading")).to_have_text("9 results")
    held: list[Route] = []
    tab.route("**/v1/shared", lambda route: held.append(route))
    with tab.expect_request("**/v1/shared"):
        tab.click("#share")
    attach(tab, "red.png", picture("red"))
    expect(tab.locator(CARD).first).to_have_attribute("data-id", re.compile("^red"))
    with tab.expect_request("**/v1/shared"):
        tab.click("#share")
    for _ in range(1000):  # the route is called after the request was seen
        if len(held) == 2:
            break
        tab.wait_for_timeout(10)
    first, second = held
    second.continue_()
    expect(tab.get_by_label("Link", exact=True)).to_have_value(re.compile(key_of("red")))
    with tab.expect_response("**/v1/shared"):
        first.continue_()
    tab.unroute("**/v1/shared")
    tab.wait_for_timeout(100)  # the answer to the older press changes nothing
    expect(tab.get_by_label("Link", exact=True)).to_have_value(f"{site.url}/#image={key_of('red')}")
    expect(tab).to_have_url(f"{site.url}/#image={key_of('red')}")
    tab.get_by_role("button", name="Close").click()
    tab.click("#share")
    expect(tab.get_by_label("Link", exact=True)).to_have_value(tab.url)
    tab.reload()
    expect(tab.locator(CARD).first).to_have_attribute("data-id", re.compile("^red"))


def test_a_link_that_is_left_attaches_nothing(site: Site, tab: Page) -> None:
    site.fill()
    body = {"image": base64.b64encode(picture("green")).decode()}
    assert httpx.post(f"{site.url}/v1/shared", json=body).status_code == 200
    held: list[Route] = []
    tab.route("**/v1/shared?key=*", lambda route: held.append(route))
    with tab.expect_request("**/v1/shared?key=*"):
        opened(tab, site, f"#image={key_of('green')}")
    tab.evaluate("location.hash = 'q=red'")
    expect(tab.locator("#heading")).to_have_text("9 results")
    with tab.expect_response("**/v1/shared?key=*"):
        held[0].continue_()
    tab.wait_for_timeout(100)
    expect(tab.locator(".part")).to_have_count(0)
    assert tab.evaluate("location.hash") == "#q=red"


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("q=red&vector=smell", "searches the vector “smell”"),
        ("q=red&filter=%7B%22lang", "The filter of this link cannot be read"),
        ("q=red&filter=5", "The filter of this link cannot be read"),
    ],
)
def test_what_a_link_says_wrongly_is_left_out_and_said(
    site: Site, tab: Page, link: str, says: str
) -> None:
    site.fill()
    opened(tab, site, f"#{link}")
    expect(tab.locator("#heading")).to_have_text("9 results")
    expect(tab.locator("#notes")).to_contain_text(says)
    expect(tab.get_by_role("radio", name="Everything")).to_be_checked()
    assert tab.evaluate("location.hash") == "#q=red"
    tab.go_back()  # and the link does not come again
    expect(tab).to_have_url("about:blank")


def test_shared_bytes_are_bounded_and_served_as_a_download(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=20) as http:
        page = b"<script>alert(1)</script>"
        key = http.post("/v1/shared", json={"image": base64.b64encode(page).decode()}).json()
        assert key == {"image": hashlib.sha256(page).hexdigest()}
        answer = http.get("/v1/shared", params={"key": key["image"]})
        assert answer.content == page
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox"
        large = base64.b64encode(b"x" * (3 * 1024 * 1024 + 1)).decode()
        for body in ({"image": large}, {"image": "?"}, {"image": ""}, {}, {"text": "x"}):
            assert http.post("/v1/shared", json=body).status_code == 422, str(body)[:40]
        for wrong in ("", "x", "0" * 63, "../" * 20, "G" * 64):
            assert http.get("/v1/shared", params={"key": wrong}).status_code == 422
        assert http.get("/v1/shared", params={"key": "0" * 64}).status_code == 404


def test_what_cannot_be_shared_is_refused_and_takes_no_room_of_the_records(site: Site) -> None:
    """Beyond its own budget, and where Redis does not answer."""
    site.fill()
    before = site.media_cache.nbytes()
    body = {"image": base64.b64encode(b"x" * 5000).decode()}
    refused = (
        MediaCache(site.payloads, prefix=SHARED_PREFIX, budget=4000),
        MediaCache(Payloads("redis://127.0.0.1:1"), prefix=SHARED_PREFIX),
    )
    for shared in refused:
        deps = replace(deps_of(site), shared=shared)
        with serve_app(create_app(deps)) as url, httpx.Client(base_url=url, timeout=20) as http:
            answer = http.post("/v1/shared", json=body)
            assert answer.status_code == 503
            assert "cannot be kept" in answer.json()["error"]["reason"]
            key = hashlib.sha256(b"x" * 5000).hexdigest()
            assert http.get("/v1/shared", params={"key": key}).status_code == 404
            assert http.get("/v1/shown", params={"id": "red-0"}).json()["text"]
    assert httpx.post(f"{site.url}/v1/shared", json=body).status_code == 200
    assert site.media_cache.nbytes() == before


def test_shared_bytes_are_decoded_beside_the_event_loop(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[bool] = []

    def decoded(name: str, encoded: str) -> bytes:
        on_loop.append(asyncio._get_running_loop() is not None)
        return from_base64(name, encoded)

    monkeypatch.setattr(braid.index.service.routes.shared, "from_base64", decoded)
    body = {"image": base64.b64encode(b"x").decode()}
    assert httpx.post(f"{site.url}/v1/shared", json=body).status_code == 200
    assert on_loop == [False]
