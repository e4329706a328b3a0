"""Texts, pictures and sounds that Redis has lost: rebuilt, gone, or not readable now."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Site, picture
from tests.page.test_page import CARD, ask, drawn, ids, opened
from tests.stream.conftest import tone

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def test_missing_ones_are_rebuilt_or_plainly_absent(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("404")
    site.put("kept", "a red thing", picture("red"), shown=False)
    gone = site.put("gone", "a blue thing", picture("blue"), tone("red"), shown=False)
    del site.log[0, gone.version]
    opened(tab, site)
    ask(tab, "red")
    assert ids(tab) == ["kept", "gone"]
    assert drawn(tab, 0)
    expect(tab.locator(CARD).nth(0).locator(".caption")).to_have_text("a red thing")
    absent = tab.locator(CARD).nth(1)
    expect(absent.locator(".well")).to_contain_text("Its picture is not kept any more")
    expect(absent.locator(".caption")).to_have_text("Its text is not kept any more")
    absent.locator(".player button").click()
    expect(absent.locator(".player")).to_have_text("Its sound is not kept any more")
    assert site.read_back.count("kept") == 1  # once for picture and text
    rows = site.payloads.get_many(["kept"])
    assert rows is not None
    assert rows["kept"].text == "a red thing"
    assert site.media_cache.get("thumb", "kept", version=0) is not None


def test_what_cannot_be_read_now_is_told_from_what_is_gone(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("503")
    site.put("late", "a red thing", picture("red"), tone("red"), shown=False)
    site.busy = True
    opened(tab, site)
    card = tab.locator(CARD).first
    expect(card.locator(".well")).to_have_text("Its picture cannot be read now")
    expect(card.locator(".caption")).to_have_text("Its text cannot be read now")
    card.locator(".player button").click()
    expect(card.locator(".player")).to_have_text("Its sound cannot be read now")
    card.locator(".open").click()
    shown = tab.locator("#detail .media")
    expect(shown).to_contain_text("The picture cannot be read now")
    expect(shown).to_contain_text("The text cannot be read now")
    tab.keyboard.press("Escape")
    site.busy = False
    tab.reload()
    assert drawn(tab, 0)
    expect(card.locator(".caption")).to_have_text("a red thing")
