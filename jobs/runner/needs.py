"""What a preset's stages need of a cluster: workers, storage, rows, models. Knows no Ray."""

from collections.abc import Sequence

from actors.training.settings import LearnerSettings
from cluster.masking import credentials_in
from cluster.needs import Needs
from cluster.preflight import Demand
from data.iceberg import ICEBERG
from data.rater_settings import HfRaterSettings
from data.storage import Storage
from jobs.runner.preset import Preset
from jobs.runner.stage import Run
from jobs.runner.trainings import STAGE_OF, learners


def needs(run: Run, stage_names: Sequence[str]) -> Needs:
    """The needs of these stages, whether they are finished or not."""
    preset = run.preset
    kinds = {name.split("/")[-1] for name in stage_names}
    rounds = any(name.startswith("bootstrap-") for name in stage_names)
    trainings = {
        path: learner
        for path, learner in learners(preset).items()
        if STAGE_OF.get(path) in kinds
        or (path == "bootstrap.learner" and rounds)
        or (path == "policy.learner" and "unconditional" in kinds)
    }
    pools = []
    # The predictor's own stage scores what it did not train on.
    scores_held_out = preset.predictor.folds or preset.predictor.validation_share or preset.predictor.pairs
    scoring = {"annotated", "rated", "promotion", "report", "benchmarks", "rewardbench"}
    if kinds & {*scoring, *(["predictor"] if scores_held_out else [])}:
        pools.append(preset.annotate.pool.demand("annotate.pool", "annotate.pool"))
    if samples(stage_names) or ("selected" in kinds and preset.bootstrap.method == "steerlm2"):
        pools.append(preset.sampling.pool.demand("sampling.pool", "sampling.pool"))
    return Needs(
        preset.run,
        Storage(preset.storage).uri,
        (*(_workers(path, learner) for path, learner in trainings.items()), *pools),
        _reads(run) if "rows" in kinds else {},
        _models(run, kinds),
        preset.ray.num_cpus,
        tuple(credentials_in(preset.model_dump(mode="json"))),
    )


def samples(stage_names: Sequence[str]) -> bool:
    """Does one of these stages write text?"""
    return bool({name.split("/")[-1] for name in stage_names} & {"samples", "promotion", "report", "answers"})


def one_pool(preset: Preset) -> bool:
    """Can one pool sample and rate? If its actors are those of both, and no GPU would have to hold two models.

    A predictor that is split has actors of its own: of the CPUs of all its parts the sampler would need one part's.
    """
    sampling, rating = preset.sampling.pool, preset.annotate.pool
    same = sampling == rating.model_copy(update={"batch_rows": sampling.batch_rows})
    return same and not sampling.gpus_per_actor and preset.annotate.tensor_parallel == 1


def _workers(path: str, learner: LearnerSettings) -> Demand:
    few, most, gpus = learner.fewest.num_workers, learner.num_workers, 1 if learner.use_gpu else 0
    return Demand(path, few, most, learner.cpus_per_worker, gpus, path, "worker", learner.labels)


def _reads(run: Run) -> dict[str, str]:
    preset = run.preset
    sources = {f"rows.sources.{i}.uri": s.uri for i, s in enumerate(preset.rows.sources) if s.format != ICEBERG}
    pairs = {f"predictor.pairs.{i}.uri": p.uri for i, p in enumerate(preset.predictor.pairs)}
    others = {"base.texts": preset.base.texts, "compare.questions": preset.compare.questions}
    if preset.bootstrap.rounds:
        others["bootstrap.steerlm2.responses"] = preset.bootstrap.steerlm2.responses
    uris = sources | others | pairs
    return {name: Storage(uri).uri for name, uri in uris.items() if uri}


def _models(run: Run, kinds: set[str]) -> dict[str, str]:
    found: dict[str, str | None] = {}
    if kinds & {"base", "predictor", "policy"}:
        found = {"base.model": run.preset.base.model, "predictor.backbone": run.preset.predictor.backbone}
    if kinds & {"annotated", "rated"}:
        raters = enumerate(run.preset.annotate.raters)
        found |= {f"annotate.raters.{i}.model": r.model for i, r in raters if isinstance(r, HfRaterSettings)}
    return {name: model for name, model in found.items() if model}
