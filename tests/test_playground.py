"""The playground in a real Chromium, at desktop and at phone width: a slider is moved, both sides stream, bars appear.

Screenshots go to the folder STEERLM_SCREENSHOTS, if it is set. If STEERLM_DEMO_RUN is set, a finished run, its model
answers instead of one that has learned nothing (`make pictures`).
"""

import os
import subprocess
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from support.chromium import DESKTOP, PHONE, chromium, resize, screenshot
from support.endpoint import Endpoint, running

from serve.auth import Team, hashed
from serve.locate import Located, locate

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

WAIT_S = 60
PATH = "/steer"
"""As behind a proxy; the pages are at / all the same."""


@pytest.fixture(scope="module")
def endpoint(
    ray_cluster: object, tiny_policy: str, tiny_predictor: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"school {hashed('open-sesame')}")
    teams = (Team(name="school"),)
    run = os.environ.get("STEERLM_DEMO_RUN")
    located = locate(run, "") if run else Located(tiny_policy, "tiny", predictor=tiny_predictor)
    with running([located], located.predictor, max_num_seqs=4, teams=teams, keys=str(file), root_path=PATH) as endpoint:
        yield endpoint


@pytest.fixture
def browser() -> Iterator[WebDriver]:
    with chromium() as browser:
        yield browser


def open_page(browser: WebDriver, endpoint: Endpoint, size: tuple[int, int]) -> None:
    resize(browser, size)
    browser.get(endpoint.url)
    until(browser, lambda: browser.find_element(By.ID, "key").is_displayed(), "the page asks for a key")


def until(browser: WebDriver, found: object, what: str) -> None:
    WebDriverWait(browser, WAIT_S).until(lambda _: found(), what)  # type: ignore[operator]


def open_with(browser: WebDriver, key: str) -> None:
    field = browser.find_element(By.ID, "key")
    field.clear()
    field.send_keys(key, Keys.ENTER)


def answers(browser: WebDriver) -> list[str]:
    return [
        side.find_element(By.CSS_SELECTOR, ".text").text for side in browser.find_elements(By.CSS_SELECTOR, ".side")
    ]


@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_a_slider_is_moved_both_sides_answer_and_the_bars_appear(
    endpoint: Endpoint, browser: WebDriver, name: str, size: tuple[int, int]
) -> None:
    open_page(browser, endpoint, size)
    open_with(browser, "wrong")
    until(
        browser, lambda: "unknown or revoked" in browser.find_element(By.ID, "broken").text, "a wrong key is an error"
    )
    open_with(browser, "open-sesame")
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
    slider = browser.find_element(By.ID, "A-verbosity")
    slider.send_keys(Keys.END)  # by keyboard, as everyone can
    assert slider.get_attribute("value") == "4"
    assert browser.find_element(By.CSS_SELECTOR, "output[for=A-verbosity]").text == "4"
    field = browser.find_element(By.ID, "max_tokens")
    field.clear()
    field.send_keys("60")
    browser.find_element(By.ID, "question").send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, lambda: all(answers(browser)), "both sides answer")
    until(
        browser,
        lambda: all(bars.is_displayed() for bars in browser.find_elements(By.CSS_SELECTOR, ".bars")),
        "both are measured",
    )
    cells = browser.find_elements(By.CSS_SELECTOR, ".side.a .bars td:last-child")
    assert [cell.get_attribute("aria-label").startswith("requested ") for cell in cells] == [True] * 5
    assert "requested 4, measured" in cells[-1].get_attribute("aria-label")
    assert browser.find_element(By.CSS_SELECTOR, ".side.a .metrics").text.endswith("s")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), (
        "nothing sticks out"
    )
    screenshot(browser, f"playground-{name}")
    if size == DESKTOP:
        screenshot(browser, "playground-settings", "#sides")  # README's first screen
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "401" not in entry["message"]
    ] == []


def test_every_control_has_a_name_and_the_code_to_copy_runs(endpoint: Endpoint, browser: WebDriver) -> None:
    open_page(browser, endpoint, DESKTOP)
    open_with(browser, "open-sesame")
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
    for control in browser.find_elements(By.CSS_SELECTOR, "input, select, textarea, button"):
        assert control.accessible_name or not control.is_displayed(), control.get_attribute("outerHTML")
    browser.find_element(By.ID, "question").clear()
    browser.find_element(By.ID, "question").send_keys('Is it "true", O\'Neill?')
    field = browser.find_element(By.ID, "max_tokens")
    field.clear()
    field.send_keys("5")
    assert "guidance" not in browser.execute_script("return sides[0].curl()"), "1 is a request without"
    browser.find_element(By.ID, "A-guidance").send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element(By.CSS_SELECTOR, "output[for=A-guidance]").text == "1.25"
    python, curl = (browser.execute_script(f"return sides[0].{name}()") for name in ("python", "curl"))
    assert "'guidance': 1.25" in python or '"guidance":1.25' in python
    assert '"guidance":1.25' in curl
    scope: dict[str, object] = {}
    os.environ["STEERLM_KEY"] = "open-sesame"
    try:
        exec(compile(python, "copied", "exec"), scope)
        printed = subprocess.run(["bash", "-c", curl], check=True, capture_output=True, text=True).stdout
    finally:
        del os.environ["STEERLM_KEY"]
    assert scope["answer"].choices[0].message.content is not None  # type: ignore[attr-defined]
    assert '"chat.completion"' in printed


@pytest.mark.case("a page under a path of a proxy")
def test_the_page_and_its_documentation_work_under_a_path(endpoint: Endpoint, browser: WebDriver) -> None:
    browser.get(f"{endpoint.url}{PATH}/")
    until(browser, lambda: browser.find_element(By.ID, "key").is_displayed(), "the page asks for a key")
    open_with(browser, "open-sesame")
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
    assert f"{endpoint.url}{PATH}/v1/chat/completions" in browser.execute_script("return sides[0].curl()")
    browser.find_element(By.ID, "question").send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, lambda: all(answers(browser)), "both sides answer")
    browser.get(f"{endpoint.url}{PATH}/docs")
    until(browser, lambda: "/v1/chat/completions" in browser.page_source, "the routes are shown")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "401" not in entry["message"]] == []
