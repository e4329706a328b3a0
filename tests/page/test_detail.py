"""One record's view: opened by mouse, keyboard and link; what it shows; how it is left."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from braid.index.media_cache import Media
from tests.page.conftest import Site, picture
from tests.page.test_page import CARD, HTML, ask, ids, opened
from tests.stream.conftest import tone

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def large(colour: str) -> Media:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(colour))).resize((640, 480)).save(file, "WEBP")
    return Media(data=file.getvalue(), type="image/webp")


def test_a_click_opens_a_record_and_escape_closes_it(site: Site, tab: Page) -> None:
    site.fill()
    site.put(
        "whole",
        "a red thing, whole",
        picture("red"),
        tone("red"),
        meta={"lang": "en", "pages": [1, 2], "labels.colour": "red"},
        labels={"colour": "red"},
        predicted={"colour": "green", "size": 3.25},
        predictions={
            "colour": {
                "prob": 0.75,
                "by": {
                    "text": {"label": "red", "prob": 0.5},
                    "image": {"label": "green", "prob": 0.9},
                    "fused": {"label": "green", "prob": 0.8},
                },
            },
            "size": {"by": {"text": {"value": 3.0}}},
        },
    )
    site.whole["picture", "whole"] = large("red")
    opened(tab, site)
    ask(tab, "red")
    tab.locator(f"{CARD}[data-id=whole] .caption").click()
    detail = tab.locator("#detail")
    expect(detail).to_be_visible()
    expect(tab.locator("#detail-head")).to_have_text("a red thing, whole")
    image = detail.locator(".large img")
    expect(image).to_have_attribute("data-kind", "picture")
    expect(image).to_have_js_property("naturalWidth", 640)
    expect(image).to_have_attribute("alt", "a red thing, whole")
    expect(detail.locator(".words")).to_have_text("a red thing, whole")
    rows = detail.locator("table tr").all_inner_texts()
    assert rows[0].split("\t") == [
        "Task", "Label", "Predicted", "by text", "by picture", "all as one"
    ]  # fmt: skip
    assert rows[1].split("\t") == [
        "colour", "red", "green 75%", "red 50%", "green 90%", "green 80%"
    ]  # fmt: skip
    assert rows[2].split("\t")[2:4] == ["3.25", "3"]
    facts = detail.locator("#detail-body")
    expect(facts).to_contain_text("toy-0001")
    expect(facts).to_contain_text("partition 0, offset 9")
    expect(facts).to_contain_text(re.compile("pages\\s*1, 2"))
    expect(facts).not_to_contain_text("labels.colour")
    why = detail.locator("ul.why li")
    assert sorted(line.split("\n")[0] for line in why.all_inner_texts()) == [
        "picture", "score", "sound", "text"
    ]  # fmt: skip
    near = detail.locator(".near li")
    expect(near).to_have_count(8)
    assert "whole" not in near.evaluate_all("nodes => nodes.map((n) => n.dataset.id)")
    detail.get_by_role("button", name="Play its sound").click()
    expect(detail.locator(".player time")).to_have_text(re.compile("0:01"))
    assert "record=whole" in tab.evaluate("location.hash")
    tab.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    tab.wait_for_function("location.hash === '#q=red'")  # the dialog's close event comes later
    expect(tab.locator("#words")).to_have_value("red")  # the search stays
    expect(tab.locator(f"{CARD}[data-id=whole]")).to_be_focused()


def test_the_keyboard_opens_records_and_steps_through_them(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "green")
    order = ids(tab)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    detail, facts = tab.locator("#detail"), tab.locator("#detail-body")
    expect(facts).to_contain_text(order[0])
    tab.keyboard.press("ArrowRight")
    expect(facts).to_contain_text(order[1])
    assert f"record={order[1]}" in tab.evaluate("location.hash")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")  # there is none before the first
    expect(facts).to_contain_text(order[0])
    tab.keyboard.press("ArrowRight")
    expect(facts).to_contain_text(order[1])
    tab.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(tab.locator(CARD).nth(1)).to_be_focused()  # the one that was shown last
    expect(tab.locator("#heading")).to_have_text("9 results")


def test_a_link_opens_a_record_and_neighbours_follow(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("404")
    site.fill()
    opened(tab, site, "#record=blue-1")
    facts = tab.locator("#detail-body")
    expect(facts).to_contain_text("blue-1")
    expect(tab.locator("#detail ul.why")).to_have_count(0)  # nobody searched
    nearest = tab.locator("#detail .near li").first
    name = nearest.get_attribute("data-id")
    assert str(name).startswith("blue")
    nearest.get_by_role("link").click()
    expect(facts).to_contain_text(str(name))
    tab.go_back()
    expect(facts).to_contain_text("blue-1")
    tab.locator("#detail").get_by_role("button", name="More like this").click()
    expect(tab.locator("#detail")).to_be_hidden()
    expect(tab.locator(CARD).first).to_have_attribute("data-id", "blue-1")
    tab.goto("about:blank")
    opened(tab, site, "#q=red&record=nobody")
    expect(tab.locator("#detail [role=alert]")).to_contain_text("There is no record nobody")
    tab.keyboard.press("Escape")
    expect(tab.locator("#heading")).to_have_text("9 results")


def test_a_link_to_a_record_of_a_search_keeps_both(site: Site, tab: Page) -> None:
    site.fill()
    # As somebody else may write it: the page's own links leave out what is the default.
    opened(tab, site, "#record=red-1&vector=fused&q=red")
    expect(tab.locator("#detail-body")).to_contain_text("red-1")
    expect(tab.locator("#detail ul.why")).to_have_count(1)
    assert tab.evaluate("location.hash") == "#q=red&record=red-1"
    tab.go_back()
    expect(tab).to_have_url("about:blank")
    tab.go_forward()
    expect(tab.locator("#detail-body")).to_contain_text("red-1")
    tab.keyboard.press("Escape")
    expect(tab.locator("#heading")).to_have_text("9 results")
    tab.wait_for_function("location.hash === '#q=red'")


def test_the_requests_of_a_record_end_with_its_view(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    for path in ("picture?", "shown?"):
        tab.route(f"**/v1/{path}*", lambda route: None)
        with tab.expect_request(f"**/v1/{path}*") as request:
            tab.locator(f"{CARD}[data-id=red-0] .open").click()
        with tab.expect_event("requestfailed", lambda one: one == request.value):
            tab.keyboard.press("Escape")
        assert request.value.failure == "net::ERR_ABORTED"
        expect(tab.locator("#detail")).to_be_hidden()


def test_a_sound_ends_with_its_view(site: Site, tab: Page) -> None:
    tab.add_init_script(
        "window.sounds = []; Audio = class extends Audio {"
        " constructor() { super(); sounds.push(this); this.loop = true; } };"
    )
    site.fill()
    opened(tab, site, "#record=red-0")
    tab.locator("#detail").get_by_role("button", name="Play its sound").click()
    tab.wait_for_function(
        "() => sounds.length === 1 && !sounds[0].paused && sounds[0].currentTime > 0"
    )
    tab.keyboard.press("Escape")
    tab.wait_for_function("() => sounds[0].paused")


def test_what_a_record_holds_is_text_in_its_view(site: Site, tab: Page) -> None:
    site.put(
        HTML,
        HTML,
        picture("red"),
        meta={HTML: HTML},
        labels={HTML: HTML},
        predicted={HTML: HTML},
        predictions={HTML: {"prob": HTML, "by": {HTML: {"label": HTML, "prob": HTML}}}},
    )
    site.put("next", HTML)
    opened(tab, site)
    ask(tab, "red")
    tab.locator(CARD).first.locator(".open").click()
    detail = tab.locator("#detail")
    expect(detail.locator(".near li")).to_have_count(1)
    expect(tab.locator("#detail-head")).to_have_text(HTML)
    assert detail.locator("table td.result").inner_text() == HTML
    assert tab.evaluate("document.querySelectorAll('img[src=x], #detail script').length") == 0
    assert "broken in" not in tab.title()


def test_the_whole_of_a_long_text_is_read(site: Site, tab: Page) -> None:
    site.put("long", "begin " * 400, predicted={"topic": "x" * 40})
    site.whole["text", "long"] = Media(data=("<b>whole</b> " * 9).encode(), type="text/plain")
    opened(tab, site, "#record=long")
    expect(tab.locator("#detail .words")).to_have_text(("<b>whole</b> " * 9).strip())


def test_what_is_gone_is_said(site: Site, tab: Page, expected_errors: list[str]) -> None:
    expected_errors.append("404")
    gone = site.put("gone", "a blue thing", picture("blue"), shown=False)
    del site.log[0, gone.version]
    opened(tab, site, "#record=gone")
    expect(tab.locator("#detail .media")).to_contain_text("The picture is not kept any more")
    expect(tab.locator("#detail .media")).to_contain_text("The text is not kept any more")
    expect(tab.locator("#detail .neighbours")).to_contain_text("There is no other record")
