from pathlib import Path

import pytest
from support.manifests import finish, measures, promotion

from cluster.settings.load import load
from data.stage_metrics import Decision
from jobs.evaluation.promotion import falls
from jobs.policy_training.bootstrap_stages import BootstrapStages
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Run

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def test_a_round_is_promoted_unless_something_fell_too_far() -> None:
    settings = load(Preset, DEMO).bootstrap
    assert falls(measures(), measures(0.87, 0.4, 0.26), settings) == []
    worse = falls(measures(), measures(0.8, 0.6, 0.2), settings)
    assert worse == [
        "mean Spearman 0.900 -> 0.800 (bootstrap.max_steering_fall 0.05)",
        "distance of helpfulness from its best 0.200 -> 0.600 (bootstrap.max_quality_fall 0.3)",
        "distinct-2 0.300 -> 0.200 (bootstrap.max_diversity_fall 0.2)",
    ]
    lenient = load(
        Preset, DEMO, [f"bootstrap.max_{name}_fall=null" for name in ("steering", "quality", "diversity")]
    ).bootstrap
    assert falls(measures(), measures(0.0, 4.0, 0.0), lenient) == []


def test_after_a_round_that_was_not_promoted_nothing_is_run_and_the_policy_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}", "bootstrap.rounds=3"]))
    finish(run.root, "bootstrap-1/promotion", promotion("policy", "distinct-2 0.3 -> 0.1"))
    for number in (2, 3):
        for stage in BootstrapStages().stages(number):
            found = stage.work(run, run.folder(stage.name))
            assert isinstance(found, Decision)
            assert (found.policy, found.promoted) == ("policy", False)
        finish(run.root, f"bootstrap-{number}/promotion", found)
    assert "bootstrap 3: not run, for round 2 was not promoted" in capsys.readouterr().out
    assert Rounds().promoted(run, 3) == "policy"
    assert not run.folder("bootstrap-2/samples").exists()
