"""The page in headless Chromium: typing, dropping, recording, results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

from braid.index.payloads import Payloads
from tests.page.conftest import Site, film, picture, serve
from tests.services import Valkey
from tests.stream.conftest import tone

pytestmark = [pytest.mark.browser, pytest.mark.redis]

CARD = "#results .card:not(.ghost)"
HTML = "<img src=x onerror=\"document.title='broken in'\"><b>bold</b>"


def opened(tab: Page, site: Site, link: str = "") -> Page:
    tab.goto(site.url + "/" + link)
    expect(tab.locator("#c-state")).to_have_text("live")
    return tab


def ask(tab: Page, words: str) -> None:
    tab.fill("#words", words)
    tab.press("#words", "Enter")
    expect(tab.locator("#heading")).to_have_text(re.compile(r"^\d+ results?$"))


def ids(tab: Page) -> list[str]:
    result: list[str] = tab.locator(CARD).evaluate_all("nodes => nodes.map((n) => n.dataset.id)")
    return result


def drawn(tab: Page, card: int) -> bool:
    """Whether the card's picture has really been decoded."""
    image = tab.locator(CARD).nth(card).locator("img.there")
    expect(image).to_have_count(1)
    return bool(image.evaluate("image => image.naturalWidth > 0"))


def test_words_find_the_right_picture(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "something blue")
    assert [id_.split("-")[0] for id_ in ids(tab)[:3]] == ["blue"] * 3
    card = tab.locator(CARD).first
    expect(card.locator(".caption")).to_contain_text("a blue thing")
    assert drawn(tab, 0)
    expect(card.locator(".score")).to_have_text("0.993")
    closest = card.locator(".tag[data-modality]:not(.other)")
    expect(closest).to_have_text(re.compile(r"^(text|picture) [01]\.\d\d$"))
    expect(card.locator(".tag[data-modality]")).to_have_count(2)
    expect(card.locator(".tags")).to_contain_text("blue")
    expect(tab.locator("#map")).to_be_visible()
    tab.get_by_role("radio", name="Picture").check()
    expect(closest).to_have_text(re.compile("^picture"))


