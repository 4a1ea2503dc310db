"""What each team uses over all ingresses together: the one place that grants and counts. Knows no HTTP and no Ray.

An ingress reports totals, so a report that is lost, late or sent twice changes nothing. What an ingress has not
reported yet is still held here, so a late report is never a free token.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from serve.auth import Team

WINDOW_S = 60.0
LOST_S = 10.0
"""An ingress that has reported nothing for so long is gone; it reports every second."""
RESTORE_S = 15.0
"""How long a ledger that starts anew waits for the ingresses that its predecessor knew."""


class Window:
    """Tokens used within the last minute, second by second."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._by_end: dict[int, int] = {}
        """End of a second -> tokens used in it, however many requests used them."""

    def add(self, tokens: int, age_s: float = 0.0) -> None:
        """Used `age_s` ago."""
        if not tokens:
            return
        end = math.floor(self._clock() - age_s) + 1  # the end: no token leaves the window too early
        if end not in self._by_end:
            self._forget()
        self._by_end[end] = self._by_end.get(end, 0) + tokens

    @property
    def total(self) -> int:
        self._forget()
        return sum(self._by_end.values())

    def entries(self) -> tuple[tuple[float, int], ...]:
        """(age in seconds, tokens), for the window of another clock."""
        self._forget()
        return tuple((max(0.0, self._clock() - end), tokens) for end, tokens in self._by_end.items())

    def wait_s(self, tokens: int) -> int:
        """Until so many have left; a second if only the end of running requests can give them back."""
        for end, spent in sorted(self._by_end.items()):
            tokens -= spent
            if tokens <= 0:
                return max(1, math.ceil(end + WINDOW_S - self._clock()))
        return 1

    def _forget(self) -> None:
        oldest = self._clock() - WINDOW_S
        for end in [end for end in self._by_end if end <= oldest]:
            del self._by_end[end]


@dataclass(frozen=True)
class Account:
    """Of one team at one ingress."""

    running: int = 0
    """Answers that are being written."""
    held: int = 0
    """Tokens that they may still use."""
    used: int = 0
    """Tokens since the ingress started."""


@dataclass(frozen=True)
class Wish:
    """One request for answers."""

    team: str
    answers: int
    tokens: int
    """The most that they can use."""


@dataclass(frozen=True)
class Report:
    """From an ingress to the ledger."""

    ingress: str
    """A name that no other process has had."""
    number: int
    """Of its reports."""
    accounts: Mapping[str, Account]
    """Team -> its totals; the wishes are not in them."""
    wishes: tuple[Wish, ...] = ()
    history: Mapping[str, tuple[tuple[float, int], ...]] | None = None
    """Team -> (age, tokens) of the last minute; only for a ledger that does not know the ingress."""


@dataclass(frozen=True)
class Refusal:
    """Why a wish is not granted."""

    message: str
    wait_s: int | None = None
    """Until it may be; None = until answers end."""


@dataclass(frozen=True)
class Reply:
    """To a report."""

    state: Literal["granting", "restoring", "unknown"]
    """restoring = nothing is granted until every ingress has reported; unknown = report again, with the history."""
    refusals: tuple[Refusal | None, ...] = ()
    """One for each wish; None = granted."""


@dataclass
class _Ingress:
    """As it reported last."""

    heard_at: float
    number: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)


