"""The card beside a model says what it is and what it was made from."""

from pathlib import Path

import pytest
import yaml

from cluster.settings.load import load
from data.storage import Storage
from jobs.reporting.model_card import write_card
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
TRAINING = {
    "examples": 10,
    "epochs": 2,
    "steps": 5,
    "tokens": 99,
    "saved_step": 4,
    "validation_loss": 0.25,
    "losses": [{"step": 5, "loss": 0.5}],
}
STEERING = {
    "measured_by": "exactly",
    "steering": {"humor": {"requested": [0, 4], "measured": [0.1, 3.9], "spearman": 0.97}},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}"]))
    (run.folder("rows") / "manifest.json").write_json({"metrics": {"counts": {"lab": {"rows": 6000}}}})
    return run


@pytest.mark.parametrize("kind", ["policy", "predictor"])
def test_a_card_has_attributes_data_settings_and_losses(kind: str, run: Run) -> None:
    model = run.root / kind / "model"
    write_card(run, kind, run.preset.policy.learner, TRAINING, model)
    card = (model / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["steerlm"]
    assert front["pipeline_tag"] == ("text-generation" if kind == "policy" else "text-classification")
    for part in (
        "| humor | 0 to 4 |",
        "| lab | lab | 6000 |",
        "| learning_rate | 0.002 |",
        "| validation_loss | 0.25 |",
        "| last training loss | 0.5 |",
    ):
        assert part in card
    assert "## Steering" not in card
    assert ("requested = {'helpfulness': 4" in card) == (kind == "policy")


def test_a_card_has_the_steering_table_once_it_is_known(run: Run) -> None:
    model = run.root / "policy" / "model"
    write_card(run, "policy", run.preset.policy.learner, TRAINING, model, STEERING)
    assert "| humor | 0 → 0.10, 4 → 3.90 | 0.97 |" in (model / "README.md").read_text()
    assert Storage(model.uri).names() == ["README.md"]
