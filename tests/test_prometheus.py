"""Debian's Prometheus with the shipped file finds an endpoint, in whichever way it was started."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.docs import ROOT
from support.endpoint import Endpoint, started
from support.job_cluster import JobCluster
from support.prometheus import MISSING, ask, prometheus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason=MISSING),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FOUND_S = 90
WAYS = {
    "python -m serve": (sys.executable, "-m", "serve", "policy={policy}", "port={port}", "num_cpus=0.2"),
    "make serve": ("make", "serve", "ARGS=policy={policy} port={port} num_cpus=0.2"),
}


def require_found(url: str, endpoint: Endpoint) -> None:
    """Prometheus at `url` has a metric of the endpoint, and so has the endpoint itself."""
    assert endpoint.chat()[0] == 200
    deadline = time.monotonic() + FOUND_S
    while not ask(url, "query", query="sum(ray_steerlm_requests_total)")["result"]:
        assert time.monotonic() < deadline, ask(url, "targets")
        time.sleep(1)
    assert b"ray_steerlm_requests_total" in endpoint.get("/metrics")[1]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Sockets lie in it, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.case("Prometheus finds nothing behind python -m serve")
@pytest.mark.parametrize("way", WAYS)
def test_an_endpoint_that_has_a_ray_of_its_own_is_found(
    way: str, tiny_policy: str, tmp_path: Path, short_folder: Path
) -> None:
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = [word.replace("{policy}", tiny_policy) for word in WAYS[way]]
    with (
        started(words, tmp_path, own | {"RAY_TMPDIR": str(short_folder)}) as endpoint,
        prometheus(tmp_path, short_folder / "ray") as url,
    ):
        require_found(url, endpoint)
    assert list((short_folder / "ray").glob("steerlm_endpoint_*")) == [], "the list goes with the endpoint"


@pytest.mark.case("Prometheus beside a Serve application on a cluster")
def test_an_application_on_a_cluster_is_found(tiny_policy: str, tmp_path: Path) -> None:
    with JobCluster(tmp_path) as cluster, prometheus(tmp_path, cluster.ray_folder) as url:
        application = {
            "name": "steerlm",
            "route_prefix": "/",
            "import_path": "serve.deploy:application",
            "args": {"policy": tiny_policy, "predictor": None, "num_cpus": 0.2, "access_log": False},
        }
        config = tmp_path / "serve.yaml"
        config.write_text(
            yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": "PORT"}, "applications": [application]})
        )
        # Serve's own command takes no port, so the shell writes it.
        command = f"sed -i 's/: PORT/: {{port}}/' {config} && exec {Path(sys.executable).parent}/serve run {config}"
        environ = cluster.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        with started(["bash", "-c", command], tmp_path, environ) as endpoint:
            require_found(url, endpoint)
