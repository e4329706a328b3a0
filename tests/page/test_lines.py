"""The page's status lines: an empty index, and dead letters."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Site
from tests.page.test_page import HTML, ask, opened

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def test_dead_letters_of_the_last_hour_are_counted_and_explained(site: Site, tab: Page) -> None:
    opened(tab, site)
    tab.click("#state")
    expect(tab.locator("#dead-summary")).to_have_text("None in the last hour.")
    expect(tab.locator("#dead")).to_be_hidden()
    site.dead = {("decode", "BadRecord"): 1998, ("encode", HTML): 2}
    opened(tab, site)
    expect(tab.locator("#dead")).to_have_text("at least 2,000 dead letters")
    tab.click("#dead")
    expect(tab.locator("#dead-summary")).to_contain_text("at least 2,000 dead letters")
    expect(tab.locator("#dead-rows")).to_be_visible()  # what is hidden has no tabs in its text
    rows = tab.locator("#dead-rows tr").all_inner_texts()
    assert rows == ["decode\tBadRecord\t1,998", f"encode\t{HTML}\t2"]
    assert tab.locator("#health b, #health img").count() == 0
    expect(tab.locator("#dead-help")).to_contain_text("braid dead-letters list")
    expect(tab.locator("#dead-rows td").first).to_have_attribute("title", "reading the message")
    expect(tab.locator("#dead-summary")).to_contain_text("They are in the topic dead-letters.")
    site.dead = {("join", "BadRecord"): 1}
    opened(tab, site)
    expect(tab.locator("#dead")).to_have_text("1 dead letter")
    step = tab.locator("#dead-rows td").first
    expect(step).to_have_attribute("title", re.compile("others did not come in time"))


def test_the_panel_says_how_the_pipeline_is(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("ERR_")
    site.fill()
    opened(tab, site)
    tab.click("#state")
    facts = tab.locator("#health-facts")
    expect(facts).to_contain_text(re.compile(r"Index\s*ready"))
    expect(tab.locator("#dead-summary")).to_have_text(re.compile("^None in the last hour"))
    expect(tab.locator("#health-close")).to_be_focused()
    site.state = {
        "lag": {"0": 3, "1": 1200},
        "building": {"g0002": {"waits_for": HTML, "stops": None}},
        "rebuilt": "the log was cut",
    }
    site.not_ready = "still reading"
    expect(facts).to_contain_text("1,203")
    expect(facts).to_contain_text(f"waits for {HTML}")
    expect(facts).to_contain_text(re.compile(r"Index\s*not ready"))
    expect(facts).to_contain_text("the log was cut")
    assert tab.locator("#health b, #health img").count() == 0
    tab.route("**/v1/status", lambda route: route.abort())
    expect(facts).to_contain_text("the index does not answer")
    tab.keyboard.press("Escape")
    expect(tab.locator("#health")).to_be_hidden()
    expect(tab.locator("#state")).to_be_focused()
    expect(tab.locator("#state")).to_have_attribute("aria-expanded", "false")


def test_nothing_yet(site: Site, tab: Page) -> None:
    opened(tab, site)
    expect(tab.locator("#empty")).to_contain_text("Nothing here yet")
    expect(tab.locator("#nomap")).to_be_visible()
    ask(tab, "red")
    expect(tab.locator("#empty")).to_contain_text("Nothing like that")
