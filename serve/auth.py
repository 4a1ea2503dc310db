"""Who calls: teams and their keys. Knows no HTTP and no policy; how much a team may use is in `serve.rate_limits`.

Keys are 32 random bytes, so one round of SHA-256 protects them; only hashes are stored (`python -m serve.keys`).
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping, Sequence

from pydantic import Field

from data.bounds import Size, Workers
from data.errors import UserError
from data.printable import printable
from data.record import Record
from data.storage import Storage
from serve.protocol import ProtocolError

logger = logging.getLogger("ray.serve")

KEYS_VARIABLE = "STEERLM_KEYS"
"""Environment variable with the text of a keys file, where no file is set."""
CHECK_S = 5.0
"""How often the keys file is read again."""
KEY_PREFIX = "sk-steerlm-"
KEY_LINE = re.compile(r"(?P<team>\S+)\s+(?P<digest>[0-9a-fA-F]{64})(?P<revoked>\s+revoked)?")


class Team(Record):
    """Callers who share keys, profiles and limits."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """As written in the keys file, in metrics and in the access log."""
    profiles: tuple[str, ...] = ()
    """Profiles that it may use, the first if a request names none; empty = any, or the schema's defaults if none."""
    models: tuple[str, ...] = ()
    """Models that it may use, adapters too; empty = any."""
    max_concurrent: Workers | None = None
    """Answers at the same time; null = no limit."""
    tokens_per_minute: Size | None = None
    """Prompt and answer tokens in any 60 s; null = no limit."""
    admin: bool = False
    """May it use the /admin routes?"""
    feedback: bool = False
    """May it rate its answers (POST /v1/feedback)? Then their texts are kept, see feedback.store."""

    @property
    def is_limited(self) -> bool:
        """Does anything have to be counted?"""
        return self.max_concurrent is not None or self.tokens_per_minute is not None

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def profile(self, requested: str | None) -> str | None:
        """The profile of a request that named `requested`; raises ProtocolError (403) if the team may not use it."""
        if not self.profiles:
            return requested
        if requested is None:
            return self.profiles[0]
        if requested not in self.profiles:
            allowed = ", ".join(self.profiles)
            message = f"team {self.name!r} may not use profile {requested[:60]!r}; allowed: {allowed}"
            raise ProtocolError(message, "profile", "profile_forbidden", 403)
        return requested


EVERYONE = Team(name="everyone", feedback=True)
"""The caller where no keys are set."""
RATER_CHARS = 16


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(text: str, teams: Mapping[str, Team], where: str) -> list[tuple[bytes, Team]]:
    """The valid keys of a keys file, as (hash, team); raises UserError with the number of a wrong line.

    A line is "TEAM SHA256" or "TEAM SHA256 revoked"; # starts a comment.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#")[0].strip()
        if not content:
            continue
        found = KEY_LINE.fullmatch(content)
        if found is None:
            allowed = 'a line is "TEAM SHA256", or "TEAM SHA256 revoked"; `python -m serve.keys TEAM` makes one'
            raise UserError(f"{where}, line {number}: {allowed}")
        if found["team"] not in teams:
            remedy = f"add it to `teams` ({', '.join(teams) or 'none yet'})"
            raise UserError(f"{where}, line {number}: there is no team {printable(found['team'])!r}; {remedy}")
        if not found["revoked"]:
            keys.append((found["digest"].lower().encode(), teams[found["team"]]))
    return keys


class Keys:
    """The valid keys. `keep_fresh` reads a keys file again: keys can be revoked while the endpoint runs."""

    def __init__(self, teams: Sequence[Team], uri: str | None, text: str = ""):
        """From the file at `uri`, else from `text`; neither = no keys. Raises UserError for a wrong line."""
        self._teams = {team.name: team for team in teams}
        self._uri, self._text = uri, text
        self._keys = read_keys(_read(uri) if uri else text, self._teams, uri or KEYS_VARIABLE)

    @property
    def any(self) -> bool:
        """Does every caller need a key? A keys file that has become empty admits nobody, rather than everyone."""
        return self._uri is not None or bool(self._text.strip())

    async def keep_fresh(self, every_s: float = CHECK_S) -> None:
        """Reads the file every `every_s`, in a thread: a storage that is slow delays a revocation, but no request."""
        while self._uri is not None:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.read_again)

    def read_again(self) -> None:
        """A file that cannot be read, or is being edited: valid keys stay valid, and the log shows it."""
        assert self._uri is not None, "only a file is read again"
        try:
            self._keys = read_keys(_read(self._uri), self._teams, self._uri)
        except UserError as problem:
            logger.error("the keys stay as they were: %s", problem)

    def team_of(self, authorization: str | None) -> Team:
        """The team of an Authorization header; raises ProtocolError (401) if its key is nobody's."""
        if not self.any:
            return EVERYONE
        if authorization is None:
            raise _unauthorized("no key: send the header Authorization: Bearer KEY")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("the Authorization header is not of the form Bearer KEY")
        digest, found = hashed(key.strip()).encode(), None
        for known, team in self._keys:  # all of them, so that the time does not reveal which one matched
            if hmac.compare_digest(known, digest):
                found = team
        if found is None:
            raise _unauthorized("this key is unknown or revoked")
        return found

    def rater_of(self, authorization: str | None) -> str:
        """Tells the keys of a team apart, and does not show them; a key that opens nothing has one, too."""
        key = (authorization or "").partition(" ")[2].strip() if self.any else ""
        return hashed(f"rater {key}")[:RATER_CHARS]


def _read(uri: str) -> str:
    try:
        return Storage(uri).read_text()
    except Exception as error:  # each storage has its own: botocore's are no OSError, Latin-1 is a ValueError
        remedy = "set keys to a text file (UTF-8) with a line for each key, which this node can read"
        raise UserError(f"the keys file {printable(uri, 120)} cannot be read ({_cause(error)}): {remedy}") from None


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(str(error), 120)}"


def _unauthorized(message: str) -> ProtocolError:
    return ProtocolError(message, code="invalid_api_key", status=401)
