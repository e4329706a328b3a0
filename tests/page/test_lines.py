"""The page's status lines: an empty index, and dead letters."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Site
from tests.page.test_page import HTML, ask, opened

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def test_dead_letters_of_the_last_hour_are_a_line(site: Site, tab: Page) -> None:
    opened(tab, site)
    expect(tab.locator("#dead")).to_be_hidden()
    site.dead = {("decode", "BadRecord"): 1998, ("encode", HTML): 2}
    opened(tab, site)
    expect(tab.locator("#dead")).to_have_text(
        f"at least 2,000 dead letters in the last hour: decode BadRecord 1,998, encode {HTML} 2"
    )
    assert tab.locator("#dead b").count() == 0
    site.dead = {("prepare", "BadInput"): 1}
    opened(tab, site)
    expect(tab.locator("#dead")).to_have_text("1 dead letter in the last hour: prepare BadInput 1")


def test_nothing_yet(site: Site, tab: Page) -> None:
    opened(tab, site)
    expect(tab.locator("#empty")).to_contain_text("Nothing here yet")
    expect(tab.locator("#nomap")).to_be_visible()
    ask(tab, "red")
    expect(tab.locator("#empty")).to_contain_text("Nothing like that")