class Ledger:
    """Of all teams that have limits. `expected`: ingresses that a ledger before this one knew.

    Nothing is granted until they have reported what they use. If one does not within RESTORE_S, nobody knows what it
    used, and every budget counts as used up for a minute.
    """

    def __init__(
        self, teams: Iterable[Team], clock: Callable[[], float] = time.monotonic, expected: Iterable[str] = ()
    ):
        self._teams = {team.name: team for team in teams}
        self._clock = clock
        self._windows = {name: Window(clock) for name in self._teams}
        self._ingresses: dict[str, _Ingress] = {}
        self._lost: dict[str, _Ingress] = {}
        """As long as what they used is within the last minute."""
        self._awaited = set(expected)
        self._restored_at = clock() + RESTORE_S

    @property
    def ingresses(self) -> frozenset[str]:
        """Those whose reports a successor needs."""
        return frozenset(self._ingresses) | frozenset(self._lost) | self._awaited

    async def __call__(self, report: Report) -> Reply:
        """`sync`, for ingresses in the same process."""
        return self.sync(report)

    def sync(self, report: Report) -> Reply:
        """Count what an ingress used, and grant what it wishes as far as the limits allow."""
        self._pass_time()
        if report.ingress in self._lost:  # it was only slow
            self._ingresses[report.ingress] = self._lost.pop(report.ingress)
        known = self._ingresses.get(report.ingress)
        if known is None:
            if report.history is None:
                return Reply("unknown")
            known = self._join(report)
        elif report.number <= known.number:  # overtaken by a later one: nobody waits for this reply any more
            return Reply("restoring")
        accounts = {team: account for team, account in report.accounts.items() if team in self._teams}
        for team, account in accounts.items():
            self._windows[team].add(account.used - known.accounts.get(team, Account()).used)
        known.heard_at, known.number, known.accounts = self._clock(), report.number, accounts
        if self._awaited:
            return Reply("restoring")
        return Reply("granting", tuple(self._refusal(known, wish) for wish in report.wishes))

    def _join(self, report: Report) -> _Ingress:
        assert report.history is not None, "an ingress that is not known tells its history"
        for name, window in self._windows.items():
            for age_s, tokens in report.history.get(name, ()):
                window.add(tokens, age_s)
        self._awaited.discard(report.ingress)
        before = {team: Account(used=account.used) for team, account in report.accounts.items()}
        self._ingresses[report.ingress] = _Ingress(self._clock(), accounts=before)
        return self._ingresses[report.ingress]

    def _pass_time(self) -> None:
        now = self._clock()
        for name, ingress in list(self._ingresses.items()):
            if now - ingress.heard_at > LOST_S:
                self._lost[name] = self._ingresses.pop(name)
                for team, account in ingress.accounts.items():
                    self._windows[team].add(account.held)  # replicas may have written them, and told nobody
                    ingress.accounts[team] = Account(used=account.used)
        for name, ingress in list(self._lost.items()):
            if now - ingress.heard_at > LOST_S + WINDOW_S:
                del self._lost[name]
        if self._awaited and now >= self._restored_at:
            self._awaited.clear()
            for one in self._teams.values():
                self._windows[one.name].add(one.tokens_per_minute or 0)

    def _refusal(self, ingress: _Ingress, wish: Wish) -> Refusal | None:
        """Why not; None = granted."""
        if wish.team not in self._teams:  # of an ingress with older settings
            return Refusal(f"team {wish.team!r} has other limits from now on: try again in 1 s", 1)
        team, accounts = self._teams[wish.team], list(self._accounts(wish.team))
        running, held = sum(a.running for a in accounts), sum(a.held for a in accounts)
        if team.max_concurrent is not None and running + wish.answers > team.max_concurrent:
            running_now = f"team {team.name!r} has {running} answers running and asks for {wish.answers} more"
            return Refusal(f"{running_now}; its limit is {team.max_concurrent}")
        if team.tokens_per_minute is not None:
            window = self._windows[wish.team]
            over = window.total + held + wish.tokens - team.tokens_per_minute
            if over > 0:
                wait_s = window.wait_s(over)
                used = f"team {team.name!r} has used {window.total} of its {team.tokens_per_minute} tokens per minute"
                asks = f"running requests hold {held}, and this one may need {wish.tokens}"
                return Refusal(f"{used}, {asks}: try again in {wait_s} s", wait_s)
        own = ingress.accounts.get(wish.team, Account())
        ingress.accounts[wish.team] = replace(own, running=own.running + wish.answers, held=own.held + wish.tokens)
        return None

    def _accounts(self, team: str) -> Iterator[Account]:
        return (i.accounts[team] for i in self._ingresses.values() if team in i.accounts)
