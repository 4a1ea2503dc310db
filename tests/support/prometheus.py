"""Debian's Prometheus with the file that we ship."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from conftest import free_port, wait_for
from support.docs import ROOT

FOLDER = ROOT / "cluster" / "monitoring"
MISSING = "no `prometheus` here (Debian: apt-get install prometheus)"


@contextmanager
def prometheus(folder: Path, ray_folder: Path) -> Iterator[str]:
    """Ours, as shipped but for a scrape every second, and for the folder of this Ray; its URL."""
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text().replace("/tmp/ray/", f"{ray_folder}/"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yaml")]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    words = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.loads(answer.read())["data"]