def test_a_picture_finds_its_neighbours_and_words_join_in(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    upload = FilePayload(name="mine.png", mimeType="image/png", buffer=picture("green"))
    tab.set_input_files("#file", upload)
    expect(tab.locator("#heading")).to_have_text("9 results")
    assert {id_.split("-")[0] for id_ in ids(tab)[:3]} == {"green"}
    assert site.asked[-1].image == picture("green")
    expect(tab.locator(".part")).to_contain_text("mine.png")
    tab.fill("#words", "also red")
    tab.press("#words", "Enter")
    tab.wait_for_function("() => document.title.startsWith('also red')")
    assert (site.asked[-1].text, site.asked[-1].image) == ("also red", picture("green"))
    tab.get_by_role("button", name="Remove mine.png").click()
    tab.wait_for_function(
        "() => document.querySelector('#results .card').dataset.id.startsWith('red')"
    )
    assert site.asked[-1].image is None


def test_a_picture_may_be_dropped_anywhere_or_pasted(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    for event, colour in (("drop", "blue"), ("paste", "red")):
        tab.evaluate(
            """([kind, bytes]) => {
                const data = new DataTransfer();
                const bits = [new Uint8Array(bytes)];
                data.items.add(new File(bits, kind + ".png", {type: "image/png"}));
                const how = {bubbles: true, cancelable: true};
                const event = kind === "drop"
                    ? new DragEvent("drop", {dataTransfer: data, ...how})
                    : new ClipboardEvent("paste", {clipboardData: data, ...how});
                document.body.dispatchEvent(event);
            }""",
            [event, list(picture(colour))],
        )
        expect(tab.locator(".part")).to_contain_text(f"{event}.png")
        expect(tab.locator(CARD).first).to_have_attribute("data-id", re.compile(f"^{colour}"))


def test_the_microphone_becomes_a_wav(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    tab.click("#record")
    expect(tab.locator(".part.busy")).to_contain_text("Recording 0:01")
    tab.click("#record")
    expect(tab.locator("#heading")).to_have_text("9 results")
    sound = site.asked[-1].audio
    assert sound is not None
    assert (sound[:4], sound[8:12]) == (b"RIFF", b"WAVE")
    assert len(sound) > 16_000  # half a second and more, at 16 kHz and two bytes


def test_a_new_record_appears_by_itself(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    expect(tab.locator(CARD)).to_have_count(9)
    site.put("new", "something green has come", picture("green"))
    expect(tab.locator(CARD).first).to_have_attribute("data-id", "new", timeout=2000)
    expect(tab.locator("#c-records")).to_have_text("10")
    assert drawn(tab, 0)
    ask(tab, "red")
    expect(tab.locator("#arrivals-list li").first).to_contain_text("something green")
    site.put("newer", "a blue one too", picture("blue"))
    expect(tab.locator("#arrivals-list li").first).to_contain_text("a blue one", timeout=2000)
    tab.keyboard.press("Escape")
    expect(tab.locator(CARD).first).to_have_attribute("data-id", "newer")


def test_a_sound_is_played(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "red")
    player = tab.locator(f"{CARD}[data-id='red-0'] .player")
    player.get_by_role("button").click()
    expect(player.locator("time")).to_have_text("0:01")
    expect(player.get_by_role("button")).to_have_attribute("aria-label", "Play its sound")  # again
    assert float(player.locator("input").input_value()) > 0
    expect(tab.locator(f"{CARD}[data-id='red-1'] .player")).to_have_count(0)


def test_filters_and_links(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    ask(tab, "red")
    tab.click("#filter-button")
    tab.locator("#filters").get_by_role("button", name=re.compile("^de")).click()
    expect(tab.locator(CARD)).to_have_count(3)
    assert all(id_.endswith("-1") for id_ in ids(tab))
    tab.locator("#filters").get_by_role("button", name=re.compile("^fr")).click()
    expect(tab.locator(CARD)).to_have_count(6)
    tab.get_by_role("radio", name="Picture").check()
    tab.select_option("#k", "12")
    tab.wait_for_function(
        "location.hash.includes('vector=image') && location.hash.includes('k=12')"
    )
    expect(tab.locator("#results")).to_have_attribute("aria-busy", "false")
    link = tab.evaluate("location.hash")
    seen = ids(tab)
    tab.goto("about:blank")
    opened(tab, site, link)
    expect(tab.locator(CARD)).to_have_count(6)
    expect(tab.locator("#results")).to_have_attribute("aria-busy", "false")
    assert ids(tab) == seen
    expect(tab.locator("#map")).to_have_attribute("data-ringed", "6")
    expect(tab.locator("#words")).to_have_value("red")
    expect(tab.locator("#active")).to_contain_text("lang: de, fr")
    tab.locator("#active").get_by_role("button").click()
    expect(tab.locator(CARD)).to_have_count(9)
    tab.go_back()
    expect(tab.locator(CARD)).to_have_count(6)
    tab.click("#filter-button")
    tab.locator("#filters summary").click()
    tab.get_by_label("Filter as JSON").fill('{"year": {"gte": 2022}}')
    tab.keyboard.press("Tab")
    expect(tab.locator(CARD)).to_have_count(3)
    assert all(id_.endswith("-2") for id_ in ids(tab))


def test_the_keyboard_is_enough(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    expect(tab.locator(CARD)).to_have_count(9)
    tab.keyboard.press("/")
    expect(tab.locator("#words")).to_be_focused()
    tab.keyboard.type("green /m")  # letters, while one types
    expect(tab.locator("#words")).to_have_value("green /m")
    tab.keyboard.press("Enter")
    expect(tab.locator("#heading")).to_have_text("9 results")
    cards = tab.locator(CARD)
    tab.keyboard.press("ArrowDown")
    expect(cards.nth(0)).to_be_focused()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(cards.nth(2)).to_be_focused()
    tab.keyboard.press("ArrowLeft")
    expect(cards.nth(1)).to_be_focused()
    expect(tab.locator("#map-panel")).to_be_visible()
    tab.keyboard.press("m")
    expect(tab.locator("#map-panel")).to_be_hidden()
    tab.keyboard.press("m")
    expect(tab.locator("#map-panel")).to_be_visible()
    like = cards.nth(1).get_attribute("data-id")
    tab.keyboard.press("l")
    expect(tab.locator(".part")).to_contain_text("Like “a green thing")
    expect(cards.first).to_have_attribute("data-id", str(like))
    tab.keyboard.press("Escape")
    expect(tab.locator("#heading")).to_have_text("Just arrived")
    expect(tab.locator("#words")).to_have_value("")
    assert tab.evaluate("location.hash") == ""


def test_the_map_shows_what_lies_under_the_pointer(site: Site, tab: Page) -> None:
    site.fill()
    opened(tab, site)
    expect(tab.locator("#legend li")).to_have_count(3)
    expect(tab.locator("#colour")).to_contain_text("colour")
    box = tab.locator("#map").bounding_box()
    assert box is not None
    tip = tab.locator("#tip")
    places = [(x / 24, y / 24) for x in range(1, 24) for y in range(1, 24)]
    for x, y in places:
        tab.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        if tab.locator("#map.over").count():
            break
    expect(tip).to_contain_text("thing")
    expect(tip.locator("img.there")).to_have_count(1)
    tab.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    expect(tab.locator(".card:focus")).to_have_count(1)  # it is among those that have just arrived
    tab.keyboard.press("m")
    tab.keyboard.press("m")
    before = tab.locator("#map").evaluate("c => c.toDataURL()")
    tab.mouse.wheel(0, -600)
    tab.wait_for_function(
        "before => document.getElementById('map').toDataURL() !== before", arg=before
    )


def test_html_is_shown_as_text(site: Site, tab: Page) -> None:
    site.put(
        HTML, HTML, picture("red"), meta={HTML: HTML}, labels={"x": HTML}, predicted={"y": HTML}
    )
    opened(tab, site)
    ask(tab, "red")
    card = tab.locator(CARD).first
    assert card.locator(".caption").inner_text() == HTML
    assert drawn(tab, 0)
    assert tab.locator("b", has_text="bold").filter(has=tab.locator("img")).count() == 0
    assert tab.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    card.get_by_role("button", name="More like this").click()
    expect(tab.locator(".part")).to_contain_text("<img src=x")
    tab.click("#filter-button")
    expect(tab.locator("#filters")).to_contain_text("<b>bold</b>")
    assert tab.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert "broken in" not in tab.title()


def test_our_own_policy_refuses_a_foreign_script(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    """That no other test sees a violation would mean nothing without a policy that bites."""
    expected_errors.append("Content Security Policy")
    opened(tab, site)
    ran = tab.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (e) => resolve(e.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            if (window.ran) resolve("it ran");
        })"""
    )
    assert ran.startswith("script-src")
    assert tab.evaluate("window.ran === undefined")


@pytest.mark.parametrize("width", [360, 390])
def test_it_fits_a_phone(site: Site, tab: Page, width: int) -> None:
    site.fill()
    site.put("long", "x" * 300, None, meta={"m" * 60: "y" * 300}, labels={"z": "w" * 150})
    tab.set_viewport_size({"width": width, "height": 740})
    opened(tab, site)
    expect(tab.locator("#map-panel")).to_be_hidden()

    def fits() -> None:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

    fits()
    ask(tab, "green")
    fits()
    tab.click("#map-button")
    expect(tab.locator("#legend li").first).to_be_attached()
    fits()
    tab.click("#filter-button")
    fits()
    small = tab.locator("button:visible, select:visible, #words").evaluate_all(
        """nodes => nodes.filter((n) => n.getBoundingClientRect().height < 30)
                         .map((n) => n.outerHTML)"""
    )
    assert small == []  # a finger must hit it


CONTRAST = """() => {
    const numbers = (colour) => {
        const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d", {willReadFrequently: true});
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
    const behind = (node) => {
        if (node === null) return numbers("white");
        const own = numbers(getComputedStyle(node).backgroundColor);
        return own[3] === 1 ? own : [...over(own, behind(node.parentElement)), 1];
    };
    const light = (colour) => colour.slice(0, 3).reduce((sum, value, i) => {
        const c = value / 255;
        const linear = c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        return sum + [0.2126, 0.7152, 0.0722][i] * linear;
    }, 0);
    const weak = new Set();
    let looked = 0;
    for (const node of document.body.querySelectorAll("*")) {
        const own = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
        const text = own.map((child) => child.data).join("");
        if (!text.trim() || !node.checkVisibility({visibilityProperty: true})) continue;
        if (node.closest(".hidden, .skip, dialog:not([open])")) continue;
        const style = getComputedStyle(node);
        if (parseFloat(style.fontSize) === 0) continue;
        looked += 1;
        const [a, b] = [light(numbers(style.color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) weak.add(`${node.className || node.tagName}: ${ratio.toFixed(2)} ${text}`);
    }
    return [looked, [...weak]];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_easy_to_read(
    site: Site, tab: Page, scheme: Literal["light", "dark"]
) -> None:
    """A contrast of 4.5 and more, WCAG 2.2's AA, whatever its size."""
    site.fill()
    site.put("filmed", video=film())
    site.put("spoken", None, None, tone("red"), predicted={"mood": "calm"}, meta={"lang": "en"})
    site.put("words", "only words, no picture", meta={"lang": "en"})
    tab.emulate_media(color_scheme=scheme)
    opened(tab, site)
    ask(tab, "red")
    tab.click("#filter-button")
    tab.locator("#filters").get_by_role("button", name=re.compile("^en")).click()
    expect(tab.locator(CARD)).to_have_count(5)
    drawn(tab, 0)
    looked, weak = tab.evaluate(CONTRAST)
    assert looked > 60
    assert weak == []
    tab.keyboard.press("Escape")  # closes the filters
    tab.keyboard.press("Escape")
    site.put("new", "has just come")
    expect(tab.locator(CARD).first).to_have_attribute("data-id", "new")
    assert tab.evaluate(CONTRAST)[1] == []


def test_what_is_wrong_is_said_in_words(site: Site, tab: Page, expected_errors: list[str]) -> None:
    expected_errors += ["404", "ERR_"]
    site.fill()
    opened(tab, site, "#id=nobody")
    expect(tab.locator("#empty")).to_contain_text("No record 'nobody'")
    site.not_ready = "still reading"
    expect(tab.locator("#c-state")).to_have_text("catching up")
    site.not_ready = None
    tab.route("**/v1/**", lambda route: route.abort())
    tab.fill("#words", "red")
    tab.press("#words", "Enter")
    expect(tab.locator("#empty")).to_contain_text("The index does not answer")
    expect(tab.locator("#c-state")).to_have_text("no answer")
    tab.unroute("**/v1/**")
    expect(tab.locator("#c-state")).to_have_text("live")


def test_a_key_is_asked_for_once_and_sent_with_everything(
    site: Site, tab: Page, expected_errors: list[str]
) -> None:
    expected_errors.append("401")
    site.fill()
    asked: list[str] = []

    def guard(route: Route) -> None:
        asked.append(route.request.url)
        if route.request.headers.get("authorization") == "Bearer s3cret":
            route.continue_()
            return
        error = {"error": {"field": "authorization", "reason": "must be Bearer and a key"}}
        route.fulfill(status=401, body=json.dumps(error), content_type="application/json")

    tab.route("**/v1/**", guard)
    tab.goto(site.url)
    tab.get_by_placeholder("API key").fill("wrong")
    tab.keyboard.press("Enter")
    expect(tab.locator("#key-reason")).to_contain_text("not accepted")
    tab.get_by_placeholder("API key").fill("s3cret")
    tab.keyboard.press("Enter")
    expect(tab.locator("#c-state")).to_have_text("live")
    expect(tab.locator("#key-dialog")).to_be_hidden()
    ask(tab, "red")
    assert drawn(tab, 0)
    assert any("/v1/thumb" in url for url in asked)
    assert not any("s3cret" in url for url in asked)
    tab.reload()
    expect(tab.locator("#c-state")).to_have_text("live")


IMPOSSIBLE = (8_640_000_000_000_001, 2**63 - 1, -(2**63))  # ms; no Date holds them


def test_what_no_page_expects_is_shown_as_text(site: Site, tab: Page) -> None:
    """A script as caption, an impossible time, and thousands of meta names."""
    names = {f"{HTML} {number}": f"<script>{number}</script>" for number in range(2000)}
    site.put("plain", "a red thing", picture("red"))
    for number, ts in enumerate(IMPOSSIBLE):
        site.put(f"odd-{number}", f"<script>document.title='in'</script> {number}", ts=ts)
    labels = dict.fromkeys(names, HTML)
    site.put("names", HTML, picture("blue"), meta=names, labels=labels, predicted=names)
    opened(tab, site)
    expect(tab.locator(CARD)).to_have_count(5)
    for number in range(len(IMPOSSIBLE)):
        card = tab.locator(f"{CARD}[data-id=odd-{number}]")
        expect(card.locator(".caption")).to_have_text(
            f"<script>document.title='in'</script> {number}"
        )
        expect(card.locator("time")).to_have_text("impossible time")
        assert card.locator("time").get_attribute("datetime") is None
    crowded = tab.locator(f"{CARD}[data-id=names]")
    expect(crowded.locator(".caption")).to_have_text(HTML)
    expect(crowded.locator(".meta b").first).to_contain_text("<script>")
    assert crowded.locator(".meta b").count() <= 6
    assert 0 < crowded.locator(".tags span").count() <= 24
    ask(tab, "red")  # and as hits
    expect(tab.locator(CARD)).to_have_count(5)
    expect(tab.locator("#map")).to_be_visible()
    tab.wait_for_function("() => document.querySelector('#colour').options.length > 1")
    assert tab.title().startswith("red ")
    assert tab.locator("#results script, #results img[src=x]").count() == 0


@pytest.fixture
def own_site(own_valkey: Valkey) -> Iterator[Site]:
    yield from serve(Site(payloads=Payloads(own_valkey.address)))


def test_without_redis_it_says_so_and_goes_on(
    own_site: Site, tab: Page, own_valkey: Valkey, expected_errors: list[str]
) -> None:
    own_site.fill()
    opened(tab, own_site)
    expect(tab.locator(CARD)).to_have_count(9)
    own_valkey.stop()
    ask(tab, "blue")
    expect(tab.locator("#notes")).to_contain_text("payloads: unavailable")
    assert ids(tab)[0].startswith("blue")
    expect(tab.locator(CARD).first.locator(".caption")).to_contain_text("a blue thing")
    assert drawn(tab, 0)  # read back
    own_valkey.start()
    expect(tab.locator("#notes")).to_be_empty()
