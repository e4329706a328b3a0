"""The page of a node that is not ready, until it is."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from braid.index.service.app import create_app
from braid.index.service.dependencies import CONNECTION
from braid.index.service.limits.hosts import Hosts
from braid.index.service.server import NodeServer
from tests.index.conftest import running
from tests.page.conftest import Site, deps_of
from tests.page.test_page import CARD

pytestmark = [pytest.mark.browser, pytest.mark.redis]


def test_a_node_that_starts_says_what_it_waits_for(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors += ["503", "500", "ERR_"]  # it ends before the page does
    server = NodeServer(host="127.0.0.1", port=0, hosts=Hosts("127.0.0.1"), limits=CONNECTION)
    with running(server) as url:
        tab.goto(url)
        server.reason = "waiting for the first model: braid retrain or braid models import makes it"
        expect(tab.locator("#c-state")).to_have_text("waiting")
        expect(tab.locator("#empty")).to_contain_text("Waiting for the first model: braid retrain")
        tab.fill("#words", "red")
        tab.press("#words", "Enter")
        expect(tab.locator("#heading")).to_have_text("No results")
        expect(tab.locator("#empty")).to_contain_text("Waiting for the first model: braid retrain")
        tab.keyboard.press("Escape")
        site.fill()
        server.app = create_app(deps_of(site))
        expect(tab.locator("#c-state")).to_have_text("live")
        expect(tab.locator(CARD).first).to_be_visible()
        expect(tab.locator("#empty")).to_be_hidden()
