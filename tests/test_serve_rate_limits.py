"""Limits of a team: answers at the same time, and tokens per minute."""

import pytest
from support.manual_clock import ManualClock

from serve.auth import Team
from serve.protocol import ProtocolError
from serve.rate_limits import RateLimiter


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
    limiter, team = RateLimiter(clock), Team(name="games", tokens_per_minute=100)
    for now, tokens in ((0, 60), (30, 50)):
        clock.now = now
        with limiter.answers(team, 1):
            limiter.spend(team, tokens)
    with pytest.raises(ProtocolError, match="tokens per minute") as refused, limiter.answers(team, 1):
        pass
    assert refused.value.status == 429
    assert refused.value.retry_after_s is not None
    assert 30 <= refused.value.retry_after_s <= 31
    clock.now = 30 + refused.value.retry_after_s
    with limiter.answers(team, 1):
        pass
