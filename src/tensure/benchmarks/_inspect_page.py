"""The page of a long run: how large, and how soon a browser can use it. Prints one JSON object.

    python -m tensure.benchmarks._inspect_page

A real run of 3,000 steps (a small network, over and over, values kept) as a page, opened in Debian's Chromium
through Playwright: from the start of navigation until the page says that table and graph are drawn. Median of
several openings, the first of them cold.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from tensure.inspection import page_of, watch

from ._records import Json

__all__ = ["measure_page"]

STEPS: Final = 3000
CHROMIUM: Final = "/usr/bin/chromium"
OPENINGS: Final = 5


def measure_page() -> Json:
    """Steps, bytes, and seconds until usable, or why those are not there."""
    html = _page()
    found: dict[str, Json] = {"steps": STEPS, "bytes": len(html.encode()), "usable_s": None}
    if find_spec("playwright") is None or not os.path.exists(CHROMIUM):
        return {**found, "reason": "without Playwright and Debian's chromium"}
    with tempfile.TemporaryDirectory(prefix="tensure-page-") as folder:
        path = Path(folder) / "run.html"
        path.write_text(html, encoding="utf-8")
        seconds = _openings(path)
    return {**found, "usable_s": statistics.median(seconds), "openings": seconds}


def _page() -> str:
    """The page of exactly 3,000 steps of eager torch."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 3, 1),
    ).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad(), watch(net, name="3,000 steps", digest=True, keep=True, inputs={"x": x}) as run:
        while len(run.trace.steps) < STEPS:
            x = net(x).tanh()
    del run.trace.steps[STEPS:]
    return page_of(run.recording())


def _openings(path: Path) -> list[float]:
    from playwright.sync_api import sync_playwright

    seconds: list[float] = []
    with sync_playwright() as playwright:
        for _ in range(OPENINGS):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            begin = time.perf_counter()
            page.goto(path.as_uri())
            page.locator("html[data-ready]").wait_for()
            seconds.append(time.perf_counter() - begin)
            browser.close()
    return seconds


if __name__ == "__main__":
    print(json.dumps(measure_page()))
