"""What a preset's stages need of a cluster: workers, storage, rows, models. Every job prints it (`--needs`) and checks it. Knows no Ray."""

from collections.abc import Sequence

from actors.training.settings import LearnerSettings
from cluster.needs import Needs
from cluster.preflight import Demand
from data.storage import Storage
from jobs.runner.plan import learners
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import Run

STAGE_OF = {
    "base.pretrain": "base",
    "predictor.warmup": "predictor",
    "predictor.learner": "predictor",
    "policy.learner": "policy",
}
"""Path of a training's settings -> the stage that runs it; bootstrap's is the policy of a round."""


def needs(run: Run, stage_names: Sequence[str]) -> Needs:
    """Of these stages, those included that are finished: what they need is small beside what follows."""
    preset = run.preset
    kinds = {name.split("/")[-1] for name in stage_names}
    rounds = any(name.startswith("bootstrap-") for name in stage_names)
    trainings = {
        path: learner
        for path, learner in learners(preset).items()
        if STAGE_OF.get(path) in kinds or (path == "bootstrap.learner" and rounds)
    }
    pools = (
        {"annotate.pool": preset.annotate.pool}
        if kinds & {"annotated", "rated", "promotion", "report", "benchmarks"}
        else {}
    )
    pools |= {"sampling.pool": preset.sampling.pool} if kinds & {"samples", "promotion", "report", "answers"} else {}
    return Needs(
        preset.run,
        Storage(preset.storage).uri,
        (
            *(_group(path, learner) for path, learner in trainings.items()),
            *(_pool(path, pool) for path, pool in pools.items()),
        ),
        _reads(run) if "rows" in kinds else {},
        _models(run) if kinds & {"base", "predictor", "policy"} else {},
        preset.ray.num_cpus,
    )


def _group(path: str, learner: LearnerSettings) -> Demand:
    return Demand(
        path,
        learner.num_workers,
        learner.num_workers,
        learner.cpus_per_worker,
        1 if learner.use_gpu else 0,
        path,
        "worker",
        learner.labels,
    )


def _pool(path: str, pool: WorkerPool) -> Demand:
    return Demand(
        path,
        pool.min_actors or pool.num_actors,
        pool.num_actors,
        pool.cpus_per_actor,
        pool.gpus_per_actor,
        path,
        labels=pool.labels,
    )


def _reads(run: Run) -> dict[str, str]:
    preset = run.preset
    sources = {f"rows.sources.{i}.uri": s.uri for i, s in enumerate(preset.rows.sources) if s.uri}
    pairs = {f"predictor.pairs.{i}.uri": p.uri for i, p in enumerate(preset.predictor.pairs)}
    return {
        name: Storage(uri).uri for name, uri in (sources | {"base.texts": preset.base.texts} | pairs).items() if uri
    }


def _models(run: Run) -> dict[str, str]:
    preset = run.preset
    return {
        name: model
        for name, model in {"base.model": preset.base.model, "predictor.backbone": preset.predictor.backbone}.items()
        if model
    }
