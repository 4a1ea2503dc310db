"""Stage `predictor`, step 1 of SteerLM: learn to rate an answer from people's ratings.

    python -m jobs.train_predictor PRESET.yaml [key.path=value ...]

Its metrics on held-out rows, beside baselines, are next to the weights: `quality.json`, `calibration.png`,
`collinearity.png`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from actors.modeling.model_folder import load_config, new_format, text_folder
from actors.modeling.regressor import PredictorTask, require_language_model
from actors.modeling.train_task import TrainTask
from actors.modeling.warmup import AnswerFeatures, WarmupTask, require_decoder
from actors.training.examples import ConversationExamples, PredictorExamples
from actors.training.settings import LearnerSettings
from data.attributes import AttributeSchema
from data.examples import LABEL, Example, Split, buckets_for
from data.loader import Corpus, counts, named_counts, some
from data.quality_metrics import PredictorQuality
from data.ratings import Ratings, joined
from data.run_layout import QUALITY, write_record
from data.source_checksums import checksums
from data.stage_metrics import PredictorMetrics, TrainingMetrics
from data.storage import Storage
from jobs.evaluation.ask import synthetic_world
from jobs.evaluation.held_out import num_buckets, ratings_in, write_held_out
from jobs.evaluation.predictor_pairs import judge_pairs, store_pairs
from jobs.evaluation.predictor_quality import quality
from jobs.pipelines.annotation import annotator, score_rows, scoring_settings
from jobs.pipelines.fit import example_spec, fit, require_sources
from jobs.pipelines.tokenize import Tokenizing
from jobs.reporting.figures_training import draw_calibration, draw_collinearity, draw_losses
from jobs.reporting.model_card import write_card
from jobs.reporting.sections_predictor import pair_lines, quality_lines
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, fingerprint_of, log
from jobs.runner.start_models import backbone_uri

MOMENTS_EXAMPLES = 500
"""Examples for the mean and spread of the counts."""


def work(run: Run, folder: Storage) -> PredictorMetrics:
    """Train; measure the predictor on held-out answers and on pairs of which people preferred one."""
    require_sources("predictor.source_weights", run.preset.predictor.source_weights, run)
    pairs = store_pairs(run, folder / "pairs", run.preset.predictor.pairs)
    found = examples(run, folder / "examples", fingerprint_of(folder))
    labels = label_counts(folder / "examples", run.schema)
    require_labels(labels, run.preset.roster.unpredicted)
    final, held_out = train(run, folder)
    write_card(run, "predictor", run.preset.predictor.learner, final, folder / "model")
    measured = report(run, folder, held_out)
    weights = run.preset.pair_weights()
    agreement = judge_pairs(run, pairs, folder / "pairs", annotator(run, folder), weights)
    if agreement:
        log("\n".join(pair_lines(agreement)))
    return PredictorMetrics(
        training=final.without_curve(),
        counts=found,
        labels=labels,
        held_out={name: row.without_bins() for name, row in measured.attributes.items()},
        calibration=measured.calibration,
        quality=(folder / QUALITY).uri,
        pairs=agreement,
    )


def train(run: Run, folder: Storage) -> tuple[TrainingMetrics, Ratings]:
    """The metrics of the training, and the held-out rated answers with their scores.

    Without folds: the answers of one bucket of groups. With folds: all answers, each scored by a predictor trained
    without its bucket; the final predictor trains on every group (but those that pick its best step).
    """
    settings, buckets = run.preset.predictor, num_buckets(run)
    task = predictor_task(run, _backbone(run, folder), folder / "examples")
    # The best step is picked on groups of its own: picked on the answers of the metrics, it would flatter them.
    validation_buckets = buckets_for(settings.validation_share) if settings.learner.validate_every else 0

    def fitted(what: str, output: Storage, buckets: int, held_out: int) -> TrainingMetrics:
        split = Split(buckets, held_out, validation_buckets)
        if settings.heads is None:
            return fit_and_draw(
                run, what, task, settings.learner, folder / "examples", output, split, settings.source_weights
            )
        return with_heads(run, what, task, folder, output, split)

    scored: list[Ratings] = []
    for fold in range(settings.folds):
        fitted(f"predictor, fold {fold + 1} of {settings.folds}", folder / f"fold-{fold}", buckets, fold)
        scored.append(score_held_out(run, folder / f"fold-{fold}", fold))
    final = fitted("predictor", folder, 0 if settings.folds else buckets, 0)
    if buckets and not settings.folds:
        scored.append(score_held_out(run, folder, 0))
    return final, joined(scored, len(run.schema.names))


def _backbone(run: Run, folder: Storage) -> str:
    warmup = run.preset.predictor.warmup
    return warmed_up(run, warmup, folder / "warmup", fingerprint_of(folder)) if warmup else backbone_uri(run)


def with_heads(
    run: Run, what: str, task: PredictorTask, folder: Storage, output: Storage, split: Split
) -> TrainingMetrics:
    """Heads on several layers, fitted to the frozen backbone, whose features all fits share; with epochs trained."""
    settings, tunes = run.preset.predictor, run.preset.predictor.learner.epochs > 0
    target = output / "heads" if tunes else output
    frozen: dict[str, object] = {"epochs": 0, "lora": None, "validate_every": 0, "patience": 0}
    # What is trained afterwards starts from the very weights that the heads were fitted to.
    frozen |= {"export": "float32"} if tunes else {}
    learner, examples, weights = (
        settings.learner.model_copy(update=frozen),
        folder / "examples",
        settings.source_weights,
    )
    name = f"{what}: heads" if tunes else what
    fits = Corpus.of(examples)
    metrics = fit(name, task, learner, fits, target, split, weights, run.preset.tracking, features=folder / "features")
    if not tunes:
        return metrics
    start = replace(task, base=(target / "model").uri, layer_heads=None)
    trained = fit_and_draw(run, what, start, settings.learner, examples, output, split, weights)
    return trained.model_copy(update={"heads": metrics.heads})


def fit_and_draw(
    run: Run,
    what: str,
    task: TrainTask,
    learner: LearnerSettings,
    examples: Storage,
    output: Storage,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> TrainingMetrics:
    """Train `task` on the `examples`; the model and the picture of its losses go to `output`. `weights`: see `fit`."""
    training = fit(what, task, learner, Corpus.of(examples), output, split, weights, run.preset.tracking)
    draw_losses({what: training}, output / "loss.png")
    return training


def predictor_task(run: Run, backbone: str, examples: Storage) -> PredictorTask:
    """The task of the training: the ratings, and with `lm_loss_weight` a language model's losses, too."""
    settings, format = run.preset.predictor, (run.schema, run.preset.template)
    task = PredictorTask(backbone, *format, settings.attribute_weights, settings.loss, settings.ridge_init)
    if settings.heads:
        return replace(task, layer_heads=settings.heads)
    if not settings.lm_loss_weight:
        return task
    require_language_model(load_config(text_folder(backbone)))
    sampled = some(examples, MOMENTS_EXAMPLES)
    # The learner's mean is over labels, the language model's over tokens of answers.
    labels_per_token = sum(map(task.target_weight, sampled)) / sum(int(e.trained_T.sum()) for e in sampled)
    weight = settings.lm_loss_weight * labels_per_token
    return replace(task, token_weight=weight, answer_features=answer_features(run, backbone, sampled))


