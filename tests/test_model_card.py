"""The card beside a model says what it is and what it was made from."""

from pathlib import Path

import pytest
import yaml
from support.manifests import finish, report, training

from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import HeadsSettings
from cluster.settings.load import load
from data.stage_metrics import HeadFit, RowsMetrics
from data.steering_metrics import SteeringCurve
from data.storage import Storage
from jobs.reporting.model_card import card, write_card
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
CURVE = SteeringCurve(
    requested=(0, 4),
    measured=(0.1, 3.9),
    n=60,
    spearman=0.97,
    slope=0.95,
    monotonic=True,
    reached=(0.1, 3.9),
    mean_absolute_gap=0.1,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}"]))
    finish(run.root, "rows", RowsMetrics(counts={"lab": {"rows": 6000}}, rows=6000))
    return run


@pytest.mark.parametrize("kind", ["policy", "predictor"])
def test_a_card_has_attributes_data_settings_and_losses(kind: str, run: Run) -> None:
    model = run.root / kind / "model"
    write_card(run, kind, run.preset.policy.learner, training(), model)
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
    assert ("\nrequested = {'helpfulness': 4" in card) == (kind == "policy")


def test_a_card_of_heads_on_several_layers_says_how_to_load_them(run: Run, tiny_base: str, tmp_path: Path) -> None:
    task = PredictorTask(tiny_base, run.schema, "steerlm", layer_heads=HeadsSettings())
    module, folder = task.build(), str(tmp_path / "model")
    task.save(module, module.state_dict(), folder)
    layered = Run(load(Preset, DEMO, [f"storage={tmp_path}", "predictor={heads: {}, learner: {}}"]))
    fit = HeadFit(blocks=("1/end", "2/mean"), penalty=0.01, answers=90, explained=0.25)
    metrics = training().model_copy(update={"heads": {"humor": fit}})
    text = card(layered, "predictor", run.preset.predictor.learner, metrics, folder=folder)
    assert "pipeline_tag" not in text
    assert "| humor | 1/end, 2/mean | 0.01 | 90 | 0.25 |" in text
    assert "Plain transformers has no class for such heads" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code, {})


def test_a_card_has_the_steering_once_that_is_known(run: Run) -> None:
    model = run.root / "policy" / "model"
    write_card(run, "policy", run.preset.policy.learner, training(), model, report(steering={"humor": CURVE}))
    card = (model / "README.md").read_text()
    assert "## Steering\n\nMeasured exactly." in card
    assert "| humor | 0 → 0.10, 4 → 3.90 | 0.97 |" in card
    assert Storage(model.uri).names() == ["README.md"]
