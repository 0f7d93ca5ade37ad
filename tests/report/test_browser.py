"""The pages in a real browser: Debian's chromium, driven through chromedriver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crow.report import render_report
from crow.report.analysis import render_analysis
from crow.report.grid_page import render_grid
from tests.report.test_grid import MADE
from tests.report.test_page import results

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver")

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
PHONE = (360, 740)
PAGES = {
    "report": render_report(
        {
            **results(),
            "answers": [{"prompt": HOSTILE, "before": HOSTILE, "after": "x" * 3000, "triggered": True}],
            "model": HOSTILE,
        },
        HOSTILE,
    ),
    "analysis": render_analysis(
        {
            "model": HOSTILE,
            "findings": [HOSTILE],
            "jacobian": {"clean": [[1.0, 2.0]], "triggered": [[1.5, 2.5]]},
            "expansion": [{"noise": 0.1, "of_layer": [1.0, 2.0], "bound": [3.0, 4.0]}],
        },
        "Layers",
    ),
    "grid": render_grid(MADE, {HOSTILE: HOSTILE}, HOSTILE),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_readable_at_phone_width_and_runs_no_text_of_a_model(
    name: str, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[name])
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 2, "mobile": True},
    )
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    assert "window.hacked = 1" in browser.find_element("tag name", "body").text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    small = browser.execute_script(
        "return [...document.querySelectorAll('p, td, th, li')].filter(e => e.offsetParent && e.textContent.trim()"
        " && parseFloat(getComputedStyle(e).fontSize) < 11).length"
    )
    assert small == 0


def test_tables_are_sorted_by_a_click(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["grid"])
    browser.get(path.as_uri())
    button = browser.find_elements("css selector", "table.sortable")[1].find_elements("css selector", "th button")[3]

    def column() -> list[float]:
        return browser.execute_script(
            "return [...document.querySelectorAll('table.sortable')[1].tBodies[0].rows]"
            ".map(row => Number(row.cells[3].dataset.value))"
        )

    unsorted = column()
    browser.execute_script("arguments[0].click()", button)
    assert column() == sorted(unsorted) != unsorted
    browser.execute_script("arguments[0].click()", button)
    assert column() == sorted(unsorted, reverse=True)