def answer_features(run: Run, base: str, examples: list[Example]) -> AnswerFeatures:
    """How the answers look to the tokenizer of `base`."""
    return AnswerFeatures.of(new_format(text_folder(base), run.schema, run.preset.template).tokenizer, examples)


def warmed_up(run: Run, learner: LearnerSettings, folder: Storage, fingerprint: str) -> str:
    """Train the backbone on all answers, without ratings; returns its URI."""
    spec = example_spec(run, learner, backbone_uri(run))
    require_decoder(load_config(text_folder(spec.base)))
    rows, arguments = [run.folder("rows") / "rows"], {"spec": spec, "answers_only": True}
    Tokenizing("predictor: warm-up", rows, ConversationExamples, arguments, folder / "examples", fingerprint).all()
    found = counts(folder / "examples")
    if not found["examples"]:
        raise StageError(
            f"no conversation to warm up on ({found}); "
            "raise predictor.warmup.max_tokens or set predictor.warmup to null"
        )
    features = answer_features(run, spec.base, some(folder / "examples", MOMENTS_EXAMPLES))
    task = WarmupTask(spec.base, run.schema, run.preset.template, features)
    split = Split(buckets_for(learner.validate_every and run.preset.predictor.validation_share))
    fit_and_draw(run, "predictor: warm-up", task, learner, folder / "examples", folder, split)
    return (folder / "model").uri


