"""Dashboards and alerts: well formed, and every metric they ask for is one that the project or Ray exports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def asked_for() -> set[str]:
    """Names of all series, as Prometheus has them."""
    return {
        name
        for path in [*DASHBOARDS, FOLDER / "alerts.yaml"]
        for e in expressions(path)
        for name in re.findall(r"\bray_[a-z_]+", e)
    }


def exported(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What telemetry, meter and pipelines make, as Ray names it for Prometheus."""
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


def test_every_metric_asked_for_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    known = exported(monkeypatch)
    assert asked_for() - OF_RAY <= known
    assert {name for name in known if not name.endswith(("_sum", "_count"))} - asked_for() <= {
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


def test_every_alert_has_a_remedy() -> None:
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "remedy"}
