"""Send all matches to the judge, several at a time, keep every reply, and stop at the cost limit."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

from cluster.events import log_event
from cluster.progress import Progress
from data.judge_prompts import Match
from jobs.judge_client.endpoint import Failure, JudgeEndpoint, JudgeReply, JudgeUnusable
from jobs.judge_client.replies import Replies
from jobs.judging.cost import Cost, cost_of
from jobs.judging.settings import Judging
from jobs.runner.api_key import api_key

SHOWN_FAILURES = 10
"""Failed requests that are printed one by one."""


class JudgeRequests:
    """Counts cost, retries and failures over all threads."""

    def __init__(self, settings: Judging, replies: Replies):
        self._settings, self._replies = settings, replies
        self._lock = threading.Lock()
        self.spent = Cost()
        self.retries = 0
        self._failures = 0

    def run(self, to_ask: Mapping[str, Match], num_before: int) -> None:
        """Raises JudgeUnusable, or UserError without a key; the replies until then are kept."""
        if not to_ask:
            return
        endpoint = JudgeEndpoint(self._settings.judge, api_key(self._settings.judge, "judge", "the judge's"))
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
                # Requests on their way are paid for: the end of the pool waits for them and keeps their replies.
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
        prices = self._settings.prices
        cost = cost_of(prices, match, line) if isinstance(outcome, JudgeReply) else Cost(1)
        with self._lock:
            self.spent += cost
            self.retries += outcome.retries
            self._failures += isinstance(outcome, Failure)
            spent, failures = self.spent.dollars, self._failures
        if isinstance(outcome, Failure):
            self._warn(match, outcome, failures)
        if prices.max_cost is not None and spent >= prices.max_cost:
            why = f"the judge has cost {spent:.2f} dollars, prices.max_cost is {prices.max_cost:g}; "
            why += "all replies are kept: raise it to continue from there"
            endpoint.stop(why)
            raise JudgeUnusable(why)
        return cost.prompt_tokens + cost.reply_tokens

    @staticmethod
    def _warn(match: Match, failure: Failure, number: int) -> None:
        if number <= SHOWN_FAILURES:
            about = f"question {match.question_id}, turn {match.turn}, {' and '.join(match.models)}"
            warn(f"{about}: {failure.reason}: {failure.detail}")
        elif number == SHOWN_FAILURES + 1:
            warn(f"more than {SHOWN_FAILURES} failures: the others are only counted; replies/ has the details of each")


def warn(text: str) -> None:
    log_event(text, "warning", "warning")
