"""End to end: all stages by the command people type, on a small synthetic world, then with one change.

Minutes long: `make test-run`.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import tiny_run

from data.prompts import prompts_from
from data.storage import Storage
from serve.locate import locate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    storage = tmp_path_factory.mktemp("runs")
    result, out = tiny_run.run(storage)
    return storage, result, out


def test_every_stage_runs_for_real(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, result, out = finished
    rounds = [f"bootstrap-1/{kind}" for kind in ("samples", "rated", "selected", "policy", "promotion")]
    assert list(result["stages"]) == ["rows", "base", "predictor", "annotated", "policy", *rounds, "report"]
    assert not any(stage["skipped"] for stage in result["stages"].values())
    assert all({"seconds", "counts"} <= set(stage) for stage in result["stages"].values())
    assert out.count("DeepSpeedEngine: ZeRO stage 2, 2 workers") == 4  # base, predictor, policy, bootstrap
    assert "annotate: Ray Data: Operator" in out
    assert "MapBatches" in (storage / "demo" / "annotated" / "rows.ray_data.txt").read_text()
    assert "ETA" in out
    assert set(result["steering"]) == {"helpfulness", "creativity", "humor", "toxicity", "verbosity"}
    assert result["measured_by"] == "exactly, from the text"
    for path in (
        "report/report.json",
        "report/steering.png",
        "report/rounds.png",
        "bootstrap-1/policy/model/model.safetensors",
    ):
        assert (storage / "demo" / path).stat().st_size > 500
    run = Storage(str(storage / "demo"))
    assert tiny_run.ids_of(run / "rows" / "rows") == tiny_run.ids_of(run / "annotated" / "rows")


def test_the_bootstrap_accounts_for_every_sample(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, result, _ = finished
    run = Storage(str(storage / "demo"))
    assert result["stages"]["bootstrap-1/samples"]["counts"]["prompts"] == 40
    selected = result["stages"]["bootstrap-1/selected"]
    assert set(selected["drift"]) >= {"words", "distinct_2", "requested", "predicted", "true"}
    lineage = pa.concat_tables((run / "bootstrap-1/selected/lineage").tables()).to_pylist()
    assert len(lineage) == selected["counts"]["samples"] == 40
    assert {row["seed"] for row in lineage} == {
        p.seed for table in (run / "bootstrap-1/samples/prompts").tables() for p in prompts_from(table)
    }
    kept = [row["id"] for row in lineage if row["kept"]]
    assert sorted(kept) == tiny_run.ids_of(run / "bootstrap-1/selected/rows")
    assert all((row["reason"] == "") == row["kept"] and row["policy"].startswith("policy@") for row in lineage)
    assert result["stages"]["bootstrap-1/promotion"]["policy"] == "bootstrap-1/policy"


def test_the_endpoint_finds_what_the_report_is_about(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, result, _ = finished
    located = locate("newest", str(storage))
    assert located.uri == str(storage / "demo" / result["stages"]["bootstrap-1/promotion"]["policy"] / "model")
    assert located.predictor == str(storage / "demo" / "predictor" / "model")


def test_a_change_reruns_what_depends_on_it_and_nothing_else(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, _, _ = finished
    changed, out = tiny_run.run(storage, "evaluate.num_questions=3")
    assert [name for name, stage in changed["stages"].items() if not stage["skipped"]] == ["report"]
    assert out.count("finished earlier, nothing changed: skipped") == len(changed["stages"]) - 1
    assert "DeepSpeed" not in out
    assert "changed: settings.evaluate.num_questions 2 -> 3" in out


def test_manifests_name_their_inputs(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, _, _ = finished
    manifest = json.loads((storage / "demo" / "annotated" / "manifest.json").read_text())
    assert manifest["description"]["schema"]["name"] == "lab"
    assert set(manifest["description"]["needs"]) == {"rows", "predictor"}
    assert manifest["versions"]["ray"] == "2.60.0"
    assert manifest["metrics"]["counts"]["answers"] == manifest["metrics"]["counts"]["rated_answers"]
