"""Takes the README's two screenshots from a running demo, with headless Chromium.

Usage: `python docs/screenshots.py URL REPORT.html`. `make demo` prints the URL, and `pluralllm report` writes REPORT.html.
The script needs Chromium and the development dependencies.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pictures"
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]


def take(url: str, name: str, ready: str) -> None:
    """Opens the page at `url`, waits for an element that matches the selector `ready`, and saves a screenshot as `name`."""
    with sync_playwright() as tools:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=[*sandbox, *QUIET])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(url)
        page.locator(ready).first.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / name)
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1], "page.png", "#alignment polyline")
    if len(sys.argv) > 2:
        take(Path(sys.argv[2]).absolute().as_uri(), "report.png", "h1")
