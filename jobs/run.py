"""All stages of SteerLM in order: rows, base, predictor, annotated, policy, bootstrap rounds, compare, report.

    python -m jobs.run PRESET.yaml [key.path=value ...] [--plan]

A stage that is finished and whose settings and inputs have not changed is skipped; kill it anywhere and start it again.
"""

from collections.abc import Mapping
from typing import Any

from jobs import annotate, bootstrap, compare, evaluate, prepare, pretrain, train_predictor
from jobs.policy_training.policy_stage import STAGE as POLICY
from jobs.runner.cli import main, stage_line
from jobs.runner.machine import machine
from jobs.runner.preset import Preset
from jobs.runner.stage import Performed, Run, Stage


def stages(preset: Preset) -> list[Stage]:
    return [
        *(prepare.STAGE, pretrain.STAGE, train_predictor.STAGE, annotate.STAGE, POLICY),
        *bootstrap.stages(preset),
        *compare.stages(preset),
        evaluate.stage(preset),
    ]


def ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    """The run's summary: seconds and counts of each stage, the steering metrics, and the machine."""
    report = stages["report"].manifest.metrics
    lines = {name: stage_line(done) for name, done in stages.items()}
    lines["report"] = {key: lines["report"][key] for key in ("seconds", "skipped", "counts")}
    return {
        "run": run.root.uri,
        "stages": lines,
        "steering": report["steering"],
        "measured_by": report["measured_by"],
        "witnesses": report.get("witnesses", {}),
        "at_best_settings": report["at_best_settings"],
        "predictor": stages["predictor"].manifest.metrics["held_out"],
        "report": (run.folder("report") / "report.json").uri,
        "machine": machine(),
        "plot": (run.folder("report") / "steering.png").uri,
    }


if __name__ == "__main__":
    main(__doc__, stages, ending, check=evaluate.require_steering)
