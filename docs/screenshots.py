"""Takes the screenshots of the web page that the documentation shows: `make screenshots`.

Without --url it starts Apache Kafka, Valkey, a worker and an index node on this machine, as
`braid demo` does, with a model that it trains on the demo's data. Chromium must be installed.

    python docs/screenshots.py [--url http://127.0.0.1:8077] [--limit 400]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from braid.index.client import Client
from braid.stream.cli.common import service_url
from braid.stream.cli.demo import STALLED_S, TRAIN_S, choose, produce, until_ready
from braid.stream.datasets.sources import held_out
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import free_port
from braid.stream.local.fleet import Fleet, services
from braid.stream.settings import load

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 600_000  # of all pictures together
WORDS = "red flower"
CARD = "#results .card:not(.ghost)"
LONG_MS = 60_000
QUIET_S = 65  # then the header has no figures of the last minute, in which all records arrived
STEP = 8  # of 256: larger shows, with 4 the files are a fifth larger
COMMON = 1 / 1500  # share of a picture's pixels


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the screenshots of the page.")
    parser.add_argument("--url", help="of an index node that runs; without it one is started")
    parser.add_argument("--limit", type=int, default=1000, help="records of the stack started here")
    options = parser.parse_args()
    with running(options.limit) if options.url is None else nullcontext(options.url) as url:
        pictures = taken(url)
    size = sum(map(len, pictures.values()))
    if size > MAX_BYTES:
        sys.exit(f"{size} bytes, the limit is {MAX_BYTES}")
    IMAGES.mkdir(exist_ok=True)
    for name, data in pictures.items():
        (IMAGES / name).write_bytes(data)
        print(f"{IMAGES / name}: {len(data)} bytes")


@contextmanager
def running(limit: int) -> Iterator[str]:
    """The address of an index node with the demo's records, a fifth of them without labels."""
    dataset = choose(None)
    dataset = replace(dataset, items=dataset.items[:: -(-len(dataset.items) // limit)])
    known = [item for item in dataset.items if not held_out(item.id)]
    unseen = [item for item in dataset.items if held_out(item.id)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = load(home=home, http={"port": free_port()})
        with services(settings, home / "services") as run, Fleet(run, home) as fleet:
            ensure(run, run.generation)
            produce(run, known, split="train", labelled=True)
            fleet.run("retrain", timeout=TRAIN_S)
            fleet.start("embed")
            fleet.start("index", "--port", str(run.http.port))
            with Client(service_url(run)) as client:
                until_ready(fleet, client)
                names = dataset.captions_name_label
                produce(run, unseen, split="held-out", labelled=False, captions_name_label=names)
                fleet.wait(
                    "searchable",
                    lambda: client.status().records,
                    len(dataset.items),
                    stalled=STALLED_S,
                )
            time.sleep(QUIET_S)
            yield service_url(run)


def taken(url: str) -> dict[str, bytes]:
    """The pictures by file name, as PNG."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        sys.exit("no Chromium is installed: CHROMIUM names its program")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        return {
            "page-1440.png": shot(browser, url, (1440, 1000), searched),
            "page-390.png": shot(browser, url, (390, 844), searched, scale=2),
            "detail-1440.png": shot(browser, url, (1440, 1000), detail),
        }


def shot(
    browser: Browser,
    url: str,
    size: tuple[int, int],
    show: Callable[[Page, str], None],
    *,
    scale: int = 1,
) -> bytes:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=scale,
        color_scheme="light",
        reduced_motion="reduce",
    )
    tab = context.new_page()
    tab.set_default_timeout(LONG_MS)
    show(tab, url)
    raw = tab.screenshot()
    context.close()
    return small(raw)


def searched(tab: Page, url: str) -> None:
    """Hits for WORDS among the pictures, with their thumbnails."""
    tab.goto(f"{url}/#q={WORDS.replace(' ', '+')}&vector=image")
    expect(tab.locator("#c-state")).to_have_text("live", timeout=LONG_MS)
    expect(tab.locator(CARD).first).to_be_visible(timeout=LONG_MS)
    tab.reload()  # now that the model is warm
    expect(tab.locator(CARD).first).to_be_visible(timeout=LONG_MS)
    expect(tab.locator(f"{CARD} img.there").first).to_be_visible(timeout=LONG_MS)
    tab.wait_for_function(
        """() => [...document.querySelectorAll("#results .well.pictured img")]
            .filter((image) => image.getBoundingClientRect().top < innerHeight)
            .every((image) => image.classList.contains("there"))"""
    )
    tab.wait_for_timeout(1000)  # the map's colours


def detail(tab: Page, url: str) -> None:
    """The best hit that has a sound, opened."""
    searched(tab, url)
    tab.locator(CARD).filter(has=tab.locator(".player")).first.locator(".open").click()
    shown = tab.locator("#detail")
    expect(shown.locator(".large img[data-kind=picture]")).to_be_visible(timeout=LONG_MS)
    expect(shown.locator(".near img.there").nth(7)).to_be_visible(timeout=LONG_MS)
    tab.mouse.move(0, 0)


def small(raw: bytes) -> bytes:
    """A PNG whose rare colours, those of photographs, are rounded to multiples of STEP.

    Red and blue are rounded by their difference from green: rounded each by itself, a grey with a
    trace of a colour would become that colour.
    """
    with Image.open(io.BytesIO(raw)) as picture:
        rgb_HWC = np.asarray(picture.convert("RGB"))
    colours_NC, number_HW, counts_N = np.unique(
        rgb_HWC.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    green_N1 = colours_NC[:, 1:2].astype(np.int16)
    tint_NC = colours_NC - green_N1
    rounded_NC = (STEP * np.round(green_N1 / STEP) + STEP * np.round(tint_NC / STEP)).clip(0, 255)
    common_N = counts_N > COMMON * number_HW.size
    reduced_NC = np.where(common_N[:, None], colours_NC, rounded_NC).astype(np.uint8)
    file = io.BytesIO()
    reduced = Image.fromarray(reduced_NC[number_HW].reshape(rgb_HWC.shape))
    reduced.save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
