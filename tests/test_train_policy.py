"""Weights of sources are for sources that there are."""

from pathlib import Path

import pytest

from cluster.settings.load import load
from data.conversation import to_table
from data.lab import Lab, LabSettings
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError
from jobs.train_policy import work

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def test_a_weight_for_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    run = Run(
        load(
            Preset,
            DEMO,
            [f"storage={tmp_path}", "policy.source_weights={lab_desk: 0.5, bootstrap-1: 2, lab_forums: 3}"],
        )
    )
    write_table(to_table(list(Lab(LabSettings(num_rows=5)).rows()), run.schema), run.folder("annotated") / "rows")
    with pytest.raises(
        StageError,
        match=r"policy.source_weights has 'lab_forums', but no row has this source "
        r"\(did you mean lab_forum\?\); the sources are bootstrap-1, lab_desk, lab_forum",
    ):
        work(run, run.folder("policy"))
