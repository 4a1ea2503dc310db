"""Stages `compare/*`: the policy beside other models, asked the same questions and measured in the same way.

    python -m jobs.compare PRESET.yaml [compare.baselines=[zero_shot,numbers]] [compare.questions=FILE] [key.path=value]

zero_shot is the base model before any training, told the values in words; numbers is a policy trained as the run's own,
but told them in a label line. With compare.questions the policy at its best meets the base model's own answers. The
report shows what is finished; `jobs.report` writes its pages again.
"""

import hashlib
import tempfile
from functools import partial

from data.attributes import Values
from data.benchmarks import Question, jsonl, read_questions
from data.compared import compared_pair, shares
from data.conversation import Message
from data.prompts import Prompt, prompt
from data.run_layout import COMPARE, MODEL, PAIRS, as_json
from data.stage_metrics import PolicyMetrics, StageMetrics
from data.steering_metrics import BaselineMetrics, PreferenceMetrics
from data.storage import Storage
from jobs.evaluation.ask import ask, curve_prompts, num_unseen
from jobs.evaluation.deviations import label_deviations
from jobs.evaluation.steering_metrics import curves
from jobs.evaluation.witnesses import witnesses
from jobs.pipelines.sample import sampling_settings
from jobs.policy_training.conditioned_sft import train_policy
from jobs.reporting.sections_comparison import baseline_lines, preference_lines
from jobs.runner.cli import main
from jobs.runner.evaluation_settings import BaselineKind
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Run, Stage, StageError, log
from jobs.runner.start_models import base_uri

UNTRAINED, NUMBERS = f"{COMPARE}/untrained", f"{COMPARE}/numbers/policy"
PREFERENCE = f"{COMPARE}/preference/report"
MEANING: dict[BaselineKind, str] = {
    "zero_shot": "zero-shot, told in words",
    "numbers": "trained with numbers in a label line",
}
POLICY_OF: dict[BaselineKind, str] = {"zero_shot": UNTRAINED, "numbers": NUMBERS}


def stages(preset: Preset) -> list[Stage]:
    """What `compare` of the preset asks for; nothing if it asks for nothing."""
    settings, found = preset.compare, list[Stage]()
    rating = ("predictor", "annotated")
    if "zero_shot" in settings.baselines or settings.questions:
        found.append(Stage(UNTRAINED, ("base",), _untrained_settings, _untrained))
    if "numbers" in settings.baselines:
        found.append(Stage(NUMBERS, (*rating, "base"), _numbers_settings, _train_numbers, resumes=True))
    for kind in settings.baselines:
        needs = ("rows", *rating, POLICY_OF[kind])
        found.append(Stage(f"{COMPARE}/{kind}/report", needs, _asking, partial(_report, kind=kind)))
    if settings.questions:
        rounds = range(1, preset.bootstrap.rounds + 1)
        after = (name for number in rounds for name in (Rounds().policy(number), Rounds().promotion(number)))
        met = (*rating, UNTRAINED, "policy", *after)
        found.append(Stage(PREFERENCE, met, _preference_settings, _prefer, inputs=_questions))
    return found


# --- the models -------------------------------------------------------------------------------------------------------


def _untrained(run: Run, folder: Storage) -> StageMetrics:
    """The base model as a policy: asked in words, and, where nothing is requested, with its own prompt alone."""
    from actors.modeling.untrained import save_as_policy  # with torch

    with tempfile.TemporaryDirectory() as local:
        save_as_policy(base_uri(run), run.schema, local, "words")
        (folder / MODEL).upload(local)
    log(f"{UNTRAINED}: {base_uri(run)} as a policy that is told values in words")
    return StageMetrics()


def _untrained_settings(preset: Preset) -> object:
    return {"template": "words"}


def _train_numbers(run: Run, folder: Storage) -> PolicyMetrics:
    """As stage `policy` trains, but with the values as numbers before the answer."""
    numbers = Run(run.preset.model_copy(update={"template": "chat"}))
    rows, learner = [run.folder("annotated") / "rows"], run.preset.policy.learner
    return train_policy(numbers, "compare: numbers", rows, base_uri(run), learner, folder)


def _numbers_settings(preset: Preset) -> object:
    return {"policy": preset.policy, "template": "chat", "seed": preset.seed}


