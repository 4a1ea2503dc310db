"""Have answers judged by any OpenAI-compatible endpoint, in pairs and one by one; or score stored judgements again, without a judge.

    python -m jobs.judge [JUDGE.yaml] questions=PATH answers=[OURS.jsonl,REFERENCE.jsonl] judge.model=NAME [key.path=value ...]
    python -m jobs.judge judgements=[PATH] [questions=PATH]

Every reply is kept as it comes, by what was asked: a killed job goes on without asking twice. What cannot be read or failed is counted and kept, too.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from cluster.progress import Progress
from cluster.settings.load import command_line
from data.benchmarks import jsonl, read_answers, read_questions
from data.comparisons import Metrics, latest, models_of
from data.errors import UserError
from data.judge_prompts import SHIPPED, Match, Setup, read_judge_prompts
from data.storage import Storage
from data.verdicts import Verdict, judgement_line, read_verdicts, verdict
from jobs.judging.endpoint import Failure, JudgeEndpoint, JudgeReply, JudgeUnusable
from jobs.judging.replies import Replies
from jobs.judging.report import draw_report, metrics_of, report_lines
from jobs.judging.settings import Judging
from jobs.runner.ending import print_last_line, user_errors_reported

PROGRAM = "python -m jobs.judge"
SHOWN_FAILURES = 10
"""Failed requests that are told one by one."""
FLAGS = {"plan": "print what would be asked and about what it would cost, and end without asking"}


@dataclass(frozen=True)
class Cost:
    """Tokens, and dollars where there are prices."""

    requests: int = 0
    prompt_tokens: float = 0
    reply_tokens: float = 0
    dollars: float = 0
    guessed: int = 0
    """Requests whose tokens nobody counted, so that they follow from characters."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def metrics(self) -> Metrics:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def setup(settings: Judging) -> Setup:
    """Everything that is read; raises UserError for what cannot be judged."""
    answers = [read_answers(uri) for uri in settings.answers]
    models = [a.model for a in answers]
    for model in models:
        if models.count(model) > 1:
            raise UserError(
                f"two answer files are of {model!r}; answers has one file a model (model_id of jobs.answer names them)"
            )
    if not settings.effective_kinds:
        raise UserError(
            f"kinds is {', '.join(settings.kinds)}, but there is one answer file and pairs take two; add one to answers, or set kinds=[single]"
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
            f"{len(missing)} questions of math, reasoning or coding have no reference answer (references): they are judged as all others"
        )
    return made


def _reference(settings: Judging, models: Sequence[str]) -> str:
    wanted = settings.reference_model or models[-1]
    if wanted not in models:
        raise UserError(f"reference_model is {wanted!r}; there are answers of {', '.join(models)}")
    return wanted


def estimate(settings: Judging, matches: Sequence[Match]) -> Cost:
    """Before anything is asked, from characters."""
    prices = settings.prices
    prompt = sum(prices.tokens(m.system + m.prompt) for m in matches)
    reply = float(len(matches) * prices.reply_tokens)
    return Cost(len(matches), prompt, reply, prices.cost(prompt, reply), len(matches))


def cost_of(settings: Judging, match: Match, line: Mapping[str, Any]) -> Cost:
    """Of one reply: as the judge counted, else from characters; a failed request is taken to cost nothing."""
    prices = settings.prices
    if line["error"]:
        return Cost(1)
    counted = line["prompt_tokens"] is not None and line["reply_tokens"] is not None
    prompt = line["prompt_tokens"] if counted else prices.tokens(match.system + match.prompt)
    reply = line["reply_tokens"] if counted else prices.tokens(line["reply"])
    return Cost(1, prompt, reply, prices.cost(prompt, reply), int(not counted))


class JudgeRequests:
    """All matches to the judge, so many at a time; what it costs is added up, and ends the job at `prices.max_cost`."""

    def __init__(self, settings: Judging, replies: Replies):
        self._settings, self._replies = settings, replies
        self._lock = threading.Lock()
        self.spent = Cost()
        self.retries = 0
        self._failures = 0

    def run(self, to_ask: Mapping[str, Match], num_before: int) -> None:
        """Raises JudgeUnusable; what was answered until then is kept."""
        if not to_ask:
            return
        endpoint = JudgeEndpoint(self._settings.judge)
        total = len(to_ask) + num_before
        with (
            Progress("judge", total, total, num_before, num_before) as progress,
            ThreadPoolExecutor(self._settings.judge.concurrency) as pool,
        ):
            futures = [pool.submit(self._one, endpoint, key, match) for key, match in to_ask.items()]
            try:
                for future in as_completed(futures):
                    progress.add(1, future.result())
            except BaseException:
                # Those on their way are paid for: they are waited for and kept; the pool's end sees to it.
                endpoint.stop("the job was stopped")
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        endpoint.close()

    def _one(self, endpoint: JudgeEndpoint, key: str, match: Match) -> float:
        """Tokens of one exchange."""
        outcome = endpoint.ask(match.system, match.prompt)
        self._replies.keep(key, self._settings.judge.model, outcome)
        line = self._replies.get(key)
        assert line is not None, "it was just kept"
        cost = cost_of(self._settings, match, line) if isinstance(outcome, JudgeReply) else Cost(1)
        with self._lock:
            self.spent += cost
            self.retries += outcome.retries
            self._failures += isinstance(outcome, Failure)
            failures = self._failures if isinstance(outcome, Failure) else 0
            spent = self.spent.dollars
        if isinstance(outcome, Failure) and failures <= SHOWN_FAILURES:
            warn(
                f"question {match.question_id}, turn {match.turn}, {' and '.join(match.models)}: {outcome.reason}: {outcome.detail}"
            )
        if failures == SHOWN_FAILURES + 1:
            warn(f"more than {SHOWN_FAILURES} failures: the others are only counted; replies has what was said of each")
        limit = self._settings.prices.max_cost
        if limit is not None and spent >= limit:
            why = f"the judge has cost {spent:.2f} dollars, prices.max_cost is {limit:g}; what was judged is kept: raise it to go on from there"
            endpoint.stop(why)
            raise JudgeUnusable(why)
        return cost.prompt_tokens + cost.reply_tokens


