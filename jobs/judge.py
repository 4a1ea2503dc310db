"""Have answers judged by any OpenAI-compatible endpoint, in pairs and one by one; or score stored judgements again.

    python -m jobs.judge [JUDGE.yaml] questions=PATH answers=[OURS,REFERENCE] judge.model=NAME [key.path=value ...]
    python -m jobs.judge judgements=[PATH] [questions=PATH]

Every reply is kept as it comes, by its request: a killed job continues without asking twice. Unreadable replies and
failures are counted and kept, too. Stored judgements need no judge.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.events import log_event
from cluster.masking import without_secrets
from cluster.settings.load import command_line
from data.benchmarks import jsonl, read_answers, read_questions
from data.comparisons import Metrics, latest, models_of
from data.errors import UserError
from data.judge_prompts import SHIPPED, Match, Setup, read_judge_prompts
from data.storage import Storage
from data.verdicts import Verdict, judgement_line, read_verdicts, verdict
from jobs.judge_client.replies import Replies
from jobs.judging.cost import Cost, cost_of, estimate
from jobs.judging.report import draw_report, metrics_of, report_lines
from jobs.judging.requests import JudgeRequests, warn
from jobs.judging.settings import Judging
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.lease import held, lease_of

PROGRAM = "python -m jobs.judge"
FLAGS = {
    "plan": "print the number of requests and their estimated cost, or of stored judgements; ask and write nothing"
}


def setup(settings: Judging) -> Setup:
    """Read all input files; raises UserError for answers that cannot be judged."""
    answers = [read_answers(uri) for uri in settings.answers]
    models = [a.model for a in answers]
    for model in models:
        if models.count(model) > 1:
            raise UserError(
                f"two answer files are of {model!r}; answers has one file a model (model_id of jobs.answer names them)"
            )
    if not settings.effective_kinds:
        raise UserError(
            f"kinds is {', '.join(settings.kinds)}, but there is one answer file and pairs take two; "
            "add one to answers, or set kinds=[single]"
        )
    reference = _reference(settings, models)
    made = Setup(
        read_questions(settings.questions, settings.limit),
        answers,
        read_answers(settings.references) if settings.references else None,
        read_judge_prompts(settings.prompts) if settings.prompts else SHIPPED,
        settings.effective_kinds,
        reference if settings.pairs == "reference" else None,
    )
    if missing := made.without_reference():
        warn(
            f"{len(missing)} questions of math, reasoning or coding are judged without a reference answer (references)"
        )
    return made


def _reference(settings: Judging, models: Sequence[str]) -> str:
    wanted = settings.reference_model or models[-1]
    if wanted not in models:
        raise UserError(f"reference_model is {wanted!r}; there are answers of {', '.join(models)}")
    return wanted


def judged(settings: Judging, only_plan: bool = False) -> Metrics:
    """Ask for the missing replies, write `judgements.jsonl`, and report."""
    made, prices, judge = setup(settings), settings.prices, settings.judge.model
    keyed = [(match.key(judge, settings.judge.options), match) for match in made.matches()]
    replies = Replies(Storage(settings.output) / "replies")
    different = dict(keyed)
    to_ask = {key: match for key, match in different.items() if not replies.answered(key)}
    num_before = len(different) - len(to_ask)
    guess = estimate(prices, list(to_ask.values()))
    log(
        f"judge: {len(keyed)} judgements by {judge}, {len(different)} different prompts, {num_before} answered before; "
        f"to ask: {guess.requests}, about {guess.text(prices)}"
    )
    if prices.max_cost is not None and guess.dollars > prices.max_cost:
        raise UserError(
            f"asking {guess.requests} prompts would cost about {guess.dollars:.2f} dollars, "
            f"prices.max_cost is {prices.max_cost:g}; raise it, or set limit"
        )
    if only_plan:
        return {"matches": len(keyed), "different": len(different), "estimate": guess.metrics()}
    requests = JudgeRequests(settings, replies)
    requests.run(to_ask, num_before)
    lines = {key: _reply(replies, key) for key in different}
    total = sum((cost_of(prices, match, lines[key]) for key, match in different.items()), Cost())
    log(
        f"judge: {requests.spent.requests} requests, {requests.retries} retries: {requests.spent.text(prices)}; "
        f"with those before {total.text(prices)}"
    )
    cost = {"estimate": guess.metrics(), "spent": requests.spent.metrics(), "with_those_before": total.metrics()}
    # Whoever reads the report knows whether answers are still those that were judged.
    answers = {a.model: {"questions": len(made.questions), "digest": a.digest(made.questions)} for a in made.answers}
    about = {"judge": judge, "answers": answers, "cost": cost | {"retries": requests.retries}}
    return _reported(settings, _verdicts(settings, keyed, lines), [a.model for a in made.answers], about)


def _reply(replies: Replies, key: str) -> Mapping[str, Any]:
    line = replies.get(key)
    assert line is not None, "every match was asked"
    return line


def _verdicts(
    settings: Judging, keyed: Sequence[tuple[str, Match]], lines: Mapping[str, Mapping[str, Any]]
) -> list[Verdict]:
    """Write `judgements.jsonl`, a line for each match; returns its verdicts."""
    found = [(match, key, lines[key]["reply"], lines[key]["error"]) for key, match in keyed]
    judge = settings.judge.model
    stored = [judgement_line(match, judge, key, reply, error) for match, key, reply, error in found]
    (Storage(settings.output) / "judgements.jsonl").write_bytes(jsonl(stored))
    return [verdict(match, judge, reply, error) for match, _, reply, error in found]


def scored(settings: Judging, only_plan: bool = False) -> Metrics:
    """Report stored judgements; `only_plan`: count them."""
    categories = {q.id: q.category for q in read_questions(settings.questions)} if settings.questions else {}
    wanted = settings.judge.model
    found = [v for uri in settings.judgements for v in read_verdicts(uri, categories)]
    found = [v for v in found if v.kind in settings.kinds and wanted in ("", v.judge)]
    judges = sorted({v.judge for v in found})
    if len(judges) != 1:
        whose = ", ".join(judges) or f"nobody{f' called {wanted}' if wanted else ''}"
        raise UserError(f"the stored judgements are by {whose}; name one judge in judge.model")
    verdicts, repeated = latest(found)
    if repeated:
        warn(f"{repeated} judgements are stored more than once; the last of each counts")
    if only_plan:
        log(f"judge: {len(verdicts)} stored judgements by {judges[0]}, nothing to ask")
        return {"judgements": len(verdicts), "judge": judges[0], "repeated": repeated}
    return _reported(settings, verdicts, models_of(verdicts), {"judge": judges[0], "repeated": repeated})


def _reported(settings: Judging, verdicts: Sequence[Verdict], models: Sequence[str], about: Metrics) -> Metrics:
    """The report as files, as tables, and as the job's last line."""
    output = Storage(settings.output)
    report = about | metrics_of(verdicts, models, _reference(settings, models), settings.resamples, settings.seed)
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (output / "report.json").write_json(
        report | {"settings": without_secrets(settings.model_dump(mode="json")), "finished": finished}
    )
    draw_report(report, f"judged by {report['judge']}", output / "report.png")
    for line in report_lines(report):
        log(line)
    return {"output": output.uri, **report}


def log(text: str) -> None:
    log_event(text, "log")


def main(argv: Sequence[str]) -> None:
    # The file is optional here: all settings have names of their own, and no run's preset is read.
    has_file = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    settings, flags = command_line(Judging, [*([] if has_file else [os.devnull]), *argv], PROGRAM, __doc__ or "", FLAGS)
    with user_errors_reported(PROGRAM, "the same command continues where it was"):
        work = scored if settings.judgements else judged
        if "plan" in flags:
            print_last_line(work(settings, only_plan=True))
            return
        # Two judges at once would ask, and pay, for the same replies twice.
        with held(lease_of(Storage(settings.output)), PROGRAM):
            done = work(settings)
        print_last_line(done)


if __name__ == "__main__":
    main(sys.argv[1:])
