"""Colours by the system, light and dark; and axe-core's rules in both."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from braid.modalities import MODALITIES
from tests.page.conftest import Site, film, picture
from tests.page.test_page import CARD, ask, drawn, opened
from tests.stream.conftest import tone

pytestmark = [pytest.mark.browser, pytest.mark.redis]

AXE = Axe()


def ground(tab: Page) -> str:
    return str(tab.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_it_is_chosen(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    light = ground(tab)
    tab.emulate_media(color_scheme="dark")
    expect(tab.locator("html")).to_have_attribute("data-theme", "dark")
    dark = ground(tab)
    assert dark != light
    button = tab.locator("#theme")
    expect(button).to_have_attribute("aria-label", "Colours: as the system; change")
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: light; change")
    assert ground(tab) == light
    tab.reload()
    assert ground(tab) == light
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: dark; change")
    tab.emulate_media(color_scheme="light")
    assert ground(tab) == dark
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: as the system; change")
    assert ground(tab) == light


def serious(tab: Page) -> list[str]:
    violations: list[dict[str, Any]] = AXE.run(tab).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(site: Site, tab: Page, scheme: Literal["light", "dark"]) -> None:
    site.modalities = tuple(MODALITIES)
    site.fill()
    site.put(
        "all",
        "a red thing",
        picture("red"),
        tone("red"),
        film(),
        meta={"lang": "en"},
        labels={"colour": "red"},
        predicted={"colour": "red"},
        predictions={"colour": {"prob": 0.9, "by": {"text": {"label": "red", "prob": 0.9}}}},
    )
    site.dead = {("decode", "BadRecord"): 3}
    tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    opened(tab, site)
    expect(tab.locator(CARD)).to_have_count(10)
    assert serious(tab) == []
    ask(tab, "red")
    assert drawn(tab, 0)
    tab.click("#filter-button")
    assert serious(tab) == []
    tab.click("#dead")
    expect(tab.locator("#dead-rows tr")).to_have_count(1)
    assert serious(tab) == []
    tab.keyboard.press("Escape")
    tab.locator(f"{CARD}[data-id=all] .open").click()
    expect(tab.locator("#detail .near li")).to_have_count(8)
    assert serious(tab) == []
    tab.keyboard.press("Escape")
    tab.click("#share")
    expect(tab.get_by_label("Link", exact=True)).to_be_visible()
    assert serious(tab) == []
    tab.click("#map-button")  # the map is hidden
    tab.click("#map-button")
    expect(tab.locator("#legend li").first).to_be_visible()
    expect(tab.locator("#colour")).to_be_visible()
    assert serious(tab) == []
    tab.set_viewport_size({"width": 390, "height": 844})
    assert serious(tab) == []


def test_axe_would_find_a_button_without_a_name(site: Site, tab: Page) -> None:
    opened(tab, site)
    tab.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert serious(tab) != []
