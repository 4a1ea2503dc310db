"""A real Chromium without a window, and the sizes that our pages are looked at in."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

DESKTOP, PHONE = (1280, 1000), (390, 844)


@contextmanager
def chromium(any_certificate: bool = False) -> Iterator[WebDriver]:
    """It logs the console and the network requests. `any_certificate`: it trusts those that nobody signed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"):
        options.add_argument(argument)
    options.accept_insecure_certs = any_certificate
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser: WebDriver, size: tuple[int, int]) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )


def screenshot(browser: WebDriver, name: str, part: str = "") -> None:
    """The whole page, or the element of the CSS selector `part`, into the folder STEERLM_SCREENSHOTS, if it is set."""
    folder = os.environ.get("STEERLM_SCREENSHOTS")
    if folder:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        width = browser.execute_script("return window.innerWidth")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        file = str(Path(folder) / f"{name}.png")
        _ = browser.find_element(By.CSS_SELECTOR, part).screenshot(file) if part else browser.save_screenshot(file)
