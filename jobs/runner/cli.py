"""What every job's command line does: read the preset, meet Ray, perform stages, say how it ended.

The last line of stdout is one JSON object; a mistake is one sentence on stderr and a non-zero exit code, without a traceback.
"""

import sys
from collections.abc import Callable, Sequence

from cluster.checks import require_fit
from cluster.connect import connect
from cluster.events import log_event, write_events_as
from cluster.preflight import preflight
from cluster.settings.load import command_line
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.needs import needs
from jobs.runner.plan import print_plan, refuse_what_cannot_fit
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, Stage, StageError, perform, require, warn

FLAGS = {
    "plan": "print stages, resources and memory per worker, and end without starting Ray",
    "needs": "print what the stages need of a cluster as one JSON object, for cluster.doctor and cluster.submit, and end without starting Ray",
}
Stages = Sequence[Stage] | Callable[[Preset], Sequence[Stage]]


def main(
    about: str | None,
    stages: Stages,
    ending: Callable[[Run, dict[str, Metrics]], Metrics] | None = None,
    kind: type[Preset] = Preset,
) -> None:
    """Perform `stages` in order; `ending` makes the last line's JSON from their manifests. `kind`: a preset with settings of the job's own."""
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name if module else 'jobs.run'}"
    preset, flags = command_line(kind, sys.argv[1:], program, about or "", FLAGS)
    write_events_as(preset.log)
    chosen = stages(preset) if callable(stages) else stages
    run = Run(preset)
    if "needs" in flags:
        print(needs(run, [stage.name for stage in chosen]).to_json())
        return
    if "plan" in flags:
        try:
            print_plan(run, [stage.name for stage in chosen])
        except StageError as error:
            print(f"{program}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        return
    with user_errors_reported(program, "the same command goes on where it was"):
        refuse_what_cannot_fit(preset)
        manifests = _perform_all(run, chosen)
    print_last_line((ending or _ending)(run, manifests))


def _perform_all(run: Run, stages: Sequence[Stage]) -> dict[str, Metrics]:
    ray_settings = run.preset.ray
    store = None if ray_settings.object_store_mb is None else ray_settings.object_store_mb * 2**20
    with connect(ray_settings.num_cpus, store, dashboard=True) as cluster:
        log_event(f"{cluster}\nrun: {run.root.uri}", "run.start", run=run.root.uri, ray=vars(cluster))
        asked = needs(run, [stage.name for stage in stages if run.manifest(stage.name) is None])
        if cluster.is_local:
            for demand in asked.demands:
                preflight(demand)
        else:
            for sentence in require_fit(asked):
                warn(sentence)
        manifests = {}
        for stage in stages:
            require(run, stage)
            manifests[stage.name] = perform(run, stage)
        return manifests


def _ending(run: Run, manifests: dict[str, Metrics]) -> Metrics:
    return {"run": run.root.uri, "stages": {name: stage_line(m) for name, m in manifests.items()}}


def stage_line(manifest: Metrics) -> Metrics:
    """Seconds and figures of a stage, without its loss curve."""
    metrics = manifest["metrics"]
    if "training" in metrics:
        metrics = metrics | {"training": {k: v for k, v in metrics["training"].items() if k != "losses"}}
    return {
        "seconds": manifest["seconds"],
        "skipped": manifest["skipped"],
        **{k: v for k, v in metrics.items() if k not in ("losses", "combinations")},
    }