# --- the report's questions -------------------------------------------------------------------------------------------


def _report(run: Run, folder: Storage, kind: BaselineKind) -> BaselineMetrics:
    """Ask one of the models what the report asks the policy."""
    asked, prompts = curve_prompts(run, "evaluate")
    what = f"compare: {kind}"
    log(f"{what}: {len(asked)} questions, {len(prompts):,} answers")
    answers = ask(run, what, run.folder(POLICY_OF[kind]), prompts, folder, rate=True)
    settings = run.preset.evaluate
    table, best = curves(run.schema, answers, settings.num_resamples, run.preset.seed, label_deviations(run))
    found = BaselineMetrics(
        meaning=MEANING[kind],
        policy=POLICY_OF[kind],
        template="words" if kind == "zero_shot" else "chat",
        measured_by=answers.measured_by,
        steering=table,
        at_best_settings=best,
        witnesses=witnesses(run, answers)[0],
        counts={"questions": len(asked), "answers": len(answers.rows), "unseen": num_unseen(run, asked)},
    )
    for line in baseline_lines(found):
        log(line)
    return found


def _asking(preset: Preset) -> object:
    names = {"num_questions", "num_values", "num_resamples", "others", "temperature", "witnesses"}
    return {
        "evaluate": preset.evaluate.model_dump(mode="json", include=names),
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
    }


# --- against the base model's own answers -----------------------------------------------------------------------------


def _prefer(run: Run, folder: Storage) -> PreferenceMetrics:
    """Both models answer each question once; the predictor rates both answers."""
    run = _at_length(run)
    asked = read_questions(run.preset.compare.questions, run.preset.compare.limit)
    stage = Rounds().promoted(run, run.preset.bootstrap.rounds)
    sides = {
        side: ask(run, f"compare: {side}", run.folder(name), _prompts(run, asked, values), folder / side, rate=True)
        for side, name, values in (("policy", stage, run.schema.best()), ("base", UNTRAINED, {}))
    }
    answers = {side: {row.group: row for row in found.rows} for side, found in sides.items()}
    weights = run.preset.pair_weights()
    pairs = []
    for question in asked:
        rows = [answers[side][str(question.id)] for side in sides]
        both = [(row.messages[-1].content, row.predicted[-1] if row.predicted else {}) for row in rows]
        pairs.append(compared_pair(str(question.id), question.turns[0], both, weights))
    (folder / PAIRS).write_bytes(jsonl(as_json(pair) for pair in pairs))
    found = PreferenceMetrics(
        questions=run.preset.compare.questions,
        policy=stage,
        rated_by=sides["policy"].measured_by,
        weights=weights,
        **shares(pairs, run.schema.names),
        pairs=(folder / PAIRS).uri,
        counts={"questions": len(pairs)},
    )
    if not found.preferred.n:
        raise StageError(
            f"compare.questions {run.preset.compare.questions}: not one pair of answers was rated; raise "
            "sampling.max_tokens or annotate.max_tokens"
        )
    for line in preference_lines(found):
        log(line)
    return found


def _at_length(run: Run) -> Run:
    """The same run with answers as long as `compare.max_tokens` allows."""
    longest = run.preset.compare.max_tokens or run.preset.sampling.max_tokens
    sampling = run.preset.sampling.model_copy(update={"max_tokens": longest})
    return Run(run.preset.model_copy(update={"sampling": sampling}))


def _prompts(run: Run, asked: list[Question], values: Values) -> list[Prompt]:
    """The first turn of each question."""
    return [
        prompt("preference", str(q.id), "", [Message("user", q.turns[0])], values, number, run.preset.seed)
        for number, q in enumerate(asked)
    ]


def _preference_settings(preset: Preset) -> object:
    return {
        "compare": preset.compare.model_dump(mode="json", include={"limit", "max_tokens"}),
        "weights": preset.pair_weights(),
        "temperature": preset.evaluate.temperature,
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
    }


def _questions(run: Run) -> dict[str, str]:
    content = repr(read_questions(run.preset.compare.questions))
    return {"questions": hashlib.sha256(content.encode()).hexdigest()[:16]}


if __name__ == "__main__":
    main(__doc__, stages)