def judged(settings: Judging, only_plan: bool = False) -> Metrics:
    """Ask what has not been answered yet, write `judgements.jsonl`, and report."""
    made = setup(settings)
    matches = list(made.matches())
    output, judge = Storage(settings.output), settings.judge.model
    replies = Replies(output / "replies")
    keys = [match.key(judge, settings.judge.options) for match in matches]
    different = dict(zip(keys, matches, strict=True))
    to_ask = {key: match for key, match in different.items() if not replies.answered(key)}
    guess = estimate(settings, list(to_ask.values()))
    log(
        f"judge: {len(matches)} judgements by {judge}, {len(different)} different prompts, {len(different) - len(to_ask)} answered before; to ask: "
        f"{guess.requests}, about {_said(settings, guess)}"
    )
    limit = settings.prices.max_cost
    if limit is not None and guess.dollars > limit:
        raise UserError(
            f"asking {guess.requests} prompts would cost about {guess.dollars:.2f} dollars, prices.max_cost is {limit:g}; raise it, or set limit"
        )
    if only_plan:
        return {"matches": len(matches), "different": len(different), "estimate": guess.metrics()}
    asking = JudgeRequests(settings, replies)
    asking.run(to_ask, len(different) - len(to_ask))
    lines = {key: _reply(replies, key) for key in different}
    stored = [
        judgement_line(m, judge, key, lines[key]["reply"], lines[key]["error"])
        for key, m in zip(keys, matches, strict=True)
    ]
    (output / "judgements.jsonl").write_bytes(jsonl(stored))
    verdicts = [
        verdict(m, judge, lines[key]["reply"], lines[key]["error"]) for key, m in zip(keys, matches, strict=True)
    ]
    total = sum((cost_of(settings, m, lines[key]) for key, m in different.items()), Cost())
    log(
        f"judge: {asking.spent.requests} requests, {asking.retries} repeated: {_said(settings, asking.spent)}; with those before {_said(settings, total)}"
    )
    cost = {
        "estimate": guess.metrics(),
        "spent": asking.spent.metrics(),
        "with_those_before": total.metrics(),
        "retries": asking.retries,
    }
    return _reported(settings, verdicts, [a.model for a in made.answers], {"judge": judge, "cost": cost})


def log(text: str) -> None:
    print(text, flush=True)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _reply(replies: Replies, key: str) -> Mapping[str, Any]:
    line = replies.get(key)
    assert line is not None, "every match was asked"
    return line


def _said(settings: Judging, cost: Cost) -> str:
    priced = settings.prices.prompt_dollars or settings.prices.reply_dollars
    return f"{cost.prompt_tokens:,.0f} + {cost.reply_tokens:,.0f} tokens, {f'{cost.dollars:.2f} dollars' if priced else 'prices not set'}"


def scored(settings: Judging) -> Metrics:
    """Report stored judgements."""
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
    return _reported(settings, verdicts, models_of(verdicts), {"judge": judges[0], "repeated": repeated})


def _reported(settings: Judging, verdicts: Sequence[Verdict], models: Sequence[str], about: Metrics) -> Metrics:
    """The report as files, as a table, and as the job's last line."""
    output = Storage(settings.output)
    report = about | metrics_of(verdicts, models, _reference(settings, models), settings.resamples, settings.seed)
    written = {
        "settings": settings.model_dump(mode="json"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (output / "report.json").write_json(report | written)
    draw_report(report, f"judged by {report['judge']}", output / "report.png")
    for line in report_lines(report):
        log(line)
    return {"output": output.uri, **report}


def main(argv: Sequence[str]) -> None:
    # The file is optional here: all settings have names of their own, and no run's preset is read.
    has_file = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    settings, flags = command_line(Judging, [*([] if has_file else [os.devnull]), *argv], PROGRAM, __doc__ or "", FLAGS)
    with user_errors_reported(PROGRAM, "the same command goes on where it was"):
        print_last_line(scored(settings) if settings.judgements else judged(settings, "plan" in flags))


if __name__ == "__main__":
    main(sys.argv[1:])
