"""How much each team may use: answers at the same time and tokens per minute. Knows no keys, no HTTP and no policy.

Tokens are held when a request is admitted, counted as they are used, and the rest is given back when it ends. So what
runs at the same time can never use more together than the budget has.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.auth import Team
from serve.backlog import Backlog
from serve.protocol import ProtocolError

WINDOW_S = 60.0


@dataclass(frozen=True)
class RequestCost:
    """The most tokens that one request can use."""

    prompt: int
    """At most so many: it is not tokenized yet."""
    num_answers: int
    max_tokens: int
    """Of each answer."""
    num_rated: int = 0
    """Answers that the predictor reads, each with its conversation."""
    max_rated: int = 0
    """The most that it reads of each."""
    asked_by: str = "n"
    """The field with the number of answers."""

    def total(self, prompt: int) -> int:
        """With a prompt of `prompt` tokens."""
        return prompt + self.num_answers * self.max_tokens + self.num_rated * self.rated(prompt, self.max_tokens)

    def rated(self, prompt: int, answer: int) -> int:
        """What rating one answer of `answer` tokens costs."""
        return min(prompt + answer, self.max_rated)


FREE = RequestCost(0, 0, 0)


class Budget:
    """The tokens of one team: `spent` within the last minute, and `held` by requests that run."""

    def __init__(self, team: Team, clock: Callable[[], float]):
        self._team, self._clock = team, clock
        self.held = 0
        self._spent: deque[tuple[float, int]] = deque()
        """(end of a second, tokens used in it), however many requests used them."""
        self._total = 0

    @property
    def limited(self) -> bool:
        return self._team.tokens_per_minute is not None

    @property
    def spent(self) -> int:
        now = self._clock()
        while self._spent and self._spent[0][0] <= now - WINDOW_S:
            self._total -= self._spent.popleft()[1]
        return self._total

    def spend(self, tokens: int) -> None:
        if not self.limited:
            return
        second = math.floor(self._clock()) + 1.0  # its end: no token leaves the window too early
        if self._spent and self._spent[-1][0] == second:
            tokens_before = self._spent.pop()[1]
            self._spent.append((second, tokens_before + tokens))
        else:
            self._spent.append((second, tokens))
        self._total += tokens

    def require_possible(self, cost: RequestCost, prompt: int) -> None:
        """Raises ProtocolError (400) if the request needs more than a whole minute's tokens: it must change."""
        limit = self._team.tokens_per_minute
        if limit is None or cost.total(prompt) <= limit:
            return
        parts = [f"{prompt} for the prompt"] if prompt else []
        answers = "1 answer" if cost.num_answers == 1 else f"{cost.num_answers} answers"
        parts.append(f"{cost.num_answers * cost.max_tokens} for {answers} of up to {cost.max_tokens}")
        if cost.num_rated:
            parts.append(f"{cost.num_rated * cost.rated(prompt, cost.max_tokens)} to rate {cost.num_rated} of them")
        wrong = f"this request may use {cost.total(prompt)} tokens ({', '.join(parts)})"
        remedy = "lower max_tokens, best_of or n, or shorten messages"
        message = f"{wrong}, but team {self._team.name!r} has {limit} per minute: {remedy}"
        raise ProtocolError(message, "max_tokens", "request_exceeds_budget")

    def hold(self, cost: RequestCost) -> int:
        """Hold the most that a request can use; raises ProtocolError (429) if the budget has no room for it now."""
        limit = self._team.tokens_per_minute
        if limit is None:
            return 0
        self.require_possible(cost, 0)
        # A bound above the whole budget may be only the bound of a prompt that is not tokenized yet.
        tokens = min(cost.total(cost.prompt), limit)
        over = self.spent + self.held + tokens - limit
        if over > 0:
            wait_s = self._wait_s(over)
            used = f"team {self._team.name!r} has used {self.spent} of its {limit} tokens per minute"
            asks = f"running requests hold {self.held}, and this one may need {tokens}"
            raise _limited(f"{used}, {asks}: try again in {wait_s} s", wait_s)
        self.held += tokens
        return tokens

    def _wait_s(self, tokens: int) -> int:
        """Until so many have left the window; a second if only the end of running requests can give them back."""
        for at, spent in self._spent:
            tokens -= spent
            if tokens <= 0:
                return max(1, math.ceil(at + WINDOW_S - self._clock()))
        return 1


class Reservation:
    """What one request holds of its team's budget."""

    def __init__(self, budget: Budget, cost: RequestCost):
        """Raises ProtocolError if the budget has no room for it."""
        self._budget, self._cost = budget, cost
        self._total = budget.hold(cost)
        self._used = 0
        self._held = self._total

    def correct(self, prompt: int) -> None:
        """The prompt has `prompt` tokens. Raises ProtocolError (400) if such a request can never be admitted."""
        if self._budget.limited:
            self._budget.require_possible(self._cost, prompt)
            self._total = self._cost.total(prompt)
            self._hold(self._total - self._used)

    def use(self, tokens: int) -> None:
        """The request has used so many tokens up to now."""
        if tokens > self._used:
            self._budget.spend(tokens - self._used)
            self._used = tokens
            self._hold(min(self._held, max(0, self._total - tokens)))

    def settle(self) -> None:
        """Give back what was not used. A second call changes nothing."""
        self._hold(0)

    def _hold(self, tokens: int) -> None:
        self._budget.held += tokens - self._held
        self._held = tokens


class RateLimiter:
    """Holds what each team uses against its limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._running: dict[str, int] = defaultdict(int)
        self._budgets: dict[str, Budget] = {}
        self._queues: dict[str, Backlog] = {}

    @contextmanager
    def answers(self, team: Team, number: int, cost: RequestCost = FREE) -> Iterator[Reservation]:
        """Count `number` answers as running and hold their tokens; both end with the context, however it ends.

        Raises ProtocolError (429) if a limit is reached, or (400) if a request like this can never be admitted.
        """
        running, limit = self._running[team.name], team.max_concurrent
        queue = self._queues.setdefault(team.name, Backlog(self._clock))
        if limit is not None and number > limit:
            wrong = f"this request asks for {number} answers, and team {team.name!r} may have {limit} at the same time"
            raise ProtocolError(f"{wrong}: lower {cost.asked_by}", cost.asked_by, "request_exceeds_limit")
        if limit is not None and running + number > limit:
            running_now = f"team {team.name!r} has {running} answers running and asks for {number} more"
            raise _limited(f"{running_now}; its limit is {limit}", queue.retry_after_s())
        budget = self._budgets.setdefault(team.name, Budget(team, self._clock))
        reservation = Reservation(budget, cost)
        self._running[team.name] += number
        try:
            with queue.inside() as begin:
                begin()
                yield reservation
        finally:
            self._running[team.name] -= number
            reservation.settle()


def _limited(message: str, retry_after_s: int) -> ProtocolError:
    return ProtocolError(message, code="rate_limit_exceeded", status=429, retry_after_s=retry_after_s)
