"""A round of SteerLM 2.0 by the command people type: weights with lineage, a training on them, JSONL out and in.

Minutes long: `make test-train`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import tiny_run
from support.exported_run import export_to

from data.response_groups import groups_from
from data.storage import Storage

pytestmark = pytest.mark.slow

WORDS = [
    "bootstrap.method=steerlm2",
    "bootstrap.samples_per_prompt=4",
    "bootstrap.selection.unfinished=true",
    "bootstrap.learner.pack_tokens=2048",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    storage = tmp_path_factory.mktemp("runs")
    result, out = tiny_run.run(storage, *WORDS)
    return storage, result, out


def test_every_answer_is_weighed_and_the_weights_are_trained_on(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, result, out = finished
    assert "bootstrap-1/promotion" in result["stages"]
    run, selected = Storage(str(storage / "demo")), result["stages"]["bootstrap-1/selected"]
    lineage = pa.concat_tables((run / "bootstrap-1/selected/lineage").tables()).to_pylist()
    assert len(lineage) == selected["counts"]["samples"] == 80
    groups = [g for table in (run / "bootstrap-1/selected/groups").tables() for g in groups_from(table)]
    assert len(groups) == selected["groups"]["prompts"] == selected["counts"]["kept"] / 4 > 10
    weights = np.array([row["weight"] for row in lineage if row["kept"]]).reshape(-1, 4)
    assert weights.sum(1) == pytest.approx(np.ones(len(groups)))
    assert np.log(weights) == pytest.approx(np.array([g.log_target for g in groups]))
    assert all(row["weight"] is None and row["reason"] for row in lineage if not row["kept"])
    trained = result["stages"]["bootstrap-1/policy"]
    assert trained["counts"]["examples"] == len(groups)
    # Training begins where Q is Q': the first KL is that of equal shares.
    assert trained["kl"]["first"] == pytest.approx(selected["groups"]["kl"], abs=0.5 * selected["groups"]["kl"])
    assert "the loss is KL(w'||b')" in out
    assert "KL(w'||b') of target weights" in (storage / "demo/report/report.md").read_text().replace("\\", "")


def test_its_jsonl_is_trained_on_beside_the_next_samples(finished: tuple[Path, dict[str, Any], str]) -> None:
    storage, before, _ = finished
    metrics = export_to(storage, storage / "exported", "what=selected", "format=steerlm2")
    file = f"bootstrap.steerlm2.responses={storage}/exported"
    again, out = tiny_run.run(storage, *WORDS, file)
    rerun = [name for name, stage in again["stages"].items() if not stage["skipped"]]
    assert rerun == ["bootstrap-1/policy", "bootstrap-1/promotion", "report"]
    counts = [found["stages"]["bootstrap-1/policy"]["counts"]["examples"] for found in (before, again)]
    assert counts == [metrics["prompts"], 2 * metrics["prompts"]]
    assert "changed: inputs.responses" in out
