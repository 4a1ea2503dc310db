"""The trainings of stage `predictor`: its examples, its task, the backbone's warm-up, and each fit. With torch.

Knows no folds and no metrics of the predictor.
"""

from collections.abc import Mapping
from dataclasses import replace

from actors.modeling.model_folder import load_config, new_format, text_folder
from actors.modeling.regressor import PredictorTask, require_language_model
from actors.modeling.train_task import TrainTask
from actors.modeling.warmup import AnswerFeatures, WarmupTask, require_decoder
from actors.training.examples import ConversationExamples, PredictorExamples
from actors.training.settings import LearnerSettings
from data.examples import Example, Split, buckets_for
from data.loader import Corpus, counts, some
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from jobs.pipelines.fit import example_spec, fit
from jobs.pipelines.tokenize import Tokenizing
from jobs.reporting.figures_training import draw_losses
from jobs.runner.stage import Run, StageError, fingerprint_of
from jobs.runner.start_models import backbone_uri

MOMENTS_EXAMPLES = 500
"""Examples for the mean and spread of the counts."""


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


def backbone(run: Run, folder: Storage) -> str:
    """The model to start from, warmed up if the preset says so."""
    warmup = run.preset.predictor.warmup
    return warmed_up(run, warmup, folder / "warmup", fingerprint_of(folder)) if warmup else backbone_uri(run)


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


def fit_predictor(
    run: Run, what: str, task: PredictorTask, folder: Storage, output: Storage, split: Split
) -> TrainingMetrics:
    """Train `task` on the examples in the stage's `folder`; the model goes to `output`."""
    settings = run.preset.predictor
    if settings.heads:
        return with_heads(run, what, task, folder, output, split)
    examples, weights = folder / "examples", settings.source_weights
    return fit_and_draw(run, what, task, settings.learner, examples, output, split, weights)


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
