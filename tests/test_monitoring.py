"""Dashboards and alerts: well formed, and every metric they query is one that the project or Ray exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.prometheus import MISSING

from actors.training.metrics import METRICS as TRAIN
from cluster.pipeline_metrics import METRICS as PIPELINE
from serve.telemetry import EndpointMetrics, EngineMetrics

FOLDER = Path(__file__).resolve().parent.parent / "cluster" / "monitoring"
DASHBOARDS = sorted(FOLDER.glob("grafana-*.json"))
OF_RAY = {"ray_node_mem_used", "ray_node_mem_total", "ray_node_cpu_utilization", "ray_object_store_memory"}
UNITS = {"reqps", "s", "none", "percentunit", "percent", "bytes"}


def expressions(path: Path) -> Iterator[str]:
    if path.suffix == ".json":
        yield from (
            target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel.get("targets", ())
        )
    else:
        yield from (rule["expr"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"])


def queried() -> set[str]:
    """Names of all series, as Prometheus has them."""
    return {
        name
        for path in [*DASHBOARDS, FOLDER / "alerts.yaml"]
        for e in expressions(path)
        for name in re.findall(r"\bray_[a-z_]+", e)
    }


def exported(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The metrics of telemetry, training and pipelines, as Ray names them for Prometheus."""
    made: list[tuple[str, str]] = []

    def maker(kind: str) -> Any:
        return lambda name, *_, **__: made.append((kind, name))

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"serve.telemetry.{kind}", maker(kind))
    EndpointMetrics()
    EngineMetrics("m")
    made += [("Gauge", f"steerlm_train_{name}") for name in TRAIN] + [
        ("Gauge", f"steerlm_pipeline_{name}") for name in PIPELINE
    ]
    series = {"Counter": ("",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
    return {f"ray_{name}{end}" for kind, name in made for end in series[kind]}


def test_every_queried_metric_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    known = exported(monkeypatch)
    assert queried() - OF_RAY <= known
    assert {name for name in known if not name.endswith(("_sum", "_count"))} - queried() <= {
        "ray_steerlm_prompt_tokens_total"
    }, "a metric nobody looks at"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {"uid", "title", "schemaVersion", "templating", "time"} <= board.keys()
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert all(target["legendFormat"] for target in panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_alert_names_its_remedy() -> None:
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "remedy"}


RULE_TEST = """
rule_files: [{rules}]
evaluation_interval: 5m
tests:
  - interval: 5m
    input_series:
      - series: 'ray_steerlm_steering_gap_points_sum{{model="demo", attribute="humor"}}'
        values: 0+{gap}x60
      - series: 'ray_steerlm_steering_gap_points_count{{model="demo", attribute="humor"}}'
        values: 0+10x60
    promql_expr_test:
      - expr: count(ALERTS{{alertname="SteerlmAttributesDrift", alertstate="firing", attribute="humor"}}) or vector(0)
        eval_time: 4h
        exp_samples: [{{value: {firing}}}]
"""


@pytest.mark.skipif(not shutil.which("promtool"), reason=MISSING)
@pytest.mark.parametrize(("gap", "firing"), [(16, 1), (14, 0)])
def test_answers_that_miss_what_was_requested_are_an_alert(tmp_path: Path, gap: int, firing: int) -> None:
    """Ten rated answers in five minutes, at a mean gap of 1.6 points, or of 1.4."""
    (tmp_path / "test.yaml").write_text(RULE_TEST.format(rules=FOLDER / "alerts.yaml", gap=gap, firing=firing))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
