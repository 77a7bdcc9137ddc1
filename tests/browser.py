"""Debian's chromium without a window, driven by Selenium, that asks nothing of anyone outside this machine."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

_SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
PATIENCE = 240
"""Seconds that a page may take on a machine that has other things to do."""


@contextmanager
def chromium(profile: Path, *, width: int = 1400, height: int = 900) -> Iterator[Any]:
    """A browser with the empty folder ``profile`` as its own; skips the test where Debian's packages are not there."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (apt-get install chromium chromium-driver)")
    options = Options()
    options.binary_location = program
    options.page_load_strategy = "eager"
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for switch in (*_SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_page_load_timeout(PATIENCE)
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Any, address: str, *, width: int, dark: bool = False) -> None:
    """Open a page as a screen of ``width`` CSS pixels shows it, a phone's below 600, in the light or dark scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(address)


def text_of(browser: Any) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def until(holds: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """The first true value of ``holds``, asked again while the page is being built."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := holds():
                return result
        except WebDriverException:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, f"{what} did not appear within {seconds} seconds"
        time.sleep(0.5)
