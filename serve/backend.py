"""What stands behind the routes of the HTTP side: policies, keys, limits, and functions that reach the cluster."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Request

from serve.admission import RequestLimits
from serve.answering import Generate, Score
from serve.auth import Keys, Team
from serve.feedback import Feedback
from serve.live import Live
from serve.models import ServedPolicies
from serve.protocol import ProtocolError
from serve.rate_limits import RateLimiter
from serve.request import Failed, GenerationRequest, PolicyInfo, Tokenized
from serve.telemetry import Telemetry


@dataclass(frozen=True)
class Backend:
    """Given to `serve.app.application`."""

    models: ServedPolicies
    generate: Generate
    score: Score | None
    """None = no predictor is served."""
    tokenize: Callable[[str, GenerationRequest, bool], Awaitable[Tokenized | Failed]]
    """(model, request, whether each token's text is wanted) -> the request's prompt."""
    swap: Callable[[str, str], Awaitable[PolicyInfo]]
    """Answer a model's requests from another checkpoint; raises UserError if that cannot be."""
    adapt: Callable[[str, str], Awaitable[PolicyInfo]]
    """Serve an adapter under a name, a new one or another version of it; raises UserError if that cannot be."""
    remove: Callable[[str], Awaitable[None]]
    """Stop serving an adapter; raises UserError if the model is none."""
    replicas: Callable[[], Awaitable[Mapping[str, int]]]
    """How many replicas of each model answer now."""
    metrics: Callable[[], Awaitable[str]]
    """All metrics of the endpoint, as Prometheus reads them."""
    keys: Keys
    limits: RequestLimits
    telemetry: Telemetry
    rate_limiter: RateLimiter
    page: str
    feedback: Feedback | None = None
    """None = it is off."""
    live: Live | None = None
    """The same."""
    root_path: str = ""
    """Path under which a proxy shows the endpoint."""
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may call."""

    def team(self, request: Request) -> Team:
        """Of the caller; raises ProtocolError (401) if its key is nobody's."""
        return self.keys.team_of(request.headers.get("authorization"))

    def operator(self, request: Request, routes: str) -> Team:
        """The caller's team, which may administer; raises ProtocolError (401, 403) that names the `routes` if not."""
        team = self.team(request)
        if not team.admin:
            message = f"{routes} need a key of a team with admin: true"
            raise ProtocolError(message, code="admin_only", status=403, kind="permission_error")
        return team

    def knows(self, request: Request) -> bool:
        """May the caller learn what is served?"""
        try:
            self.team(request)
        except ProtocolError:
            return False
        return True
