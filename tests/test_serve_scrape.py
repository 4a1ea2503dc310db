"""The endpoint's metrics as Prometheus finds and reads them."""

import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from serve.protocol import ProtocolError
from serve.scrape import TARGETS_FILE, announce, exported, merged

HEAD = """\
# HELP ray_node_cpu A node's.
# TYPE ray_node_cpu gauge
ray_node_cpu{node="a"} 1.0
# HELP ray_steerlm_requests_total Requests.
# TYPE ray_steerlm_requests_total counter
ray_steerlm_requests_total{model="demo"} 3.0

# HELP ray_steerlm_request_seconds Seconds.
# TYPE ray_steerlm_request_seconds histogram
ray_steerlm_request_seconds_bucket{le="1"} 3.0
ray_steerlm_request_seconds_sum 2.0
"""
WORKER = """\
# HELP ray_steerlm_requests_total Requests.
# TYPE ray_steerlm_requests_total counter
ray_steerlm_requests_total{model="other"} 1.0
# EOF
"""


def test_several_nodes_are_one_exposition_of_our_metrics() -> None:
    assert merged([HEAD, "", WORKER]).splitlines() == [
        "# HELP ray_steerlm_requests_total Requests.",
        "# TYPE ray_steerlm_requests_total counter",
        'ray_steerlm_requests_total{model="demo"} 3.0',
        'ray_steerlm_requests_total{model="other"} 1.0',
        "# HELP ray_steerlm_request_seconds Seconds.",
        "# TYPE ray_steerlm_request_seconds histogram",
        'ray_steerlm_request_seconds_bucket{le="1"} 3.0',
        "ray_steerlm_request_seconds_sum 2.0",
    ]
    assert merged([]) == merged(["<html>"]) == ""


def test_an_agent_that_does_not_answer_is_logged_and_none_at_all_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(HEAD.encode())

        def log_message(self, *_: object) -> None:
            """Not into the tests' output."""

    with HTTPServer(("127.0.0.1", 0), Agent) as agent, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens there
        threading.Thread(target=agent.serve_forever, daemon=True).start()
        there, nowhere = f"127.0.0.1:{agent.server_port}", f"127.0.0.1:{silent.getsockname()[1]}"
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        try:
            assert exported([there, nowhere], 5) == merged([HEAD])
            assert f"no metrics from {nowhere} within 5 s" in caplog.text
            with pytest.raises(ProtocolError, match="none of Ray's 1 metrics agents answers") as caught:
                exported([nowhere], 5)
        finally:
            logging.getLogger("ray.serve").removeHandler(caplog.handler)
            agent.shutdown()
    assert caught.value.status == 503


def test_the_list_of_targets_is_one_that_the_shipped_configuration_reads(tmp_path: Path) -> None:
    file = tmp_path / TARGETS_FILE.format(port=8000)
    for addresses in (["127.0.0.1:1"], ["127.0.0.1:2", "[::1]:3"]):
        announce(file, addresses)
        assert json.loads(file.read_text()) == [{"labels": {"job": "ray"}, "targets": addresses}]
    assert list(tmp_path.iterdir()) == [file]
    shipped = Path(__file__).parent.parent / "cluster" / "monitoring" / "prometheus.yaml"
    [job] = yaml.safe_load(shipped.read_text())["scrape_configs"]
    patterns = [Path(name) for found in job["file_sd_configs"] for name in found["files"]]
    assert any(Path("/tmp/ray", file.name).match(str(pattern)) for pattern in patterns)
