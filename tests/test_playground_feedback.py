"""An answer is rated on the playground in a real Chromium, and what was kept of it is deleted there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from support.chromium import DESKTOP, PHONE, chromium, resize
from support.endpoint import Endpoint, running
from support.feedback import files, human

from serve.feedback_store import FeedbackSettings
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

WAIT_S = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, tiny_policy: str, store: Path) -> Iterator[Endpoint]:
    settings = FeedbackSettings(store=str(store), answers_minutes=90, retention_days=7)
    with running([Located(tiny_policy, "tiny")], max_num_seqs=4, feedback=settings) as endpoint:
        yield endpoint


@pytest.fixture
def browser() -> Iterator[WebDriver]:
    with chromium() as browser:
        yield browser


def until(browser: WebDriver, found: object, what: str) -> None:
    WebDriverWait(browser, WAIT_S).until(lambda _: found(), what)  # type: ignore[operator]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_an_answer_is_rated_and_deleted_on_the_page(
    endpoint: Endpoint, browser: WebDriver, store: Path, size: tuple[int, int]
) -> None:
    resize(browser, size)
    browser.get(endpoint.url)
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
    assert "are kept for 90 minutes" in browser.find_element(By.ID, "hint").text
    form = browser.find_element(By.CSS_SELECTOR, ".side.a .rate")
    assert not form.is_displayed(), "there is nothing to rate yet"
    browser.find_element(By.ID, "question").send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, form.is_displayed, "the form comes with the answer")
    form.find_element(By.TAG_NAME, "summary").click()
    for control in browser.find_elements(By.CSS_SELECTOR, "input, select, textarea, button"):
        assert control.accessible_name or not control.is_displayed(), control.get_attribute("outerHTML")
    mark = browser.find_element(By.ID, "A-mark-humor")
    mark.send_keys("7", Keys.ENTER)
    problem = form.find_element(By.CSS_SELECTOR, ".problem")
    until(browser, lambda: "from 0 to 4" in problem.text, "the endpoint says what is allowed")
    mark.clear()
    mark.send_keys("2.5", Keys.ENTER)
    until(browser, lambda: "Kept for 7 days" in form.find_element(By.CSS_SELECTOR, ".sent").text, "it is kept")
    assert problem.text == ""
    assert human(store) == [[{"humor": 2.5}]]
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), (
        "nothing sticks out"
    )
    form.find_element(By.CSS_SELECTOR, ".forget").click()
    until(browser, lambda: not form.is_displayed(), "it is deleted")
    assert not [name for name in files(store) if name.endswith(".jsonl")]
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "/v1/feedback" not in entry["message"]] == []
