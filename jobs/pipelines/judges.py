"""The judges of a run's raters: each asked from one place, an actor of Ray, whichever worker has the answers.

One place keeps the budget, the pace and the replies; a worker holds no connection and no key.
"""

from collections.abc import Sequence
from typing import Any

import ray

from data.judge_rating import Judge, JudgeOutcome, JudgeRequest
from data.rater_metrics import JudgeSpending
from data.rater_settings import JudgeRaterSettings
from data.storage import Storage
from jobs.judge_client.budget import Budget
from jobs.judge_client.desk import JudgeDesk, spent
from jobs.judge_client.replies import Replies
from jobs.runner.api_key import api_key
from jobs.runner.stage import Run

JUDGE = "judge"
"""The folder of a run with all replies of judges: a stage that runs again asks for nothing twice."""
WORKERS_AT_ONCE = 1000
"""Workers that may wait for their replies at the same time."""


class RemoteJudge:
    """A desk in another process."""

    def __init__(self, desk: Any):
        self._desk = desk

    def replies(self, requests: Sequence[JudgeRequest]) -> list[JudgeOutcome]:
        found: list[JudgeOutcome] = ray.get(self._desk.replies.remote(requests))
        return found


def remote_judges(run: Run) -> dict[str, Judge]:
    """Rater -> its judge, started; it ends when nobody holds it. Raises UserError for a key that is not there."""
    raters = run.preset.annotate.raters
    return {rater.name: _started(run, rater) for rater in raters if isinstance(rater, JudgeRaterSettings)}


def _started(run: Run, rater: JudgeRaterSettings) -> Judge:
    # A desk that dies starts again, and finds in the folder what was answered.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=WORKERS_AT_ONCE)(JudgeDesk)
    key = api_key(rater.judge, "judge", "the judge's")
    return RemoteJudge(actor.remote(rater.judge, key, (run.root / JUDGE).uri, budget_of(rater)))


def budget_of(rater: JudgeRaterSettings) -> Budget:
    prices = rater.price_per_million_prompt_tokens, rater.price_per_million_completion_tokens
    return Budget(rater.budget_tokens, rater.max_cost, *prices)


def judge_spending(run: Run) -> dict[str, JudgeSpending]:
    """Rater -> what its judge has taken in the run so far."""
    raters = [rater for rater in run.preset.annotate.raters if isinstance(rater, JudgeRaterSettings)]
    return {rater.name: spending_in(run.root / JUDGE, rater) for rater in raters}


def spending_in(folder: Storage, rater: JudgeRaterSettings) -> JudgeSpending:
    usage = spent(Replies(folder), rater.judge.model)
    cost = round(budget_of(rater).cost(usage), 6) if rater.is_priced else None
    return JudgeSpending(prompt_tokens=int(usage.prompt), completion_tokens=int(usage.reply), cost=cost)
