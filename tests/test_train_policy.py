"""Weights of sources are for sources that there are; labels stand on one scale."""

from pathlib import Path

import pytest
from support.manifests import finish

from cluster.settings.load import load
from data.conversation import to_table
from data.lab import Lab, LabSettings
from data.stage_metrics import RowsMetrics
from jobs.pipelines.map_rows import write_table
from jobs.policy_training.policy_stage import work
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError
from jobs.train_predictor import work as train_predictor

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def test_a_weight_for_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    run = Run(
        load(
            Preset,
            DEMO,
            [f"storage={tmp_path}", "policy.source_weights={lab_desk: 0.5, bootstrap-1: 2, lab_forums: 3}"],
        )
    )
    finish(run.root, "rows", RowsMetrics(counts={"lab": {}}, rows=5, sources=("lab_desk", "lab_forum")))
    with pytest.raises(
        StageError,
        match=r"policy.source_weights has 'lab_forums', but no row has this source "
        r"\(did you mean lab_forum\?\); the sources are bootstrap-1, lab_desk, lab_forum",
    ):
        work(run, run.folder("policy"))


def test_a_weight_of_the_predictor_for_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}", "predictor.source_weights={lab_forums: 3}"]))
    # As version 0.2 left it, which told the names in the preset only.
    write_table(to_table(list(Lab(LabSettings(num_rows=5)).rows()), run.schema), run.folder("rows") / "rows")
    finish(run.root, "rows", RowsMetrics(counts={"lab": {}}, rows=5))
    with pytest.raises(StageError, match=r"predictor.source_weights has 'lab_forums', .* \(did you mean lab_forum\?\)"):
        train_predictor(run, run.folder("predictor"))


@pytest.mark.parametrize("labels", ["human", "human_else_predicted"])
def test_labels_by_rank_do_not_stand_beside_those_of_people(labels: str) -> None:
    with pytest.raises(ValueError, match=f"spread_labels spreads predicted values, and policy.labels is {labels}"):
        load(Preset, DEMO, ["policy.spread_labels=true", f"policy.labels={labels}"])
