"""Stage `predictor`, step 1 of SteerLM: learn to rate an answer from people's ratings.

    python -m jobs.train_predictor PRESET.yaml [key.path=value ...]

What it says of rows it never saw, beside what is to beat, lies next to the weights: `quality.json`, `calibration.png`, `collinearity.png`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from actors.modeling.model_folder import load_config, local_folder, new_format
from actors.modeling.regressor import PredictorTask, require_language_model
from actors.modeling.train_task import Task
from actors.modeling.warmup import Surface, WarmupTask, require_decoder
from actors.scoring.annotator import Annotator
from actors.training.examples import ConversationExamples, PredictorExamples, label_counts
from actors.training.settings import LearnerSettings
from data.conversation import Conversation, from_table, to_table
from data.examples import Example, Split, bucket
from data.lab import Lab
from data.loader import Corpus, counts, some
from data.pairs import pair_weights
from data.ratings import Ratings, joined, ratings_of
from data.sources import files_of
from data.storage import Storage
from jobs.evaluation.predictor_pairs import judge_pairs, store_pairs
from jobs.evaluation.predictor_quality import quality, summary
from jobs.pipelines.annotation import annotator
from jobs.pipelines.fit import backbone_uri, buckets_for, example_spec, fit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.pipelines.tokenize import Tokenizing
from jobs.reporting.model_card import write_card
from jobs.reporting.figures_training import draw_calibration, draw_collinearity, draw_losses
from jobs.reporting.sections_predictor import pair_lines, quality_lines
from jobs.runner.cli import main
from jobs.runner.preset import LAB, Preset
from jobs.runner.stage import Metrics, Run, Stage, StageError, fingerprint_of, log

MOMENTS_EXAMPLES = 500
"""Examples that the mean and spread of the counts are taken from."""


def work(run: Run, folder: Storage) -> Metrics:
    """Train; say what the predictor is worth on answers it never saw, and whether it prefers what people prefer."""
    pairs = store_pairs(run, folder / "pairs", run.preset.predictor.pairs)
    found = examples(run, folder / "examples", fingerprint_of(folder))
    labels = label_counts((folder / "examples").tables(), run.schema)
    require_labels(labels)
    final, held_out = train(run, folder)
    write_card(run, "predictor", run.preset.predictor.learner, final, folder / "model")
    metrics = report(run, folder, held_out)
    weights = pair_weights(run.schema, run.preset.predictor.pair_weights)
    agreement = judge_pairs(run, pairs, folder / "pairs", annotator(run, folder), weights)
    if agreement:
        log("\n".join(pair_lines(agreement)))
    return {"training": final, "counts": found, "labels": labels, **metrics, "pairs": agreement}


def train(run: Run, folder: Storage) -> tuple[Metrics, Ratings]:
    """The figures of the training, and the rated answers that were held out from it, scored.

    Without folds, those of one bucket of groups. With folds, all: each scored by a predictor trained without its bucket, and the final
    predictor trains on every group (but those that pick its best step).
    """
    settings, buckets = run.preset.predictor, num_buckets(run)
    backbone = (
        warmed_up(run, settings.warmup, folder / "warmup", fingerprint_of(folder))
        if settings.warmup
        else backbone_uri(run)
    )
    task = predictor_task(run, backbone, folder / "examples")
    # The best step is picked on groups of its own: one picked on the answers it is judged by would flatter it.
    validation_buckets = buckets_for(settings.validation_share) if settings.learner.validate_every else 0

    def fitted(what: str, output: Storage, buckets: int, held_out: int) -> Metrics:
        return fit_and_draw(
            run, what, task, settings.learner, folder / "examples", output, Split(buckets, held_out, validation_buckets)
        )

    scored: list[Ratings] = []
    for fold in range(settings.folds):
        fitted(f"predictor, fold {fold + 1} of {settings.folds}", folder / f"fold-{fold}", buckets, fold)
        scored.append(score_held_out(run, folder / f"fold-{fold}", fold))
    final = fitted("predictor", folder, 0 if settings.folds else buckets, 0)
    if buckets and not settings.folds:
        scored.append(score_held_out(run, folder, 0))
    return final, joined(scored, len(run.schema.names))


def fit_and_draw(
    run: Run, what: str, task: Task, learner: LearnerSettings, examples: Storage, output: Storage, split: Split
) -> Metrics:
    """Train `task` on the `examples`; the model and the picture of its losses go to `output`."""
    training = fit(what, task, learner, Corpus.of(examples), output, split, tracking=run.preset.tracking)
    draw_losses({what: training}, output / "loss.png")
    return training


def predictor_task(run: Run, backbone: str, examples: Storage) -> PredictorTask:
    """What is learned from the examples."""
    settings = run.preset.predictor
    task = PredictorTask(
        backbone, run.schema, run.preset.template, settings.attribute_weights, settings.loss, settings.ridge_init
    )
    if not settings.lm_loss_weight:
        return task
    require_language_model(load_config(local_folder(backbone)))
    sampled = some(examples, MOMENTS_EXAMPLES)
    # The learner's mean is over labels: so many labels come with each token of an answer.
    labels_per_token = sum(map(task.target_weight, sampled)) / sum(int(e.trained_T.sum()) for e in sampled)
    return replace(
        task, token_weight=settings.lm_loss_weight * labels_per_token, surface=surface_of(run, backbone, sampled)
    )


def surface_of(run: Run, base: str, examples: list[Example]) -> Surface:
    """How the answers look to the tokenizer of `base`."""
    return Surface.of(new_format(local_folder(base), run.schema, run.preset.template).tokenizer, examples)


def warmed_up(run: Run, learner: LearnerSettings, folder: Storage, fingerprint: str) -> str:
    """Train the backbone on what all answers look like, without a single rating; returns its URI."""
    spec = example_spec(run, learner, backbone_uri(run))
    require_decoder(load_config(local_folder(spec.base)))
    rows, arguments = [run.folder("rows") / "rows"], {"spec": spec, "answers_only": True}
    Tokenizing("predictor: warm-up", rows, ConversationExamples, arguments, folder / "examples", fingerprint).all()
    found = counts(folder / "examples")
    if not found["examples"]:
        raise StageError(
            f"no conversation to warm up on ({found}); raise predictor.warmup.max_tokens or set predictor.warmup to null"
        )
    task = WarmupTask(
        spec.base,
        run.schema,
        run.preset.template,
        surface_of(run, spec.base, some(folder / "examples", MOMENTS_EXAMPLES)),
    )
    split = Split(buckets_for(learner.validate_every and run.preset.predictor.validation_share))
    fit_and_draw(run, "predictor: warm-up", task, learner, folder / "examples", folder, split)
    return (folder / "model").uri


def num_buckets(run: Run) -> int:
    """Into how many buckets the groups are split, so that one of them can be held out; 0 = none is."""
    return run.preset.predictor.folds or buckets_for(run.preset.predictor.validation_share)


def examples(run: Run, folder: Storage, fingerprint: str) -> dict[str, int]:
    """Tokenise the conversations to learn from; returns their counts. Raises StageError if nobody rated any."""
    rows = run.folder("rows") / "rows"
    arguments = {"spec": example_spec(run, run.preset.predictor.learner, backbone_uri(run))}
    Tokenizing("predictor", [rows], PredictorExamples, arguments, folder, fingerprint).all()
    found = counts(folder)
    if not found["examples"]:
        raise StageError(
            f"no rated conversation to learn from ({found}); rows.sources needs rows with ratings of {', '.join(run.schema.names)}"
        )
    return found


def require_labels(labels: Mapping[str, Mapping[str, int]]) -> None:
    """An attribute without a single label would get scores all the same, and they would mean nothing: StageError."""
    if unrated := [name for name, found in labels.items() if not found["valid"]]:
        others = ", ".join(f"{name}: {found['valid']:,}" for name, found in labels.items() if found["valid"])
        raise StageError(
            f"no answer of any source is rated for {', '.join(unrated)} ({others}), so no predictor can learn it; rate some, mend the name in the data, "
            "or take it out of `attributes`"
        )


def score_held_out(run: Run, output: Storage, held_out: int) -> Ratings:
    """The rated answers in bucket `held_out`, scored by the predictor at `output`, which did not train on them."""
    for part, table in enumerate((run.folder("rows") / "rows").tables()):
        rows = list(rated_in(from_table(table), num_buckets(run), held_out))
        if rows:
            write_table(to_table(rows, run.schema), output / "held_out", f"part-{part:05d}.parquet")
    if not (output / "held_out").exists():
        return ratings(run, output / "held_out")
    pool, arguments = run.preset.annotate.pool, annotator(run, output)
    map_rows(
        "predictor: held-out rows",
        [output / "held_out"],
        Annotator,
        arguments,
        pool,
        output / "scored",
        setting="annotate.pool",
    )
    scored = ratings(run, output / "scored")
    assert set(scored.bucket_N.tolist()) <= {held_out}, (
        "only the bucket that was held out may be judged and calibrated on"
    )
    return scored


def rated_in(rows: Iterable[Conversation], buckets: int, held_out: int) -> Iterator[Conversation]:
    """The rated rows in bucket `held_out` of `buckets`: those that `Split` keeps from training."""
    return (row for row in rows if any(row.human) and bucket(row.group, buckets) == held_out)


def ratings(run: Run, folder: Storage) -> Ratings:
    """The numbers of all rated answers in the rows at `folder`; in the laboratory with the truth."""
    lab = Lab(run.preset.rows.lab) if any(s.format == LAB for s in run.preset.rows.sources) else None
    parts = (
        ratings_of(from_table(table), run.schema.names, num_buckets(run), lab.truth if lab else None)
        for table in folder.tables()
    )
    return joined(parts, len(run.schema.names))


def report(run: Run, folder: Storage, held_out: Ratings) -> Metrics:
    """Write and print what the predictor is worth; returns what of it belongs into the manifest."""
    found = quality(run.schema, ratings(run, run.folder("rows") / "rows"), held_out)
    (folder / "quality.json").write_json(found)
    draw_calibration(run.schema, found, folder / "calibration.png")
    draw_collinearity(found["collinearity"], folder / "collinearity.png")
    log("\n".join(quality_lines(found)))
    return {"held_out": summary(found), "calibration": found["calibration"], "quality": (folder / "quality.json").uri}


def _settings(preset: Preset) -> object:
    return {
        "predictor": preset.predictor,
        "template": preset.template,
        "scoring": preset.annotate.model_copy(update={"pool": None}),
    }


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the pair files; a file that is not there is missed now, not after hours of training."""
    files = [Storage(file) for source in run.preset.predictor.pairs for file in files_of(source.uri)]
    return {file.uri: file.checksum() for file in files}


STAGE = Stage("predictor", ("rows", "base"), _settings, work, _inputs, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
