"""Limits of a team: answers at the same time, and tokens per minute that are held, used and given back."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from support.manual_clock import ManualClock

from serve.auth import Team
from serve.ledger import Ledger
from serve.protocol import ProtocolError
from serve.rate_limits import RateLimiter, RequestCost

ONE = RequestCost(prompt=20, num_answers=1, max_tokens=30)
BUDGET = Team(name="games", tokens_per_minute=100)
OTHER = Team(name="other", tokens_per_minute=50)
THREE, SINGLE = Team(name="three", max_concurrent=3), Team(name="single", max_concurrent=1)


def limited(clock: Callable[[], float]) -> RateLimiter:
    return RateLimiter(Ledger([BUDGET, OTHER, THREE, SINGLE], clock), clock)


def run(test: Callable[[RateLimiter, ManualClock], Awaitable[None]]) -> None:
    clock = ManualClock()

    async def go() -> None:
        await test(limited(clock), clock)

    asyncio.run(go())


async def refused(limiter: RateLimiter, cost: RequestCost, team: Team = BUDGET) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        async with limiter.answers(team, 1, cost):
            pass
    assert len(str(caught.value)) <= 400
    return caught.value


def test_answers_at_the_same_time_are_limited() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        async with limiter.answers(THREE, 2):
            with pytest.raises(ProtocolError, match="has 2 answers running and asks for 2 more; its limit is 3"):
                async with limiter.answers(THREE, 2):
                    pass
            async with limiter.answers(THREE, 1), limiter.answers(SINGLE, 1):
                pass
        async with limiter.answers(THREE, 3):
            pass

    run(test)


def test_tokens_per_minute_come_back_after_a_minute() -> None:
    async def test(limiter: RateLimiter, clock: ManualClock) -> None:
        for now, tokens in ((0, 60), (30, 50)):
            clock.now = now
            async with limiter.answers(BUDGET, 1) as reservation:
                reservation.use(tokens)
        wait_s = (await refused(limiter, ONE)).retry_after_s
        assert wait_s is not None
        assert 30 <= wait_s <= 31
        clock.now = 30 + wait_s - 1.5
        assert (await refused(limiter, ONE)).status == 429
        clock.now = 30 + wait_s
        async with limiter.answers(BUDGET, 1, ONE):
            pass

    run(test)


@pytest.mark.case("B10: requests that run at the same time")
def test_what_runs_holds_the_most_that_it_can_use() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        async with limiter.answers(BUDGET, 1, ONE), limiter.answers(BUDGET, 1, ONE):
            problem = await refused(limiter, ONE)
            assert (problem.status, problem.retry_after_s) == (429, 1)
            assert "running requests hold 100, and this one may need 50" in str(problem)
            async with limiter.answers(OTHER, 1, ONE):
                pass
        async with limiter.answers(BUDGET, 1, ONE), limiter.answers(BUDGET, 1, ONE):
            pass

    run(test)


@pytest.mark.case("B10: what is not used comes back, what is used does not")
def test_only_what_was_used_is_gone_at_the_end() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        with suppress(KeyError):
            async with limiter.answers(BUDGET, 1, ONE) as reservation:
                reservation.use(12)
                raise KeyError("a replica died")
        for used in (40, 35):
            reservation.settle()
            reservation.use(used)
        async with limiter.answers(BUDGET, 1, RequestCost(30, 1, 30)):
            message = "has used 40 of its 100 tokens per minute, running requests hold 60"
            assert message in str(await refused(limiter, ONE))

    run(test)


def test_tokens_move_from_held_to_used_as_they_come() -> None:
    async def test(limiter: RateLimiter, clock: ManualClock) -> None:
        async with limiter.answers(BUDGET, 1, ONE) as reservation:
            for used in (10, 20, 30):
                for _ in range(8):  # an ingress reports all the time, or is taken for dead
                    clock.now += 5
                    await refused(limiter, RequestCost(0, 1, 90))
                reservation.use(used)
                assert f"hold {50 - used}," in str(await refused(limiter, RequestCost(0, 1, 90)))
            message = str(await refused(limiter, RequestCost(0, 1, 90)))
            assert "has used 20 of" in message, "the first ten are a minute old"

    run(test)


@pytest.mark.case("B10: the bound of a prompt is corrected once it is tokenized")
def test_a_tokenized_prompt_gives_back_what_its_bound_held() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        async with limiter.answers(BUDGET, 1, RequestCost(prompt=5000, num_answers=1, max_tokens=30)) as reservation:
            assert "hold 100" in str(await refused(limiter, ONE)), "never more than there is: it may fit"
            reservation.use(20)
            reservation.correct(20)
            async with limiter.answers(BUDGET, 1, ONE):
                pass
            with pytest.raises(ProtocolError, match=r"may use 101 tokens \(71 for the prompt, 30 for 1 answer"):
                reservation.correct(71)
        async with limiter.answers(BUDGET, 1, RequestCost(0, 1, 80)):
            pass

    run(test)


@pytest.mark.case("B10: a request above a whole minute's budget")
def test_a_request_that_can_never_fit_is_told_what_to_lower() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        problem = await refused(limiter, RequestCost(20, 16, 512, num_rated=16, max_rated=1024))
        assert (problem.status, problem.code, problem.retry_after_s) == (400, "request_exceeds_budget", None)
        assert "16384 tokens (8192 for 16 answers of up to 512, 8192 to rate 16 of them)" in str(problem)
        assert "team 'games' has 100 per minute: lower max_tokens, best_of or n" in str(problem)

    run(test)


def test_rating_costs_what_the_predictor_reads() -> None:
    cost = RequestCost(prompt=10, num_answers=2, max_tokens=30, num_rated=2, max_rated=35)
    assert cost.total(3) == 3 + 2 * 30 + 2 * 33
    assert cost.total(10) == 10 + 2 * 30 + 2 * 35
    assert cost.rated(3, 1) == 4


def test_a_team_without_limits_is_not_counted() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        free = Team(name="free")
        async with limiter.answers(free, 1, RequestCost(10**9, 16, 10**6)) as reservation:
            reservation.use(10**9)
            reservation.correct(10**9)
            async with limiter.answers(free, 1, ONE):
                pass

    run(test)


def test_who_leaves_while_it_waits_for_the_ledger_holds_nothing() -> None:
    async def test(limiter: RateLimiter, _: ManualClock) -> None:
        async def asks() -> None:
            async with limiter.answers(BUDGET, 1, RequestCost(0, 1, 100)):
                await asyncio.sleep(3600)

        for turns in range(6):  # of the event loop: before the exchange, in it, and right behind it
            leaving = asyncio.create_task(asks())
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
            async with limiter.answers(BUDGET, 1, RequestCost(0, 1, 100)):
                pass

    run(test)
