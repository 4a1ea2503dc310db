"""Limits of a team: answers at the same time, and tokens per minute that are held, used and given back."""

from contextlib import suppress

import pytest
from support.manual_clock import ManualClock

from serve.auth import Team
from serve.protocol import ProtocolError
from serve.rate_limits import RateLimiter, RequestCost

ONE = RequestCost(prompt=20, num_answers=1, max_tokens=30)
BUDGET = Team(name="games", tokens_per_minute=100)


def refused(limiter: RateLimiter, cost: RequestCost, team: Team = BUDGET) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught, limiter.answers(team, 1, cost):
        pass
    assert len(str(caught.value)) <= 400
    return caught.value


def test_answers_at_the_same_time_are_limited() -> None:
    limiter, team = RateLimiter(), Team(name="games", max_concurrent=3)
    with limiter.answers(team, 2):
        with (
            pytest.raises(ProtocolError, match="has 2 answers running and asks for 2 more; its limit is 3"),
            limiter.answers(team, 2),
        ):
            pass
        with limiter.answers(team, 1), limiter.answers(Team(name="other", max_concurrent=1), 1):
            pass
    with limiter.answers(team, 3):
        pass


def test_tokens_per_minute_come_back_after_a_minute() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    for now, tokens in ((0, 60), (30, 50)):
        clock.now = now
        with limiter.answers(BUDGET, 1) as reservation:
            reservation.use(tokens)
    wait_s = refused(limiter, ONE).retry_after_s
    assert wait_s is not None
    assert 30 <= wait_s <= 31
    clock.now = 30 + wait_s - 1.5
    assert refused(limiter, ONE).status == 429
    clock.now = 30 + wait_s
    with limiter.answers(BUDGET, 1, ONE):
        pass


@pytest.mark.case("B10: requests that run at the same time")
def test_what_runs_holds_the_most_that_it_can_use() -> None:
    limiter = RateLimiter(ManualClock())
    with limiter.answers(BUDGET, 1, ONE), limiter.answers(BUDGET, 1, ONE):
        problem = refused(limiter, ONE)
        assert (problem.status, problem.retry_after_s) == (429, 1)
        assert "running requests hold 100, and this one may need 50" in str(problem)
        with limiter.answers(Team(name="other", tokens_per_minute=50), 1, ONE):
            pass
    with limiter.answers(BUDGET, 1, ONE), limiter.answers(BUDGET, 1, ONE):
        pass


@pytest.mark.case("B10: what is not used comes back, what is used does not")
def test_only_what_was_used_is_gone_at_the_end() -> None:
    limiter = RateLimiter(ManualClock())
    with suppress(KeyError), limiter.answers(BUDGET, 1, ONE) as reservation:
        reservation.use(12)
        raise KeyError("a replica died")
    for used in (40, 35):
        reservation.settle()
        reservation.use(used)
    with limiter.answers(BUDGET, 1, RequestCost(30, 1, 30)):
        assert "has used 40 of its 100 tokens per minute, running requests hold 60" in str(refused(limiter, ONE))


def test_tokens_move_from_held_to_used_as_they_come() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    with limiter.answers(BUDGET, 1, ONE) as reservation:
        for used in (10, 20, 30):
            clock.now += 40
            reservation.use(used)
            assert f"hold {50 - used}," in str(refused(limiter, RequestCost(0, 1, 90)))
        assert "has used 20 of" in str(refused(limiter, RequestCost(0, 1, 90))), "the first ten are a minute old"


@pytest.mark.case("B10: the bound of a prompt is corrected once it is tokenized")
def test_a_tokenized_prompt_gives_back_what_its_bound_held() -> None:
    limiter = RateLimiter(ManualClock())
    long = RequestCost(prompt=5000, num_answers=1, max_tokens=30)
    with limiter.answers(BUDGET, 1, long) as reservation:
        assert "hold 100" in str(refused(limiter, ONE)), "never more than there is: it may fit"
        reservation.use(20)
        reservation.correct(20)
        with limiter.answers(BUDGET, 1, ONE):
            pass
        with pytest.raises(ProtocolError, match=r"may use 101 tokens \(71 for the prompt, 30 for 1 answer"):
            reservation.correct(71)
    with limiter.answers(BUDGET, 1, RequestCost(0, 1, 80)):
        pass


@pytest.mark.case("B10: a request above a whole minute's budget")
def test_a_request_that_can_never_fit_is_told_what_to_lower() -> None:
    problem = refused(RateLimiter(), RequestCost(20, 16, 512, num_rated=16, max_rated=1024))
    assert (problem.status, problem.code, problem.retry_after_s) == (400, "request_exceeds_budget", None)
    assert "16384 tokens (8192 for 16 answers of up to 512, 8192 to rate 16 of them)" in str(problem)
    assert "team 'games' has 100 per minute: lower max_tokens, best_of or n" in str(problem)


def test_rating_costs_what_the_predictor_reads() -> None:
    cost = RequestCost(prompt=10, num_answers=2, max_tokens=30, num_rated=2, max_rated=35)
    assert cost.total(3) == 3 + 2 * 30 + 2 * 33
    assert cost.total(10) == 10 + 2 * 30 + 2 * 35
    assert cost.rated(3, 1) == 4


def test_a_team_without_a_budget_is_not_counted() -> None:
    limiter, team = RateLimiter(), Team(name="free")
    with limiter.answers(team, 1, RequestCost(10**9, 16, 10**6)) as reservation:
        reservation.use(10**9)
        reservation.correct(10**9)
        with limiter.answers(team, 1, ONE):
            pass
