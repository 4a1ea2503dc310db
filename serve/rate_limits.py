"""How much each team may use: answers at the same time and tokens per minute. Knows no keys, no HTTP and no policy.

Tokens are held when a request is admitted, counted as they are used, and the rest is given back when it ends. So what
runs at the same time can never use more together than the budget has. The `serve.ledger` of all ingresses grants; one
exchange with it carries all that was asked for and given back since the last one.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from serve.auth import Team
from serve.backlog import Backlog
from serve.ledger import Account, Refusal, Reply, Report, Window, Wish
from serve.protocol import ProtocolError

REPORT_S = 1.0
"""How often an ingress reports what its teams use while nobody asks for more."""
AGAIN_S = 0.25
"""After an exchange that failed, or with a ledger that is being restored."""
GRANT_TIMEOUT_S = 10.0
"""How long a request waits for the ledger; then it is refused, never let through."""
RELEASE_TIMEOUT_S = 1.0
"""How long the end of a request waits until what it gives back is known to all ingresses."""

Sync: TypeAlias = Callable[[Report], Awaitable[Reply]]
"""An exchange with the ledger; raises LimitsUnavailable."""


class LimitsUnavailable(RuntimeError):
    """The ledger did not answer."""


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
    num_rows: int = 1
    """Rows of the model that write each answer: 2 = guided. `prompt` is of all of them."""
    asked_by: str = "n"
    """The field with the number of answers."""

    def total(self, prompt: int) -> int:
        """With a prompt of `prompt` tokens."""
        return prompt + self.written + self.num_rated * self.rated(prompt, self.max_tokens)

    @property
    def written(self) -> int:
        """Tokens of all answers, in all rows."""
        return self.num_answers * self.max_tokens * self.num_rows

    def rated(self, prompt: int, answer: int) -> int:
        """What rating one answer of `answer` tokens costs."""
        return min(prompt + answer, self.max_rated)


FREE = RequestCost(0, 0, 0)


class TeamAccount:
    """What one team uses at this ingress."""

    def __init__(self, team: Team, clock: Callable[[], float]):
        self.team, self.window, self.backlog = team, Window(clock), Backlog(clock)
        self.running = self.held = self.used = 0

    @property
    def totals(self) -> Account:
        return Account(self.running, self.held, self.used)

    def spend(self, tokens: int) -> None:
        self.used += tokens
        self.window.add(tokens)

    def require_possible(self, cost: RequestCost, prompt: int) -> None:
        """Raises ProtocolError (400) if the request needs more than a whole minute's tokens: it must change."""
        limit = self.team.tokens_per_minute
        if limit is None or cost.total(prompt) <= limit:
            return
        parts = [f"{prompt} for the prompt"] if prompt else []
        answers = "1 answer" if cost.num_answers == 1 else f"{cost.num_answers} answers"
        twice = ", twice because of guidance" if cost.num_rows > 1 else ""
        parts.append(f"{cost.written} for {answers} of up to {cost.max_tokens}{twice}")
        if cost.num_rated:
            parts.append(f"{cost.num_rated * cost.rated(prompt, cost.max_tokens)} to rate {cost.num_rated} of them")
        wrong = f"this request may use {cost.total(prompt)} tokens ({', '.join(parts)})"
        remedy = "lower max_tokens, best_of or n, or shorten messages"
        message = f"{wrong}, but team {self.team.name!r} has {limit} per minute: {remedy}"
        raise ProtocolError(message, "max_tokens", "request_exceeds_budget")

    def most(self, cost: RequestCost) -> int:
        """What a request has to hold; raises ProtocolError (400) if it can never be admitted."""
        limit = self.team.tokens_per_minute
        if limit is None:
            return 0
        self.require_possible(cost, 0)
        # A bound above the whole budget may be only the bound of a prompt that is not tokenized yet.
        return min(cost.total(cost.prompt), limit)


class Reservation:
    """What one request holds of its team's budget."""

    def __init__(self, account: TeamAccount | None, cost: RequestCost = FREE, held: int = 0):
        """`held`: granted already. No account: the team has no limits."""
        self._account = None if account is None or account.team.tokens_per_minute is None else account
        self._cost, self._total, self._held = cost, held, held
        self._used = 0

    def correct(self, prompt: int) -> None:
        """The prompt has `prompt` tokens. Raises ProtocolError (400) if such a request can never be admitted."""
        if self._account is not None:
            self._account.require_possible(self._cost, prompt)
            self._total = self._cost.total(prompt)
            # Never more than was granted: the prompt's bound is one.
            self._hold(min(self._held, max(0, self._total - self._used)))

    def use(self, tokens: int) -> None:
        """The request has used so many tokens up to now."""
        if self._account is not None and tokens > self._used:
            self._account.spend(tokens - self._used)
            self._used = tokens
            self._hold(min(self._held, max(0, self._total - tokens)))

    def settle(self) -> None:
        """Give back what was not used. A second call changes nothing."""
        self._hold(0)

    def _hold(self, tokens: int) -> None:
        if self._account is not None:
            self._account.held += tokens - self._held
            self._held = tokens


