"""Makes the picture of `parelu demo` in docs/, by a headless chromium: `make pictures`."""

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "demo.png")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    save(arguments.target, arguments.scheme, arguments.chromium)
