"""Makes pictures of pages in docs/, by a headless chromium.

python docs/pictures.py                                    the one of `parelu demo`: `make pictures`
python docs/pictures.py --report runs/mine/report.html     the one of a report, in docs/report.png
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from parelu import demo
from parelu.private.transport.link import LINKS

WIDTH, HEIGHT = 1120, 900
READY = 600_000  # milliseconds, in which both parties compile, the first time
CHOSEN = 3  # of the images that the page offers
POINT = 4  # of a report's frontier plot, from the left


def save(target: Path, scheme: str, executable: str) -> None:
    """The whole page, after an image was asked about over a WAN."""
    with demo.page(None, LINKS["wan"]) as page, sync_playwright() as playwright:
        serving = threading.Thread(target=page.serve_forever, daemon=True)
        serving.start()
        with playwright.chromium.launch(executable_path=executable) as browser:
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            tab.add_init_script("Math.random = () => 0")  # always the same images
            tab.goto(page.address)
            for _ in range(2):  # the first time is slower
                tab.wait_for_selector("#ask:enabled", timeout=READY)
                tab.locator("#choices input").nth(CHOSEN).check(force=True)
                tab.click("#ask")
                tab.locator("#gain", has_text="fewer ReLUs").wait_for(timeout=READY)
            tab.wait_for_selector("#ask:enabled", timeout=READY)
            tab.screenshot(path=target, full_page=True)


def save_report(report: Path, target: Path, scheme: str, executable: str) -> None:
    """The top of a report's page, at a point of the frontier."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable) as browser:
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        tab.goto(report.resolve().as_uri())
        tab.locator("#frontier-plot .stage").focus()
        for _ in range(POINT):
            tab.keyboard.press("ArrowRight")
        tab.screenshot(path=target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="its page")
    parser.add_argument("--target", type=Path, help="docs/demo.png, or docs/report.png, if left out")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    target = arguments.target or Path(__file__).parent / ("report.png" if arguments.report else "demo.png")
    if arguments.report:
        save_report(arguments.report, target, arguments.scheme, arguments.chromium)
    else:
        save(target, arguments.scheme, arguments.chromium)