@dataclass(eq=False)
class _Asked:
    """A wish on its way to the ledger."""

    account: TeamAccount
    wish: Wish
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, refusal: Refusal | None) -> None:
        if self.granted.done():  # its caller is gone, or has waited for too long
            return
        if refusal is None:
            self.account.running += self.wish.answers
            self.account.held += self.wish.tokens
            self.granted.set_result(None)
        else:
            wait_s = self.account.backlog.retry_after_s() if refusal.wait_s is None else refusal.wait_s
            problem = ProtocolError(refusal.message, code="rate_limit_exceeded", status=429, retry_after_s=wait_s)
            self.granted.set_exception(problem)

    def leave(self) -> None:
        """Nobody waits for it any more."""
        if self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None:
            self.account.running -= self.wish.answers
            self.account.held -= self.wish.tokens
        self.granted.cancel()


class RateLimiter:
    """Holds what each team uses at this ingress against its limits."""

    def __init__(self, sync: Sync, clock: Callable[[], float] = time.monotonic):
        self._sync, self._clock = sync, clock
        self._name, self._number = uuid.uuid4().hex, 0
        self._accounts: dict[str, TeamAccount] = {}
        self._asked: list[_Asked] = []
        self._now: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def answers(self, team: Team, number: int, cost: RequestCost = FREE) -> AsyncGenerator[Reservation, None]:
        """Count `number` answers as running and hold their tokens; both end with the context, however it ends.

        Raises ProtocolError (429) if a limit is reached, (400) if a request like this can never be admitted, or (503)
        if the ledger does not answer.
        """
        if not team.is_limited:
            yield Reservation(None)
            return
        account = self._accounts.setdefault(team.name, TeamAccount(team, self._clock))
        if team.max_concurrent is not None and number > team.max_concurrent:
            limit = f"team {team.name!r} may have {team.max_concurrent} at the same time"
            wrong = f"this request asks for {number} answers, and {limit}"
            raise ProtocolError(f"{wrong}: lower {cost.asked_by}", cost.asked_by, "request_exceeds_limit")
        tokens = account.most(cost)
        await self._grant(account, Wish(team.name, number, tokens))
        reservation = Reservation(account, cost, tokens)
        try:
            with account.backlog.inside() as begin:
                begin()
                yield reservation
        finally:
            account.running -= number
            reservation.settle()
            # A caller's next request may come to another ingress, and must find this one's end there.
            await asyncio.wait([self._soon()], timeout=RELEASE_TIMEOUT_S)

    async def keep_reporting(self) -> None:
        """Report what is used every REPORT_S; without it the ledger takes this ingress for dead."""
        while True:
            await asyncio.sleep(REPORT_S)
            if self._accounts:
                await asyncio.wait([self._soon()])

    async def _grant(self, account: TeamAccount, wish: Wish) -> None:
        asked = _Asked(account, wish)
        self._asked.append(asked)
        self._soon()
        try:
            async with asyncio.timeout(GRANT_TIMEOUT_S):
                await asked.granted
        except TimeoutError:
            asked.leave()
            message = "the limits of this team cannot be checked now, so nothing is answered: try again in 3 s"
            raise ProtocolError(message, code="limits_unavailable", status=503, retry_after_s=3) from None
        except asyncio.CancelledError:
            asked.leave()
            raise

    def _soon(self) -> asyncio.Task[None]:
        """The next exchange, which takes along all that happens until it begins."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._exchange(self._now))
        return self._next

    async def _exchange(self, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._now, self._next = self._next, None
        asked, self._asked = self._asked, []
        has_history = False
        while True:
            asked = [one for one in asked if not one.granted.done()]
            try:
                reply = await self._sync(self._report(asked, has_history))
            except LimitsUnavailable:
                reply = Reply("restoring")
            if reply.state == "granting":
                for one, refusal in zip(asked, reply.refusals, strict=True):
                    one.settle(refusal)
                return
            if not asked and (reply.state == "restoring" or has_history):
                return
            has_history = reply.state == "unknown"
            if not has_history:
                await asyncio.sleep(AGAIN_S)

    def _report(self, asked: Sequence[_Asked], has_history: bool) -> Report:
        self._number += 1
        return Report(
            self._name,
            self._number,
            {name: account.totals for name, account in self._accounts.items()},
            tuple(one.wish for one in asked),
            {name: account.window.entries() for name, account in self._accounts.items()} if has_history else None,
        )
