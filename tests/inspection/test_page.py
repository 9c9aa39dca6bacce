"""The page of a run: what it holds is what was recorded, it fits, it asks nobody, no name breaks out of it.

The browser's part, and the size at 3,000 steps, are in `test_page_browser.py`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from tests.inspection.hostile import HOSTILE, hostile_trace
from tests.inspection.synthetic import recording

from tensure.errors import LimitError
from tensure.inspection import Looking, Made, Recorder, Recording, Trace, ValueStore, page_of


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def number_of(value: Any) -> float | None:
    return None if value is None else float(value)


def differences(data: dict[str, Any], trace: Trace) -> list[str]:
    """Every fact in which a page's data are not the trace's."""
    text, tensors, steps = data["texts"], data["tensors"], data["steps"]
    names = list(trace.tensors)
    found: list[str] = []

    def check(what: str, got: Any, want: Any) -> None:
        if got != want:
            found.append(f"{what}: {got!r}, recorded {want!r}")

    def dims(sizes: tuple[int, ...] | None) -> str | None:
        return None if sizes is None else f"[{','.join(map(str, sizes))}]"

    check("tensors", len(tensors["name"]), len(names))
    check("steps", len(steps["op"]), len(trace.steps))
    for at, facts in enumerate(trace.tensors.values()):
        for key in ("name", "origin", "dtype", "device", "layout", "memory"):
            check(f"{facts.name} {key}", text[tensors[key][at]], getattr(facts, key))
        for key in ("step", "rank", "size", "storage", "offset", "nbytes", "digest"):
            check(f"{facts.name} {key}", tensors[key][at], getattr(facts, key))
        strides = tensors["strides"][at]
        check(f"{facts.name} shape", text[tensors["shape"][at]], dims(facts.shape))
        check(f"{facts.name} strides", None if strides is None else text[strides], dims(facts.strides))
        alias = tensors["alias_of"][at]
        check(f"{facts.name} alias", None if alias is None else names[alias], facts.alias_of)
        check(f"{facts.name} in place", bool(tensors["in_place"][at]), facts.in_place)
        seen = facts.statistics
        for key in ("zeros", "denormals", "nans", "infinities", "over_limit", "first_nonfinite"):
            check(f"{facts.name} {key}", tensors[key][at], seen and getattr(seen, key))
        for key in ("minimum", "maximum", "mean", "std", "l2"):
            got, want = number_of(tensors[key][at]), seen and getattr(seen, key)
            if (got is None) != (want is None) or (
                want is not None and not math.isclose(got, want, rel_tol=1e-6)
            ):  # type: ignore[arg-type]
                found.append(f"{facts.name} {key}: {got}, recorded {want}")
    for at, step in enumerate(trace.steps):
        for key in ("op", "module", "source"):
            check(f"step {at} {key}", text[steps[key][at]], getattr(step, key))
        for key in ("reads", "outs", "wrote"):
            check(f"step {at} {key}", tuple(names[item] for item in steps[key][at]), getattr(step, key))
        check(f"step {at} live", steps["live_bytes"][at], step.live_bytes)
        check(f"step {at} phase", bool(steps["backward"][at]), step.phase == "backward")
        check(
            f"step {at} arguments",
            [text[key] for key, _ in steps["arguments"][at]],
            [k for k, _ in step.arguments],
        )
    check("outputs", [(text[key], names[item]) for key, item in data["outputs"]], list(trace.outputs.items()))
    check("peak", data["peak_bytes"], trace.peak_bytes)
    return found


@pytest.fixture(scope="module")
def small() -> Iterator[Recording]:
    with closing(ValueStore()) as store:
        yield recording(64, store)


# --- what it holds -----------------------------------------------------------------------------------


def test_data_are_the_trace(small: Recording) -> None:
    assert differences(data_of(page_of(small)), small.trace) == []


@pytest.mark.parametrize(
    ("where", "key", "planted"),
    [
        ("tensors", "nans", 7),
        ("tensors", "mean", 1e9),
        ("tensors", "storage", -5),
        ("steps", "live_bytes", 1),
    ],
)
def test_a_planted_difference_is_seen(small: Recording, where: str, key: str, planted: float) -> None:
    data = data_of(page_of(small))
    data[where][key][20] = planted
    assert len(differences(data, small.trace)) == 1


def test_a_first_nan_is_said_with_its_index(small: Recording) -> None:
    page = page_of(small)
    data = data_of(page)
    at = next(at for at, count in enumerate(data["tensors"]["nans"]) if count)
    assert data["texts"][data["tensors"]["first_at"][at]] == "[0,3,4,5]"
    assert '<a href="#step-11">step 11</a>' in page


def test_odd_tensors_are_told() -> None:
    recorder = Recorder(Trace("odd", "made up"), Looking(True, True))
    recorder.leaf("scalar", torch.tensor(float("inf")), "input")
    recorder.leaf("empty", torch.zeros(0, 3), "input")
    recorder.leaf("sparse", torch.eye(4).to_sparse(), "input")
    recorder.leaf("wide", torch.tensor([1e300, -1e300], dtype=torch.float64) * 1e7, "input")
    recorder.leaf("complex", torch.tensor([1 + 2j, 0j]), "input")
    recorder.step("no_output", ["scalar"], [])
    trace = recorder.trace
    assert differences(data_of(page_of(trace)), trace) == []


def test_numbers_json_has_no_form_for() -> None:
    trace = recording(3).trace
    name, facts = next(iter(trace.tensors.items()))
    assert facts.statistics
    trace.tensors[name] = dataclasses.replace(
        facts, statistics=dataclasses.replace(facts.statistics, std=math.inf, mean=math.nan)
    )
    tensors = data_of(page_of(trace))["tensors"]
    assert (tensors["std"][0], tensors["mean"][0]) == ("Infinity", "NaN")


# --- pictures ----------------------------------------------------------------------------------------


def test_histograms_are_numpys(small: Recording) -> None:
    found = data_of(page_of(small))["histograms"]
    shares = np.frombuffer(base64.b64decode(found["data"]), "<u2").reshape(len(found["of"]), found["bins"])
    names = list(small.trace.tensors)
    for at, row in zip(found["of"], shares, strict=True):
        values = small[names[at]].double().numpy()
        values = values[np.isfinite(values)]
        want = np.histogram(values, found["bins"])[0] / values.size
        # A value within a rounding of an edge may count on its other side.
        np.testing.assert_allclose((row / 65535.0) ** 2, want, atol=2.5 / values.size)
    assert names.index("mask") not in found["of"], "all values of it are one"


def test_maps_are_means_of_what_they_cover() -> None:
    image = torch.arange(2 * 3 * 64 * 96, dtype=torch.float32).reshape(2, 3, 64, 96) - 9000
    image[0, 1, 0, 0] = float("nan")
    with closing(ValueStore()) as store:
        recorder = Recorder(Trace("maps"), Looking(), store=store)
        recorder.leaf("image", image, "input")
        recorder.step("relu", ["image"], [Made("relu", image[:1].relu())])
        found = data_of(page_of(Recording(recorder.trace, store)))["maps"]
    assert (found["shown"], found["channels"], found["h"], found["w"]) == ([3, 3], [3, 3], [21, 21], [32, 32])
    pixels = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(2, 3, 21, 32)
    means = torch.nn.functional.adaptive_avg_pool2d(image[0], (21, 32)).numpy()
    assert pixels[0, 1, 0, 0] == 255 and (pixels == 255).sum() == 2
    lo, hi = found["lo"][0], found["hi"][0]
    assert lo == -hi, "zero is in the middle where both signs are there"
    shown = pixels[0].astype(float) / 254 * (hi - lo) + lo
    # Whole runs, where torch's windows overlap by a pixel: alike to within two rows of the image.
    inside = (means > lo) & (means < hi) & (pixels[0] != 255)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(shown[inside], means[inside], atol=2 * 96 + (hi - lo) / 254)


def test_without_values_there_are_no_pictures(small: Recording) -> None:
    data = data_of(page_of(small.trace))
    assert "histograms" not in data and "maps" not in data
    assert data["without"] == ["The values were not kept: there are no histograms and no images."]


# --- size --------------------------------------------------------------------------------------------


def test_pictures_give_way_to_facts(small: Recording) -> None:
    bare = len(page_of(small.trace).encode())
    spread = data_of(page_of(small, max_bytes=bare + 6_000))
    assert "histograms" not in spread and 0 < len(spread["maps"]["of"]) < 64
    assert [said.split()[:4] for said in spread["without"]] == [
        ["There", "are", "no", "histograms:"],
        [str(spread["maps"]["left_out"]), "tensors", "have", "no"],
    ]
    for room in (1_500, 30_000, 60_000, 200_000):
        page = page_of(small, max_bytes=bare + room)
        assert len(page.encode()) <= bare + room
        assert differences(data_of(page), small.trace) == []


def test_facts_that_do_not_fit_are_refused(small: Recording) -> None:
    with pytest.raises(LimitError, match="a page of 64 steps takes"):
        page_of(small, max_bytes=20_000)


# --- nobody is asked, nothing breaks out -------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would make of a page: tags, attributes, the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside.append((self._open, data))
            self._open = ""


def test_policy_names_the_very_script_and_style(small: Recording) -> None:
    page = page_of(small)
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    inside = Tags(page).inside
    assert [tag for tag, _ in inside] == ["style", "script", "script"]

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy.startswith("default-src 'none'; ")
    assert f"style-src {source(inside[0][1])};" in policy
    assert f"script-src {source(inside[2][1])};" in policy
    assert source(inside[2][1] + " ") not in policy
    assert "unsafe" not in policy


def outside(page: str) -> list[str]:
    """Whatever would make a browser ask for something."""
    tags = Tags(page)
    found = [
        f"{t} {k}={v}" for t, attrs in tags.tags for k, v in attrs.items() if k in ("src", "srcset", "action")
    ]
    found += [f"{t} href={a['href']}" for t, a in tags.tags if not (a.get("href") or "#").startswith("#")]
    found += [
        t for t, _ in tags.tags if t in ("link", "img", "iframe", "object", "embed", "base", "form", "svg")
    ]
    for kind, text in tags.inside[:1] + tags.inside[2:]:
        found += [
            f"{kind}: {item}"
            for item in re.findall(r"https?:|//[a-z]+\.|url\(|@import|\bimport\(|fetch\(", text)
        ]
    return found


def test_nothing_is_asked_for(small: Recording) -> None:
    assert outside(page_of(small)) == []


def test_an_outside_address_would_be_seen(small: Recording) -> None:
    page = page_of(small)
    assert outside(page.replace("</main>", '<img src="https://a.example/x.png"></main>'))
    assert outside(page.replace("<style>", "<style>@import url(x);"))
    assert outside(page.replace('"use strict";', '"use strict"; fetch("x");'))


def test_names_stay_text() -> None:
    trace = hostile_trace()
    page = page_of(trace, title=HOSTILE[0])
    plain = Tags(
        page_of(dataclasses.replace(trace, name="a", how="b", notes=("c",) * len(trace.notes)), title="d")
    )
    tags = Tags(page)
    assert [tag for tag, _ in tags.tags] == [tag for tag, _ in plain.tags]
    assert not [key for _, attrs in tags.tags for key in attrs if key.startswith("on")]
    assert all(char not in page for char in "\u2028\u2029\u202e\u0000")
    page.encode()
    assert differences(data_of(page), trace) == []


def test_the_script_sets_text_alone() -> None:
    scripts = Tags(page_of(Trace("empty"))).inside[-1][1]
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc", scripts
    )


def test_long_names_are_cut_and_still_apart() -> None:
    recorder = Recorder(Trace("long"), Looking())
    for at in range(3):
        recorder.leaf("x" * 100_000 + str(at), torch.ones(1), "input")
    recorder.step("op" * 9999, list(recorder.trace.tensors), [], arguments=(("big", (1,) * 100_000),))
    page = page_of(recorder.trace)
    data = data_of(page)
    assert len(page) < 150_000
    assert data["steps"]["reads"] == [[0, 1, 2]]


def test_without_scripts_the_summary_is_there(small: Recording) -> None:
    page = page_of(small, title="A run")
    before = page[: page.index('<script type="application/json"')]
    for said in ("<h1>A run</h1>", "peak live memory", "first NaN or Inf", "<noscript>", "switched off"):
        assert said in before


def test_an_empty_run_has_a_page() -> None:
    assert data_of(page_of(Trace("nothing")))["steps"]["op"] == []
