"""The endpoint's metrics as Prometheus finds and reads them."""

import json
from pathlib import Path

import yaml

from serve.scrape import TARGETS_FILE, announce, merged

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
