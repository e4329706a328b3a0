"""The cut-off on the page: no good match, the slider, hits below it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Site, picture
from tests.page.test_page import CARD, ask, ids, opened

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def many(site: Site) -> None:
    """One blue record, and forty around red and green."""
    site.put("blue", "a blue thing", picture("blue"))
    for number in range(20):
        site.put(f"red-{number}", "a red thing", picture("red"))
        site.put(f"green-{number}", "a green thing", picture("green"))


def slide(tab: Page, *values: float) -> None:
    tab.locator("#cut").evaluate(
        """(input, values) => {
            for (const value of values) {
                input.value = value;
                input.dispatchEvent(new Event("input"));
            }
            input.dispatchEvent(new Event("change"));
        }""",
        [str(value) for value in values],
    )


def test_hits_below_the_cut_off_are_told_apart(site: Site, tab: Page) -> None:
    many(site)
    opened(tab, site)
    ask(tab, "blue")
    assert ids(tab) == ["blue"]
    expect(tab.locator("#heading")).to_have_text("1 result")
    below = tab.locator("#below")
    expect(below).to_contain_text("23 more records are below the minimum score of 0.")
    cut = float(tab.locator("#cut-value").inner_text())
    assert 0.3 < cut < 0.95
    expect(tab.locator("#map")).to_have_attribute("data-ringed", "1")
    below.get_by_role("button").click()
    expect(tab.locator(CARD)).to_have_count(24)
    expect(tab.locator(f"{CARD}.weak")).to_have_count(23)
    expect(tab.locator(CARD).nth(1)).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator("#detail")).to_contain_text(f"The mark is the minimum score of {cut:.2f}.")
    mark = tab.locator("#detail ul.why .total .bar b")
    left = float(mark.evaluate("mark => mark.style.left").removesuffix("%"))
    assert left == pytest.approx(100 * cut, abs=1)


def test_no_good_match_is_said_and_the_slider_decides(site: Site, tab: Page) -> None:
    many(site)
    opened(tab, site)
    ask(tab, "blue")
    slide(tab, 0.999)
    expect(tab.locator("#heading")).to_have_text("No good match")
    empty = tab.locator("#empty")
    expect(empty).to_contain_text(
        "The closest of 41 records scores 0.999, below the minimum of 1.000"
    )
    expect(empty).to_contain_text("By chance the best of the unrelated records scores 0.")
    expect(tab.locator(CARD)).to_have_count(0)
    expect(tab.locator("#map")).to_have_attribute("data-ringed", "0")
    link = tab.evaluate("location.hash")
    assert "min=1" in link or "min=0.999" in link
    tab.goto("about:blank")
    tab.goto(f"{site.url}/{link}")
    expect(tab.locator("#heading")).to_have_text("No good match")
    empty.get_by_role("button", name=re.compile("Show the 24 closest")).click()
    expect(tab.locator(f"{CARD}.weak")).to_have_count(24)
    tab.click("#cut-reset")
    assert ids(tab) == ["blue"]
    assert "min=" not in tab.evaluate("location.hash")
    slide(tab, 0)
    expect(tab.locator(CARD)).to_have_count(24)
    tab.get_by_role("radio", name="Picture").check()  # another vector, its own default
    expect(tab.locator("#cut-reset")).to_be_hidden()
    expect(tab.locator(CARD)).to_have_count(1)


def test_the_address_changes_when_the_slider_is_let_go(site: Site, tab: Page) -> None:
    """Browsers refuse more than some hundred changes of the address in half a minute."""
    tab.add_init_script(
        "window.changes = 0; const replace = history.replaceState;"
        " history.replaceState = (...a) => { changes += 1; replace.apply(history, a); };"
    )
    many(site)
    opened(tab, site)
    ask(tab, "blue")
    before = tab.evaluate("changes")
    slide(tab, *(number / 1000 for number in range(300)), 0.4)
    assert tab.evaluate("changes") == before + 1
    assert "min=0.4" in tab.evaluate("location.hash")


def test_few_records_have_no_default(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "blue")
    expect(tab.locator(CARD)).to_have_count(9)
    expect(tab.locator("#cut-value")).to_have_text("none")
    slide(tab, 0.9)
    expect(tab.locator(CARD)).to_have_count(3)
