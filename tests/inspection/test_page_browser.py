"""The page of 3,000 steps in Debian's Chromium: usable within 2 s, by mouse and keys, deaf to names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.inspection.hostile import HOSTILE, hostile_trace
from tests.inspection.synthetic import recording

from tensure.inspection import ValueStore, page_of

READY_WITHIN_MS = 2000
MAX_BYTES = 5 << 20
STEPS = 3000

INK = """() => {
  const canvas = document.getElementById('graph-canvas'), seen = new Set();
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let at = 0; at < data.length; at += 4 * 97) seen.add(data.slice(at, at + 4).join());
  return seen.size;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with closing(ValueStore()) as store:
        html = page_of(recording(STEPS, store))
    path = tmp_path_factory.mktemp("page") / "run.html"
    path.write_text(html)
    return path


def test_three_thousand_steps_fit(large: Path) -> None:
    page = large.read_text()
    assert len(page.encode()) <= MAX_BYTES
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["steps"]["op"]) == STEPS
    assert len(data["histograms"]["of"]) > 4000
    assert len(data["maps"]["of"]) >= STEPS and data["maps"]["left_out"] == 0


class Seen:
    """What a page did while it was open: requests, messages, errors, dialogues."""

    def __init__(self, page: Page) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))


def opened(browser: Browser, path: Path, *, anchor: str = "", scripts: bool = True) -> tuple[Page, Seen]:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, java_script_enabled=scripts)
    seen = Seen(page)
    page.goto(path.as_uri() + anchor)
    if scripts:
        page.locator("html[data-ready]").wait_for()
    return page, seen


@pytest.fixture
def page(browser: Browser, large: Path) -> Iterator[Page]:
    found, seen = opened(browser, large)
    yield found
    assert seen.said == []
    assert seen.asked == [large.as_uri()]
    found.close()


def rows(page: Page) -> int:
    return page.locator("#grid .row[role=row]:not(.head):visible").count()


def chosen(page: Page) -> str:
    return page.locator("#detail h3").inner_text()


def test_usable_within_two_seconds(browser: Browser, large: Path) -> None:
    """On the clock; on a machine that others keep busy, in the processor time of the page's main thread."""
    walls: list[float] = []
    works: list[float] = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(large.as_uri())
        page.locator("html[data-ready]").wait_for()
        measures = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
        works.append(1000 * measures["TaskDuration"])
        walls.append(float(page.locator("html").get_attribute("data-ready") or "nan"))
        assert rows(page) > 10
        assert page.evaluate(INK) > 8
        page.close()
        if walls[-1] < READY_WITHIN_MS:
            break
    print(f"ready after {walls} ms, of which the main thread worked {works} ms")
    assert min(works) < READY_WITHIN_MS / 2, works
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) * 1.5
    assert busy or min(walls) < READY_WITHIN_MS, walls


def test_rows_that_are_not_in_sight_are_not_there(page: Page) -> None:
    assert page.locator("#grid").get_attribute("aria-rowcount") == str(STEPS + 2 + 1)
    page.locator("#grid").evaluate("grid => grid.scrollTop = 40000")
    expect(page.locator("#grid [aria-rowindex='1610']")).to_be_visible()
    assert page.locator("#grid [role=row]").count() < 80


def test_keys_walk_through_the_table(page: Page) -> None:
    page.locator("#grid").focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert chosen(page) == "stage0.block0.value_0"
    assert page.evaluate("location.hash") == "#step-0"
    row = page.locator("#grid [aria-selected=true]")
    assert page.locator("#grid").get_attribute("aria-activedescendant") == row.get_attribute("id")
    page.keyboard.press("End")
    assert chosen(page) == f"stage12.block374.value_{STEPS - 1}"
    expect(page.locator("#detail .badge").last).to_have_text("output logits")


