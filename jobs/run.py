"""All stages of SteerLM in order: rows, base, predictor, annotated, policy, bootstrap rounds, report.

    python -m jobs.run PRESET.yaml [key.path=value ...] [--plan]

A stage that is finished and whose settings and inputs have not changed is skipped; kill it anywhere and start it again.
"""

from jobs import annotate, bootstrap, evaluate, prepare, pretrain, train_policy, train_predictor
from jobs.runner.cli import main, stage_line
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, Stage


def stages(preset: Preset) -> list[Stage]:
    return [
        *(prepare.STAGE, pretrain.STAGE, train_predictor.STAGE, annotate.STAGE, train_policy.STAGE),
        *bootstrap.stages(preset),
        evaluate.stage(preset),
    ]


def ending(run: Run, manifests: dict[str, Metrics]) -> Metrics:
    """The run's summary: what each stage took and counted, and what steering came to."""
    report = manifests["report"]["metrics"]
    return {
        "run": run.root.uri,
        "stages": {name: stage_line(m) for name, m in manifests.items() if name != "report"}
        | {"report": {k: manifests["report"][k] for k in ("seconds", "skipped")} | {"counts": report["counts"]}},
        "steering": report["steering"],
        "measured_by": report["measured_by"],
        "at_best_settings": report["at_best_settings"],
        "predictor": manifests["predictor"]["metrics"].get("held_out"),
        "report": (run.folder("report") / "report.json").uri,
        "plot": (run.folder("report") / "steering.png").uri,
    }


if __name__ == "__main__":
    main(__doc__, stages, ending)
