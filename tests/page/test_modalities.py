"""The page offers the modalities of the served version, and asks by files of each."""

from __future__ import annotations

import base64
import re

import httpx
import pytest
from playwright.sync_api import FilePayload, Page, expect

from braid.index.service.app import Limits
from braid.modalities import MODALITIES
from tests.page.conftest import Site, film, picture, serving
from tests.page.test_page import CARD, ask, drawn, opened

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def choices(tab: Page) -> list[str]:
    return tab.locator("#vector label:visible").all_inner_texts()


def attach(tab: Page, name: str, data: bytes, kind: str) -> None:
    tab.set_input_files("#file", FilePayload(name=name, mimeType=kind, buffer=data))


def test_it_offers_what_the_version_has_and_follows_it(site: Site, tab: Page) -> None:
    site.modalities = ("text", "image")
    site.put("red-0", "a red thing", picture("red"))
    opened(tab, site)
    expect(tab.locator("#words")).to_have_attribute("placeholder", "Type words, drop a picture")
    assert choices(tab) == ["Everything", "Text", "Picture"]
    expect(tab.get_by_role("button", name="Add a picture", exact=True)).to_be_visible()
    expect(tab.locator("#record")).to_be_hidden()
    assert "audio/*" not in str(tab.locator("#file").get_attribute("accept"))
    attach(tab, "mine.webm", film(), "video/webm")
    expect(tab.locator("#notes")).to_contain_text("mine.webm: is not a picture")
    tab.get_by_role("radio", name="Picture").check()

    site.modalities = tuple(MODALITIES)
    expect(tab.get_by_role("radio", name="Video")).to_be_visible()
    assert choices(tab) == ["Everything", "Text", "Picture", "Sound", "Video"]
    expect(tab.get_by_role("radio", name="Picture")).to_be_checked()
    expect(tab.locator("#record")).to_be_visible()
    add = tab.get_by_role("button", name="Add a picture, a sound or a video")
    expect(add).to_be_visible()
    assert ".mkv" in str(tab.locator("#file").get_attribute("accept")).split(",")

    site.modalities = ("text",)
    expect(tab.locator("#words")).to_have_attribute("placeholder", "Type words")
    assert choices(tab) == []
    expect(add).to_be_hidden()
    attach(tab, "mine.png", picture("red"), "image/png")
    expect(tab.locator("#notes")).to_contain_text("mine.png: the served version knows only words")
    ask(tab, "red")
    assert site.asked[-1].image is None


def test_a_film_is_asked_as_a_video_and_shared(site: Site, tab: Page) -> None:
    site.modalities = tuple(MODALITIES)
    site.put("film", video=film())
    site.fill()
    opened(tab, site)
    large = film() + b"\0" * (9 << 20)  # more than JSON may hold
    attach(tab, "mine.mkv", large, "application/octet-stream")
    expect(tab.locator("#heading")).to_have_text("10 results")
    expect(tab.locator(".part")).to_contain_text("mine.mkv")
    assert site.asked[-1].media == {"video": large}
    card = tab.locator(CARD).first
    expect(card).to_have_attribute("data-id", "film")
    expect(card.locator(".tag[data-modality]")).to_have_text(re.compile(r"^video [01]\.\d\d$"))
    assert drawn(tab, 0)
    tab.get_by_role("radio", name="Video").check()
    expect(tab.locator("#heading")).to_have_text("1 result")
    tab.click("#share")
    expect(tab.locator("#notes")).to_contain_text(f"mine.mkv has {len(large)} bytes, 3145728 can")
    attach(tab, "mine.webm", film(), "video/webm")
    expect(tab.locator(".part")).to_contain_text("mine.webm")
    tab.fill("#words", "blue")
    tab.click("#share")
    link = tab.get_by_label("Link", exact=True)
    expect(link).to_have_value(re.compile("#q=blue&video=[0-9a-f]{64}&vector=video$"))
    address = link.input_value()
    tab.goto("about:blank")
    tab.goto(address)
    expect(tab.locator(".part")).to_contain_text("Shared video")
    expect(tab.locator("#heading")).to_have_text("1 result")
    expect(tab.get_by_role("radio", name="Video")).to_be_checked()
    assert (site.asked[-1].text, site.asked[-1].media) == ("blue", {"video": film()})


def test_of_a_film_the_sound_is_asked_where_there_are_no_videos(site: Site, tab: Page) -> None:
    site.fill()
    key = httpx.post(
        f"{site.url}/v1/shared", json={"video": base64.b64encode(film()).decode()}, timeout=20
    ).json()["video"]
    opened(tab, site, f"#q=red&video={key}&vector=video")
    expect(tab.locator("#heading")).to_have_text("9 results")
    expect(tab.locator("#notes")).to_contain_text("searches by a video, which the served version")
    expect(tab.locator("#notes")).to_contain_text("there are fused, text, image, audio")
    assert tab.evaluate("location.hash") == "#q=red"
    attach(tab, "mine.webm", film(), "video/webm")
    expect(tab.locator(".part")).to_contain_text("mine.webm")
    expect(tab.locator("#results")).to_have_attribute("aria-busy", "false")
    sound = site.asked[-1].media["audio"]
    assert sound[:4] == b"RIFF"
    assert len(sound) == pytest.approx(32_000, rel=0.1)  # a second at 16 kHz


def test_a_file_that_cannot_be_sent_says_why(site: Site, tab: Page) -> None:
    with serving(site, limits=Limits(body_bytes=len(film()) - 1)) as url:
        site.modalities = tuple(MODALITIES)
        tab.goto(url)
        attach(tab, "mine.webm", film(), "video/webm")
        expect(tab.locator("#notes")).to_contain_text(
            f"mine.webm: has {len(film())} bytes, {len(film()) - 1} can be sent"
        )
        attach(tab, "notes.txt", b"words", "text/plain")
        expect(tab.locator("#notes")).to_contain_text(
            "notes.txt: is not a picture, a sound or a video"
        )
        tab.goto("about:blank")  # its long poll would fail when the node ends
    assert not site.asked
