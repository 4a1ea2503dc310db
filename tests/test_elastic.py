"""A training with min_workers goes on while nodes are missing, and ends as one that lost none. Minutes long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.training.settings import LearnerSettings
from cluster.connect import NOT_IN_TIME
from cluster.preflight import ClusterNode, WouldHang, judged
from cluster.settings.load import load
from jobs.runner.needs import needs
from jobs.runner.plan import plan_lines, refuse_what_cannot_fit
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "jobs" / "presets" / "demo.yaml")


def test_the_bounds_are_checked_and_the_fewest_workers_have_the_largest_shares() -> None:
    with pytest.raises((ValueError, ValidationError), match="min_workers 3 is above num_workers 2"):
        LearnerSettings(num_workers=2, min_workers=3)
    assert LearnerSettings(num_workers=4, min_workers=2, packs_per_step=4).fewest.num_workers == 2
    assert LearnerSettings(num_workers=4, packs_per_step=4).fewest.num_workers == 4
    assert {"min_workers", "collective_timeout_s"} <= LearnerSettings.PLACEMENT


def test_a_plan_counts_with_the_fewest(tmp_path: Path) -> None:
    words = [f"storage={tmp_path}", "policy.learner.num_workers=8", "policy.learner.packs_per_step=8"]
    words += ["policy.learner.zero_stage=3", "policy.learner.memory_gib=3", "policy.learner.pack_tokens=512"]
    words += ["base.small.hidden_size=768", "base.small.num_layers=12", "base.small.intermediate_size=2048"]
    words += ["base.small.num_heads=12"]
    refuse_what_cannot_fit(load(Preset, DEMO, [*words, "policy.learner.min_workers=8"]))
    few = load(Preset, DEMO, [*words, "policy.learner.min_workers=1"])
    with pytest.raises(StageError, match=r"policy\.learner needs"):
        refuse_what_cannot_fit(few)
    assert "1 to 8 Ray Train workers" in "".join(plan_lines(Run(few), ["policy"]))


def test_the_fewest_are_enough_to_start(tmp_path: Path) -> None:
    words = [f"storage={tmp_path}", "policy.learner.num_workers=4", "policy.learner.packs_per_step=4"]
    nodes = [ClusterNode({"CPU": 2.0})]
    [fixed] = needs(Run(load(Preset, DEMO, words)), ["policy"]).demands
    with pytest.raises(WouldHang, match="only 2 of 4 fit"):
        judged(fixed, nodes, growing=False)
    [elastic] = needs(Run(load(Preset, DEMO, [*words, "policy.learner.min_workers=2"])), ["policy"]).demands
    assert judged(elastic, nodes, growing=False) == "policy.learner: 2 to 4 workers x 1 CPU, of 2 CPUs"


START_TRIES = 6
"""Ray gives each of its nodes half a minute to start, which a busy machine may not keep."""


def trained(folder: Path, base: str, how: str) -> tuple[dict[str, Any], str]:
    """The metrics, and all that was printed."""
    folder.mkdir()
    command = [sys.executable, str(ROOT / "tests" / "support" / "shrinking_cluster.py"), str(folder), base, how]
    for _ in range(START_TRIES):
        done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=900)
        if NOT_IN_TIME not in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def environ() -> dict[str, str]:
    """Without what a Ray of this process has set for itself: on one machine nobody announces a node's end."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")}
    return own | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_lost_or_taken_away_the_training_goes_on_with_fewer_and_ends_the_same(
    tiny_base: str, tmp_path: Path
) -> None:
    """Taken away: nothing but the notice writes a checkpoint, so that the rest is not trained again from step 0."""
    whole, _ = trained(tmp_path / "none", tiny_base, "none")
    assert whole["num_workers"] == 2
    for how in ("killed", "drained"):
        shrunk, said = trained(tmp_path / how, tiny_base, how)
        assert "node removed" in said
        assert "goes on after step" in said, said[-3000:]
        assert shrunk["num_workers"] == 1, how
        assert (shrunk["examples"], shrunk["steps"]) == (whole["examples"], whole["steps"])
        one, other = ([point["loss"] for point in metrics["losses"]] for metrics in (whole, shrunk))
        assert one == pytest.approx(other, abs=1e-3), how