def test_filters(page: Page) -> None:
    count = page.locator("#count")
    page.keyboard.press("/")
    page.keyboard.type("value_77 softmax")
    expect(count).to_have_text("1 of 4,127")
    page.locator("#filter-regex").check()
    page.locator("#filter").fill(r"^stage0\.block0\.value_(1|2)$")
    expect(count).to_have_text("2 of 4,127")
    page.locator("#filter").fill("value_(")
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")
    expect(count).to_have_text("0 of 4,127")
    expect(page.locator(".empty")).to_be_visible()
    assert rows(page) == 0
    page.locator("#filter").fill("")
    page.locator("#filter-bad").check()
    expect(count).to_have_text("3 of 4,127")
    assert rows(page) == 3


def test_columns_sort(page: Page) -> None:
    page.locator("#columns summary").click()
    expect(page.get_by_label("device", exact=True)).not_to_be_checked()
    page.get_by_label("std", exact=True).uncheck()
    expect(page.get_by_role("columnheader", name="std", exact=True)).to_have_count(0)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="max", exact=True).click()
    expect(page.get_by_role("columnheader", name="max", exact=True)).to_have_attribute(
        "aria-sort", "descending"
    )
    at = page.get_by_role("columnheader", name="max", exact=True).get_attribute("aria-colindex")
    cells = page.locator(f"#grid [role=gridcell][aria-colindex='{at}']:visible")
    numbers = [float(text) for text in cells.all_inner_texts()[:10]]
    assert len(set(numbers)) == 1 and numbers[0] > 15, "the largest come first, all of them alike here"


def test_the_graph_is_walked_and_opened(page: Page) -> None:
    canvas = page.locator("#graph-canvas")
    canvas.focus()
    before = chosen(page)
    page.keyboard.press("ArrowDown")
    assert chosen(page) != before
    ink = page.evaluate(INK)
    page.locator("#graph-open").click()
    page.get_by_role("button", name="In graph").click()
    page.wait_for_timeout(100)
    # What was chosen is in sight now, at a size that can be read: a click chooses one of its neighbours.
    box = canvas.bounding_box()
    assert box and ink > 8
    here = chosen(page)
    for down in range(20, int(box["height"]), 12):
        canvas.click(position={"x": box["width"] / 2, "y": down})
        if chosen(page) != here:
            break
    else:
        pytest.fail("a click on a step chooses it")


def test_an_address_names_a_step(browser: Browser, large: Path) -> None:
    page, _ = opened(browser, large, anchor="#step-1234")
    assert chosen(page).endswith("value_1234")
    page.locator("header dd a").click()
    expect(page.locator("#detail h3")).to_have_text("stage0.block1.value_11")
    expect(page.locator("#detail .badge").first).to_have_text("NaN / Inf first at [0,3,4,5]")
    assert page.locator("#detail figure canvas[role=img][aria-label]").count() == 2
    page.close()


def test_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page_of(hostile_trace(), title=HOSTILE[0]))
    page, seen = opened(browser, path)
    page.locator("#graph-open").click()
    page.locator("#grid").focus()
    for _ in HOSTILE:
        page.keyboard.press("ArrowDown")
    for key in ("<img", "__proto__", "onerror", "constructor"):
        page.locator("#filter").fill(key)
        assert rows(page) >= 1
    assert page.locator("h1").inner_text() == HOSTILE[0]
    assert page.evaluate("window.broken") is None
    assert page.locator("img, iframe, svg, [onload], [onerror]").count() == 0
    assert seen.said == [] and seen.asked == [path.as_uri()]
    page.close()


def test_a_script_that_is_not_ours_does_not_run(browser: Browser, large: Path, tmp_path: Path) -> None:
    path = tmp_path / "tampered.html"
    path.write_text(large.read_text().replace("<main>", "<script>window.broken=1</script><main>"))
    page, seen = opened(browser, path)
    assert page.evaluate("window.broken") is None
    assert any("Content Security Policy" in said for said in seen.said)
    page.close()


def test_without_scripts_it_says_so(browser: Browser, large: Path) -> None:
    page, _ = opened(browser, large, scripts=False)
    text = page.locator("body").inner_text()
    assert "Scripts are switched off here" in text and "peak live memory" in text
    page.close()
