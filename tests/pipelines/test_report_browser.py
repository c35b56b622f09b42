"""The report in a browser: that it works, loads nothing, and can be used by everyone.

Needs Chromium and Playwright (`apt-get install chromium; pip install playwright axe-playwright-python`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.store import FeatureSet
from tests.conftest import Bench, save_image
from tests.pipelines.test_report import HOSTILE, made

pytestmark = pytest.mark.browser

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
SIZES = {"wide": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page in the browser, and what it did that it must not do."""

    def __init__(self, browser: Any, path: Path, *, size: str, scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.path = path
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.querySelectorAll('.query-item').length > 0")

    def _requested(self, request: Any) -> None:
        if not request.url.startswith("data:") and request.url != self.path.as_uri():
            self.faults.append(f"requested {request.url}")

    def show_all(self) -> None:
        """Scroll through the page, so that everything is drawn."""
        figures = self.page.locator("[data-chart]")
        for place in range(figures.count()):
            figures.nth(place).scroll_into_view_if_needed()
            figures.nth(place).locator(".drawing canvas, .drawing svg").first.wait_for()

    def serious_faults(self) -> list[str]:
        """Faults that axe-core calls serious or critical."""
        package = find_spec("axe_playwright_python")
        if package is None:
            pytest.skip("axe-playwright-python, which has axe-core, is not installed")
        (script,) = Path(package.submodule_search_locations[0]).rglob("axe.min.js")
        # The page's own policy forbids other scripts: the debugger may run them all the same.
        session = self.context.new_cdp_session(self.page)
        session.send("Runtime.evaluate", {"expression": script.read_text(encoding="utf-8")})
        answer = session.send(
            "Runtime.evaluate", {"expression": "axe.run()", "awaitPromise": True, "returnByValue": True}
        )
        return [
            f"{fault['id']}: {fault['help']}: {fault['nodes'][0]['html'][:300]}"
            for fault in answer["result"]["value"]["violations"]
            if fault["impact"] in ("serious", "critical")
        ]


def try_out(opened: Opened, *, views: list[str], search: str) -> None:
    """Switch layer, k and theme, search a query, choose it by keyboard, open a cluster and a chart's data."""
    page = opened.page
    opened.show_all()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for view in views:
        page.select_option("#view", label=view)
        page.wait_for_function(
            "name => document.querySelector('#query-detail h3').textContent.includes(name)", arg=view
        )
    votes = [page.inner_text(".votes") for k in ("1", "20") if page.select_option("#vote-k", k)]
    assert "100.0%" in votes[0]
    assert votes[0] != votes[1]
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.click("#theme")
    everything = page.locator(".query-item").count()
    page.fill("#query-search", search)
    assert 0 < page.locator(".query-item").count() < everything
    assert search in page.inner_text(".query-path")
    page.fill("#query-search", "")
    page.focus("#query-list")
    page.keyboard.press("End")
    assert page.locator(".query-item").last.get_attribute("aria-selected") == "true"
    page.locator(".cluster summary").first.click()
    page.locator(".cluster[open] .cluster-detail .card").first.wait_for()
    page.locator("[data-chart] summary").first.click()
    assert page.locator("[data-chart] .chart-data tbody tr").count() > 3
    page.locator("table.sortable thead button").nth(1).click()
    assert page.locator("table.sortable th[aria-sort]").count() == 1


def test_a_report_of_awkward_names_works_and_harms_nothing(browser: Any, tmp_path: Path, bench: Bench) -> None:
    made(tmp_path / "features/mine")
    for split, count in (("train", 120), ("val", 48)):
        for row in range(count):
            save_image(tmp_path / f"photos/{split}/{row}.jpg", seed=row, size=(60, 40))
    evaluate_knn(FeatureSet.open(tmp_path / "features/mine"), ["early", "late"], k=[20])
    assert bench("evaluate", "--features", "mine", "--k", "1,20", "--clusters", "4").returncode == 0
    assert bench("report", "mine", "--queries", "48", "--data", "photos", "--map", "pca,tsne").returncode == 0
    for size, scheme in (("wide", "light"), ("phone", "dark")):
        opened = Opened(browser, tmp_path / "report.html", size=size, scheme=scheme)
        try_out(opened, views=["late", "early"], search="val/4")
        assert opened.faults == []
        assert opened.serious_faults() == []
        shown = opened.page.inner_text("body")
        assert all(name in shown for name in HOSTILE[:4])
        opened.context.close()


def test_the_page_counts_the_votes_that_python_counts(browser: Any, tmp_path: Path, bench: Bench) -> None:
    """Every query, view, k and temperature of the page, against scores in float64."""
    rows, labels = made(tmp_path / "features/mine")
    evaluate_knn(FeatureSet.open(tmp_path / "features/mine"), ["early", "late"], k=[50])
    assert bench("report", "mine", "--queries", "48", "--k", "5").returncode == 0
    opened = Opened(browser, tmp_path / "report.html", size="wide")
    found = opened.page.evaluate(
        """() => data.views.flatMap((view, of) => view.ks.flatMap((k) => view.temperatures.map((temperature) => {
          Object.assign(viewer, { k, temperature });
          return [view.name, k, temperature, data.neighbours.queries.map((query, at) => {
            const [first] = voteOf(at, of);
            return [data.pictures.row[query.place], first.label];
          })];
        })))"""
    )
    assert len(found) > 50
    for name, k, temperature, predicted in found:
        x, y = (rows[split][name].astype(np.float64) for split in ("train", "val"))
        cosines = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
        for row, label in predicted:
            nearest = np.argsort(-cosines[row], kind="stable")[:k]
            weights = np.exp((cosines[row, nearest] - cosines[row].max()) / temperature)
            scores = np.bincount(labels["train"][nearest], weights, minlength=len(HOSTILE))
            assert scores[label] >= scores.max() * (1 - 1e-12)
    opened.context.close()


@pytest.mark.slow
def test_the_report_of_photographs_works(browser: Any, tmp_path: Path, bench: Bench, shared: Path) -> None:
    """Real photographs and weights, three layers, from the extraction on."""
    extracted = bench(
        "extract", "folder", "--data", shared / "data/clothing", "--val-split", "test", "--name", "clothing",
        "--weights", shared / "data/weights/squeezenet1_0-imagenet.pth", "model.trunk=squeezenet1_0",
        "--layers", "features.5,features.10,features.12", "data.limit=240",
        "transform.mean=[123/255,117/255,104/255]", "transform.std=[1/255,1/255,1/255]",
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    assert bench("evaluate", "--features", "clothing", "--k", "1,10,20", "--clusters", "10").returncode == 0
    assert bench("report", "clothing").returncode == 0
    assert (tmp_path / "report.html").stat().st_size < 10e6
    for size, scheme in (("wide", "light"), ("phone", "light"), ("wide", "dark")):
        opened = Opened(browser, tmp_path / "report.html", size=size, scheme=scheme)
        try_out(opened, views=["features.5", "features.12"], search="shoes")
        assert opened.page.locator(".query-item img").count() > 20
        assert opened.faults == []
        assert opened.serious_faults() == []
        if folder := os.environ.get("BENCH_SCREENSHOTS"):
            opened.page.evaluate("window.scrollTo(0, 0)")
            opened.page.screenshot(path=Path(folder) / f"report-{size}-{scheme}.png", full_page=True)
        opened.context.close()
