"""Limits over several ingresses: one grants, and whoever dies leaves the limits as they were, or tighter."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack

import pytest
from support.asgi import USER, Answered, app_around, exchanged
from support.manual_clock import ManualClock
from test_serve_budgets import BUDGET, PROMPT, TEAM, Tokens

import serve.rate_limits
from serve.auth import Team, hashed
from serve.ledger import LOST_S, RESTORE_S, WINDOW_S, Account, Ledger, Report, Wish
from serve.protocol import ProtocolError
from serve.rate_limits import LimitsUnavailable, RateLimiter, RequestCost

GAMES = Team(name="games", tokens_per_minute=100, max_concurrent=3)
SHORT = pytest.mark.usefixtures("_short_waits")
FORTY = RequestCost(prompt=0, num_answers=1, max_tokens=40)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(clock: ManualClock) -> Ledger:
    return Ledger([GAMES], clock)


class Replaceable:
    """The way of an ingress to a ledger that may be another one later, or none."""

    def __init__(self, ledger: Ledger | None):
        self.ledger = ledger

    async def __call__(self, report: Report) -> serve.rate_limits.Reply:
        if self.ledger is None:
            raise LimitsUnavailable
        return self.ledger.sync(report)


@pytest.fixture
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.rate_limits, "AGAIN_S", 0.01)
    monkeypatch.setattr(serve.rate_limits, "GRANT_TIMEOUT_S", 0.2)


async def granted(limiter: RateLimiter, cost: RequestCost = FORTY, team: Team = GAMES) -> str | None:
    """Why not."""
    try:
        async with limiter.answers(team, 1, cost):
            return None
    except ProtocolError as problem:
        return problem.code


@pytest.mark.case("limits over several ingresses: 500 requests at the same time")
@pytest.mark.parametrize("fields", [{"max_tokens": 40}, {"max_tokens": 40, "stream": True}, {"max_tokens": 20, "n": 4}])
def test_two_ingresses_together_spend_no_more_than_the_budget(fields: dict[str, object]) -> None:
    tokens, ledger = Tokens(), Ledger([TEAM])
    apps = [
        app_around(tokens.generate, teams=[TEAM], keys_text=f"games {hashed('key')}", ledger=ledger) for _ in range(2)
    ]
    body = json.dumps({"messages": [USER], **fields}).encode()

    async def go() -> Counter[tuple[int, int]]:
        def asked(i: int) -> Awaitable[Answered]:
            return exchanged(apps[i % 2], "POST", "/v1/chat/completions", body, key="key")

        answers = [*await asyncio.gather(*map(asked, range(500))), *[await asked(i) for i in range(30)]]
        return Counter((answer.status, i % 2) for i, answer in enumerate(answers))

    found = asyncio.run(go())
    assert {status for status, _ in found} == {200, 429}
    assert found[200, 0] > 0
    assert found[200, 1] > 0
    num_answered = found[200, 0] + found[200, 1]
    assert BUDGET / 2 < tokens.written + PROMPT * num_answered <= BUDGET


def test_what_one_ingress_uses_another_cannot(ledger: Ledger, clock: ManualClock) -> None:
    async def go() -> None:
        one, two = RateLimiter(ledger, clock), RateLimiter(ledger, clock)
        async with one.answers(GAMES, 1, FORTY) as reservation, two.answers(GAMES, 1, FORTY):
            assert await granted(two) == "rate_limit_exceeded"
            assert await granted(one) == "rate_limit_exceeded"
            reservation.use(10)
        async with one.answers(GAMES, 1, FORTY), two.answers(GAMES, 1, FORTY):
            assert await granted(two, RequestCost(0, 1, 10)) is None, "10 are used, and 80 are held"
            assert await granted(two, RequestCost(0, 1, 11)) == "rate_limit_exceeded"
        async with AsyncExitStack() as stack:
            for limiter in (one, two, one):
                await stack.enter_async_context(limiter.answers(GAMES, 1))
            assert await granted(two, RequestCost(0, 0, 0)) == "rate_limit_exceeded"

    asyncio.run(go())


@pytest.mark.case("the ledger of the limits dies")
@SHORT
def test_a_ledger_that_starts_anew_grants_nothing_until_it_knows_what_all_use(clock: ManualClock) -> None:
    async def go() -> None:
        first = Ledger([GAMES], clock)
        line, other = Replaceable(first), Replaceable(first)
        one, two = RateLimiter(line, clock), RateLimiter(other, clock)
        async with one.answers(GAMES, 1, FORTY) as running:
            running.use(30)
            async with two.answers(GAMES, 1, FORTY) as ended:
                ended.use(35)
            assert len(first.ingresses) == 2
            line.ledger = other.ledger = None
            assert await granted(one) == "limits_unavailable", "never open"
            line.ledger = second = Ledger([GAMES], clock, expected=first.ingresses)
            assert await granted(one) == "limits_unavailable", "what the other one used is not known yet"
            other.ledger = second
            assert await granted(two) == "rate_limit_exceeded", "65 are used, and 10 are held"
            assert await granted(one, RequestCost(0, 1, 26)) == "rate_limit_exceeded"
            assert await granted(one, RequestCost(0, 1, 25)) is None
            running.use(40)
        assert second.ingresses == first.ingresses
        assert await granted(two, RequestCost(0, 1, 25)) is None
        assert await granted(two, RequestCost(0, 1, 26)) == "rate_limit_exceeded"

    asyncio.run(go())


@pytest.mark.case("the ledger of the limits dies, and an ingress with it")
@SHORT
def test_what_nobody_can_tell_any_more_counts_as_used_up(clock: ManualClock) -> None:
    async def go() -> None:
        line = Replaceable(Ledger([GAMES], clock, expected=["gone"]))
        limiter = RateLimiter(line, clock)
        assert await granted(limiter) == "limits_unavailable"
        clock.now += RESTORE_S
        assert await granted(limiter) == "rate_limit_exceeded"
        clock.now += WINDOW_S + 1
        assert await granted(limiter) is None

    asyncio.run(go())


@pytest.mark.case("an ingress dies")
def test_answers_of_a_dead_ingress_run_no_more_and_their_tokens_come_back_in_a_minute(
    ledger: Ledger, clock: ManualClock
) -> None:
    async def go() -> None:
        line = Replaceable(ledger)
        dead, alive = RateLimiter(line, clock), RateLimiter(ledger, clock)
        async with dead.answers(GAMES, 3, RequestCost(0, 3, 20)):
            line.ledger = None
            assert await granted(alive, RequestCost(0, 1, 1)) == "rate_limit_exceeded"
            clock.now += LOST_S + 1
            assert await granted(alive, RequestCost(0, 1, 40)) is None, "three answers run no more"
            assert await granted(alive, RequestCost(0, 1, 41)) == "rate_limit_exceeded", "they may have used all"
            assert len(ledger.ingresses) == 2, "a ledger that starts now does not know what the dead one used"
            clock.now += LOST_S + WINDOW_S
            assert await granted(alive, RequestCost(0, 1, 100)) is None
            assert len(ledger.ingresses) == 1

    asyncio.run(go())


def test_an_ingress_that_was_only_slow_is_not_counted_twice(ledger: Ledger, clock: ManualClock) -> None:
    async def go() -> None:
        slow, other = RateLimiter(ledger, clock), RateLimiter(ledger, clock)
        async with slow.answers(GAMES, 1, FORTY) as reservation:
            reservation.use(40)
        clock.now += LOST_S + 1
        assert await granted(other, RequestCost(0, 1, 60)) is None
        assert await granted(slow, RequestCost(0, 1, 60)) is None
        assert await granted(slow, RequestCost(0, 1, 61)) == "rate_limit_exceeded"

    asyncio.run(go())


@pytest.mark.case("a report is overtaken by a later one")
def test_reports_are_totals(ledger: Ledger) -> None:
    def report(number: int, used: int, history: object = None, *wishes: Wish) -> str:
        accounts = {"games": Account(used=used)}
        return ledger.sync(Report("one", number, accounts, wishes, history)).state  # type: ignore[arg-type]

    assert report(1, 20) == "unknown"
    assert report(2, 20, {"games": ((0.0, 20),)}) == "granting"
    assert report(3, 50) == "granting"
    assert report(3, 50) == "restoring", "the same again"
    assert report(2, 20) == "restoring"
    refusal = ledger.sync(Report("one", 4, {"games": Account(used=50)}, (Wish("games", 1, 51),))).refusals[0]
    assert refusal is not None
    assert "has used 50 of its 100" in refusal.message
    assert ledger.sync(Report("one", 5, {"games": Account(used=50)}, (Wish("nobody", 1, 1),))).refusals[0] is not None
