"""Who may call, under which profiles and how much: keys, teams and their limits. Knows no HTTP and no policy.

Keys are 32 random bytes, so one round of SHA-256 keeps them; only hashes are ever stored (`python -m serve.keys`).
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic import Field

from data.errors import UserError
from data.record import Record
from data.storage import Storage
from serve.protocol import ProtocolError

logger = logging.getLogger("ray.serve")

KEYS_VARIABLE = "STEERLM_KEYS"
"""Environment variable with the text of a keys file, where no file is set."""
KEY_PREFIX = "sk-steerlm-"
REVOKED = "revoked"
WINDOW_S = 60.0


class Team(Record):
    """Callers who share keys, profiles and limits."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """As it stands in the keys file, in metrics and in the access log."""
    profiles: tuple[str, ...] = ()
    """Profiles that it may use, the first if a request names none; empty = any, and the schema's own defaults if none is named."""
    max_concurrent: int | None = Field(None, ge=1)
    """Answers at the same time; null = no limit."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Prompt and answer tokens in any 60 s; null = no limit."""
    admin: bool = False
    """May it use the /admin routes?"""

    def profile(self, asked: str | None) -> str | None:
        """The profile of a request that named `asked`; raises WireProblem (403) if it is another team's."""
        if not self.profiles:
            return asked
        if asked is None:
            return self.profiles[0]
        if asked not in self.profiles:
            allowed = ", ".join(self.profiles)
            raise ProtocolError(
                f"team {self.name!r} may not use profile {asked[:60]!r}; allowed: {allowed}",
                "profile",
                "profile_forbidden",
                403,
            )
        return asked


EVERYONE = Team(name="everyone")
"""Who calls where no keys are set."""


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(text: str, teams: Mapping[str, Team], where: str) -> list[tuple[bytes, Team]]:
    """The keys of a keys file: a line each, "TEAM SHA256", with "revoked" behind it if the key is no longer good; # starts a comment.

    Raises UserError naming the line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        well_formed = (
            len(words) in (2, 3)
            and len(words[1]) == 64
            and set(words[1].lower()) <= set("0123456789abcdef")
            and words[2:] in ([], [REVOKED])
        )
        if not well_formed:
            raise UserError(
                f'{where}, line {number}: a line is "TEAM SHA256", or "TEAM SHA256 {REVOKED}"; `python -m serve.keys TEAM` makes one'
            )
        if words[0] not in teams:
            raise UserError(
                f"{where}, line {number}: there is no team {words[0]!r}; add it to `teams` ({', '.join(teams) or 'none yet'})"
            )
        if words[2:] != [REVOKED]:
            keys.append((words[1].lower().encode(), teams[words[0]]))
    return keys


class Keys:
    """The keys that are good now. A keys file is read again when it changes, so that a key can be revoked while the endpoint runs."""

    def __init__(
        self,
        teams: Sequence[Team],
        uri: str | None,
        text: str = "",
        check_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """From the file at `uri`, or from `text` where there is none; neither = no keys. Raises UserError for a line or a team that is wrong."""
        self._teams = {team.name: team for team in teams}
        self._uri, self._check_s, self._clock = uri, check_s, clock
        self._text, self._looked = text, clock()
        self._keys = read_keys(_read(uri) if uri else text, self._teams, uri or KEYS_VARIABLE)

    @property
    def any(self) -> bool:
        """Is every caller asked for a key? A keys file that has become empty lets nobody in, rather than everyone."""
        return self._uri is not None or bool(self._text.strip())

    def team_of(self, authorization: str | None) -> Team:
        """Whose the header is; raises WireProblem (401) if it is nobody's."""
        if not self.any:
            return EVERYONE
        self._look_again()
        if authorization is None:
            raise _unauthorised("no key: send the header Authorization: Bearer KEY")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorised("the Authorization header is not of the form Bearer KEY")
        digest, found = hashed(key.strip()).encode(), None
        for known, team in self._keys:  # all of them, so that the time says nothing about which one
            if hmac.compare_digest(known, digest):
                found = team
        if found is None:
            raise _unauthorised("this key is unknown or revoked")
        return found

    def _look_again(self) -> None:
        if self._uri is None or self._clock() - self._looked < self._check_s:
            return
        self._looked = self._clock()
        try:
            self._keys = read_keys(_read(self._uri), self._teams, self._uri)
        except UserError as problem:
            # A file that is being edited: the keys that were good stay good, but who revoked one must hear that it is not yet so.
            logger.error("the keys stay as they were: %s", problem)


def _read(uri: str) -> str:
    try:
        return Storage(uri).read_text()
    except OSError as error:
        raise UserError(
            f"the keys file {uri} cannot be read ({type(error).__name__}): set keys to a file with a line for each key"
        ) from None


def _unauthorised(message: str) -> ProtocolError:
    return ProtocolError(message, code="invalid_api_key", status=401, kind="authentication_error")


class Allowance:
    """How much each team uses, held against its limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._running: dict[str, int] = defaultdict(int)
        self._spent: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    @contextmanager
    def answers(self, team: Team, number: int) -> Iterator[None]:
        """Room for `number` answers while the context lasts; raises WireProblem (429) if a limit is reached."""
        running = self._running[team.name]
        if team.max_concurrent is not None and running + number > team.max_concurrent:
            raise _limited(
                f"team {team.name!r} has {running} answers running and asks for {number} more; its limit is {team.max_concurrent}",
                1,
            )
        self._require_tokens(team)
        self._running[team.name] += number
        try:
            yield
        finally:
            self._running[team.name] -= number

    def spend(self, team: Team, tokens: int) -> None:
        """Book tokens that were read or written for `team`."""
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
        for at, tokens in spent:  # until so many are forgotten that there is room again
            total -= tokens
            if total < team.tokens_per_minute:
                wait_s = max(1, round(at + WINDOW_S - now + 0.5))
                break
        raise _limited(
            f"team {team.name!r} has used its {team.tokens_per_minute} tokens per minute: try again in {wait_s} s",
            wait_s,
        )


def _limited(message: str, retry_after_s: int) -> ProtocolError:
    return ProtocolError(
        message, code="rate_limit_exceeded", status=429, kind="rate_limit_error", retry_after_s=retry_after_s
    )
