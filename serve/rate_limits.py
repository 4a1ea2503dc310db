"""How much each team may use: answers at the same time and tokens per minute. Knows no keys, no HTTP and no policy."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.auth import Team
from serve.protocol import ProtocolError

WINDOW_S = 60.0


class RateLimiter:
    """Holds what each team uses against its limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._running: dict[str, int] = defaultdict(int)
        self._spent: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    @contextmanager
    def answers(self, team: Team, number: int) -> Iterator[None]:
        """Count `number` answers as running inside the context; raises ProtocolError (429) if a limit is reached."""
        running = self._running[team.name]
        if team.max_concurrent is not None and running + number > team.max_concurrent:
            running_now = f"team {team.name!r} has {running} answers running and asks for {number} more"
            raise _limited(f"{running_now}; its limit is {team.max_concurrent}", 1)
        self._require_tokens(team)
        self._running[team.name] += number
        try:
            yield
        finally:
            self._running[team.name] -= number

    def spend(self, team: Team, tokens: int) -> None:
        """Record the prompt and answer tokens of a request of `team`."""
        if team.tokens_per_minute is not None and tokens:
            self._spent[team.name].append((self._clock(), tokens))

    def _require_tokens(self, team: Team) -> None:
        if team.tokens_per_minute is None:
            return
        spent, now = self._spent[team.name], self._clock()
        while spent and spent[0][0] <= now - WINDOW_S:
            spent.popleft()
        total = sum(tokens for _, tokens in spent)
        if total < team.tokens_per_minute:
            return
        for at, tokens in spent:  # the oldest ones that must leave the window before the total is below the limit
            total -= tokens
            if total < team.tokens_per_minute:
                wait_s = max(1, round(at + WINDOW_S - now + 0.5))
                break
        used = f"team {team.name!r} has used its {team.tokens_per_minute} tokens per minute"
        raise _limited(f"{used}: try again in {wait_s} s", wait_s)


def _limited(message: str, retry_after_s: int) -> ProtocolError:
    return ProtocolError(message, code="rate_limit_exceeded", status=429, retry_after_s=retry_after_s)
