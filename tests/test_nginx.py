"""The endpoint behind a real nginx with TLS and a path, as docs/endpoint.md shows it, and pages of other sites.

All of it in a real Chromium.
"""

import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import ray.serve
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from support.chromium import chromium
from support.endpoint import QUESTION, Endpoint, running
from support.nginx import nginx
from test_playground import answers, open_with, until

from serve.auth import Team, hashed
from serve.deploy import APPLICATION, deployment_name
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

KEY, PATH = "open-sesame", "/steer"
ASKS = """\
<!doctype html><title>another site</title>
<script>
  const body = JSON.stringify({ messages: [{ role: "user", content: "Why?" }], max_tokens: 4 });
  const headers = { "Content-Type": "application/json", Authorization: "Bearer open-sesame" };
  fetch(new URLSearchParams(location.search).get("url"), { method: "POST", body, headers })
    .then((reply) => reply.json())
    .then((reply) => { document.title = reply.object ?? "refused"; }, () => { document.title = "refused"; });
</script>
"""


@contextmanager
def another_site() -> Iterator[str]:
    """The origin of a page that asks the endpoint of its `url`."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(ASKS.encode())

        def log_message(self, *_: object) -> None:
            """Not into the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def served(policy: str, folder: Path, **settings: object) -> Iterator[tuple[Endpoint, str]]:
    """(the endpoint, its address behind nginx)"""
    keys = folder / "keys.txt"
    keys.write_text(f"school {hashed(KEY)}")
    own = {"teams": (Team(name="school"),), "keys": str(keys), "root_path": PATH}
    with (
        running([Located(policy, "tiny")], **own, **settings) as endpoint,
        nginx(endpoint.url, folder) as url,
    ):
        yield endpoint, f"{url}{PATH}"


def answer_to_another_site(browser: WebDriver, site: str, url: str) -> str:
    """What its page got: "chat.completion", or "refused"."""
    browser.get(f"{site}/?url={url}/v1/chat/completions")
    until(browser, lambda: browser.title != "another site", "the page has an answer")
    return str(browser.title)


@pytest.mark.case("the page and /docs under a path of nginx, with TLS")
def test_pages_and_streams_come_through_nginx_and_other_sites_do_not(
    ray_cluster: object, tiny_policy: str, tmp_path: Path
) -> None:
    with served(tiny_policy, tmp_path) as (_, url), chromium(any_certificate=True) as browser, another_site() as site:
        browser.get(f"{url}/")
        until(browser, lambda: browser.find_element(By.ID, "key").is_displayed(), "the page asks for a key")
        open_with(browser, KEY)
        until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".side")) == 2, "two settings")
        assert f"{url}/v1/chat/completions" in browser.execute_script("return sides[0].curl()")
        browser.find_element(By.ID, "question").send_keys(Keys.CONTROL, Keys.ENTER)
        until(browser, lambda: all(answers(browser)), "both sides answer")
        browser.get(f"{url}/docs")
        until(browser, lambda: "/v1/chat/completions" in browser.page_source, "the routes are shown")
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert [message for message in severe if "401" not in message] == []
        assert comes_while_it_is_written(url)
        assert answer_to_another_site(browser, site, url) == "refused"


@pytest.mark.case("a page of another site")
def test_a_page_of_another_site_works_where_the_settings_name_it(
    ray_cluster: object, tiny_policy: str, tmp_path: Path
) -> None:
    with (
        another_site() as site,
        another_site() as third,
        served(tiny_policy, tmp_path, cors_origins=(site,)) as (endpoint, url),
        chromium(any_certificate=True) as browser,
    ):
        for address in (url, endpoint.url):
            assert answer_to_another_site(browser, site, address) == "chat.completion"
            assert answer_to_another_site(browser, third, address) == "refused"


def comes_while_it_is_written(url: str) -> bool:
    """Is a stream's first text here while the engine still writes? A proxy that buffers would send it at the end.

    One of three tries is enough: the question to the replica may come too late by chance, never too early.
    """
    handle = ray.serve.get_deployment_handle(deployment_name("tiny"), APPLICATION)
    body = json.dumps({"messages": QUESTION, "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    found = False
    for _ in range(3):
        connection = http.client.HTTPSConnection(urlsplit(url).netloc, timeout=60, context=trusting)
        try:
            connection.request("POST", f"{PATH}/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while line := answer.readline():
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    found = found or handle.num_running.remote().result(timeout_s=30) > 0
                    break
            assert b"[DONE]" in answer.read()
        finally:
            connection.close()
    return found
