"""What every job's command line does: read the preset, connect to Ray, perform stages, print how it ended.

The last line of stdout is one JSON object; a user error is one sentence on stderr and a non-zero exit code.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.generation.settings import sampling_place
from actors.generation.vllm_installed import require_installed
from cluster.checks import require_fit
from cluster.connect import connect, on_this_machine
from cluster.events import log_event, write_events_as
from cluster.preflight import preflight
from cluster.settings.load import command_line
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.lease import held, holder, lease_of
from jobs.runner.needs import needs, samples
from jobs.runner.preset import Preset
from jobs.runner.stage import Performed, Run, Stage, log, perform, require, warn

FLAGS = {
    "plan": "print stages, resources and memory per worker, without starting Ray",
    "needs": "print the stages' needs as JSON, for cluster.doctor and cluster.submit, without starting Ray",
}
Stages = Sequence[Stage] | Callable[[Preset], Sequence[Stage]]


def main(
    about: str | None,
    stages: Stages,
    ending: Callable[[Run, Mapping[str, Performed]], Mapping[str, Any]] | None = None,
    kind: type[Preset] = Preset,
    check: Callable[[Run], None] | None = None,
) -> None:
    """Perform `stages` in order; `ending` makes the last line's JSON of their manifests.

    `kind`: the type of the preset, where a job has settings of its own. `check` raises UserError if the finished run
    is not good enough: the last line is printed all the same, and the exit code is 1.
    """
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name if module else 'jobs.run'}"
    preset, flags = command_line(kind, sys.argv[1:], program, about or "", FLAGS)
    write_events_as(preset.log)
    chosen = stages(preset) if callable(stages) else stages
    run, names = Run(preset), [stage.name for stage in chosen]
    if "needs" in flags:
        print(replace(needs(run, names), held=holder(lease_of(run.root))).to_json())
        return
    if "plan" in flags:
        from jobs.runner.plan import print_plan  # with torch, which neither --help nor a user error waits for

        with user_errors_reported(program, "nothing was started"):
            print_plan(run, names)
        return
    with user_errors_reported(program, "the same command goes on where it was"):
        refuse_what_is_not_there(preset)
        preset = _fitted(preset)
        run, chosen = Run(preset), stages(preset) if callable(stages) else stages
        _require_engine(run, chosen)
        with held(lease_of(run.root), program):
            done = _perform_all(run, chosen)
    print_last_line((ending or _ending)(run, done))
    if check:
        with user_errors_reported(program, "the run is finished"):
            check(run)


def _fitted(preset: Preset) -> Preset:
    """The preset with the settings that `fit: auto` stands for; raises UserError if a training cannot fit."""
    from jobs.runner.auto_fit import with_fits  # both with torch
    from jobs.runner.plan import refuse_what_cannot_fit

    preset, choices = with_fits(preset)
    for choice in choices:
        log(choice)
    refuse_what_cannot_fit(preset)
    return preset


def _require_engine(run: Run, stages: Sequence[Stage]) -> None:
    """Raise UserError if text is to be written on this machine by an engine that is not installed."""
    unfinished = [stage.name for stage in stages if run.manifest(stage.name) is None]
    if on_this_machine() and samples(unfinished):
        sampling = run.preset.sampling
        require_installed(sampling.engine, sampling_place(sampling.pool.gpus_per_actor))


def _perform_all(run: Run, stages: Sequence[Stage]) -> dict[str, Performed]:
    ray_settings = run.preset.ray
    store = None if ray_settings.object_store_mb is None else ray_settings.object_store_mb * 2**20
    with connect(ray_settings.num_cpus, store, dashboard=True) as cluster:
        log_event(f"{cluster}\nrun: {run.root.uri}", "run.start", run=run.root.uri, ray=vars(cluster))
        unfinished = needs(run, [stage.name for stage in stages if run.manifest(stage.name) is None])
        if cluster.is_local:
            for demand in unfinished.demands:
                preflight(demand)
        else:
            for sentence in require_fit(unfinished):
                warn(sentence)
        done = {}
        for stage in stages:
            require(run, stage)
            done[stage.name] = perform(run, stage)
        return done


def _ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    return {"run": run.root.uri, "stages": {name: stage_line(done) for name, done in stages.items()}}


def stage_line(done: Performed) -> dict[str, Any]:
    """Seconds and metrics of a stage, for the last line of stdout."""
    metrics = {name: value for name, value in done.manifest.metrics.items() if name != "combinations"}
    return {"seconds": done.manifest.seconds, "skipped": done.skipped, **metrics}