def examples(run: Run, folder: Storage, fingerprint: str) -> dict[str, int]:
    """Tokenize the rated conversations; returns their counts. Raises StageError if there are none."""
    rows = run.folder("rows") / "rows"
    arguments = {"spec": example_spec(run, run.preset.predictor.learner, backbone_uri(run))}
    Tokenizing("predictor", [rows], PredictorExamples, arguments, folder, fingerprint).all()
    found = counts(folder)
    if not found["examples"]:
        names = ", ".join(run.schema.names)
        raise StageError(
            f"no rated conversation to learn from ({found}); rows.sources needs rows with ratings of {names}"
        )
    return found


def label_counts(folder: Storage, schema: AttributeSchema) -> dict[str, dict[str, int]]:
    """Valid, missing and out-of-range labels of each attribute in the tokenized rows."""
    found = named_counts(folder, LABEL)
    kinds = ("valid", "missing", "out_of_range")
    return {name: {kind: found.get(f"{name}/{kind}", 0) for kind in kinds} for name in schema.names}


def require_labels(labels: Mapping[str, Mapping[str, int]], measured: Collection[str] = ()) -> None:
    """Raise StageError for an attribute without labels, unless it is `measured`: its scores would mean nothing."""
    if unrated := [name for name, found in labels.items() if not found["valid"] and name not in measured]:
        others = ", ".join(f"{name}: {found['valid']:,}" for name, found in labels.items() if found["valid"])
        raise StageError(
            f"no answer of any source is rated for {', '.join(unrated)} ({others}), so no predictor can learn it; "
            "rate some, fix the name in the data, take it from another rater (annotate.raters), or take it out of "
            "`attributes`"
        )


def score_held_out(run: Run, output: Storage, held_out: int) -> Ratings:
    """The rated answers in bucket `held_out`, scored by the predictor at `output`, which did not train on them."""
    rows = run.folder("rows") / "rows"
    if not write_held_out(rows, run.schema, num_buckets(run), held_out, output / "held_out"):
        return ratings(run, output / "held_out")
    score_rows(run, "predictor: held-out rows", [output / "held_out"], output, output / "scored")
    scored = ratings(run, output / "scored")
    assert set(scored.bucket_N.tolist()) <= {held_out}, "only held-out answers may be measured and calibrated on"
    return scored


def ratings(run: Run, folder: Storage) -> Ratings:
    """The ratings of all rated answers in the rows at `folder`; in the synthetic world with the truth."""
    lab = run.preset.rows.lab if synthetic_world(run) else None
    return ratings_in(folder, run.schema.names, num_buckets(run), lab)


def report(run: Run, folder: Storage, held_out: Ratings) -> PredictorQuality:
    """Write, log and draw the metrics of the predictor; returns them."""
    found = quality(run.schema, ratings(run, run.folder("rows") / "rows"), held_out)
    write_record(folder / QUALITY, found)
    draw_calibration(run.schema, found, folder / "calibration.png")
    draw_collinearity(found.collinearity, folder / "collinearity.png")
    log("\n".join(quality_lines(found)))
    return found


def _settings(preset: Preset) -> object:
    return {"predictor": preset.predictor, "template": preset.template, "scoring": scoring_settings(preset.annotate)}


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the pair files; a missing file is an error now, not after hours of training."""
    return checksums(*(source.uri for source in run.preset.predictor.pairs))


STAGE = Stage("predictor", ("rows", "base"), _settings, work, _inputs, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
