"""The endpoint's metrics, through Ray (Prometheus), and its access log: one JSON line per request, without its texts.

Names and units of all metrics are here and nowhere else. Knows no HTTP and no policy.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Gauge, Histogram

from actors.generation.protocol import Load
from data.printable import printable

MODEL = ("model",)
CALLER = ("model", "team", "profile")
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60]
POINTS = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 9]
NOTE_S = 60.0
MAX_NOTES, MAX_NOTE_CHARS = 64, 80
"""Of one key and minute, and of one note: a caller chooses the names of what it sends."""
MAX_KEYS = 1024
"""Without keys, a caller may send any."""
UNKEPT = "Answers whose texts could not be written to feedback.store, so nobody can rate them."
DROPPED = "Answers in production without a live record: too many to be rated in the background, or to be written."
FIRST_TEXT = "From the request's arrival to the answer's first text."
GAP = "|measured - effective|, in points of the attribute's scale, of rated answers."


class EndpointMetrics:
    """Of the ingress: requests as callers see them."""

    def __init__(self) -> None:
        self.requests = Counter(
            "steerlm_requests_total", "Requests by route and HTTP status.", (*CALLER, "route", "status")
        )
        self.refused = Counter("steerlm_refused_total", "Requests without an answer, by error code.", (*CALLER, "code"))
        self.open = Gauge("steerlm_open_requests", "Requests that are being answered or wait.", MODEL)
        self.prompt_tokens = Counter("steerlm_prompt_tokens_total", "Prompt tokens of answered requests.", CALLER)
        self.completion_tokens = Counter("steerlm_completion_tokens_total", "Answer tokens sent to callers.", CALLER)
        self.first_text = Histogram("steerlm_time_to_first_text_seconds", FIRST_TEXT, SECONDS, MODEL)
        self.seconds = Histogram("steerlm_request_seconds", "From a request's arrival to its end.", SECONDS, MODEL)
        self.unkept = Counter("steerlm_answers_not_kept_total", UNKEPT)
        self.live_dropped = Counter("steerlm_live_records_dropped_total", DROPPED, ("waited_for",))
        self.gap = Histogram("steerlm_steering_gap_points", GAP, POINTS, ("model", "attribute"))

    def count(self, request: "RequestContext", status: int, code: str | None, seconds: float) -> None:
        """Count a request that has ended."""
        model = {"model": request.model}
        caller = model | {"team": request.team, "profile": request.profile}
        self.requests.inc(1, caller | {"route": request.route, "status": str(status)})
        if code is not None:
            self.refused.inc(1, caller | {"code": code})
        if request.prompt_tokens:
            self.prompt_tokens.inc(request.prompt_tokens, caller)
        if request.completion_tokens:
            self.completion_tokens.inc(request.completion_tokens, caller)
        if request.first_text_s is not None:
            self.first_text.observe(request.first_text_s, model)
        self.seconds.observe(seconds, model)
        self.observe_gaps(request.model, request.gaps)

    def observe_gaps(self, model: str, gaps: Mapping[str, float]) -> None:
        """Of one answer: attribute -> |measured - effective|."""
        for attribute, gap in gaps.items():
            self.gap.observe(gap, {"model": model, "attribute": attribute})


class EngineMetrics:
    """Of a replica: what its engine does."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self.running = Gauge("steerlm_engine_requests_running", "Answers that are being written.", MODEL)
        self.waiting = Gauge("steerlm_engine_requests_waiting", "Answers that wait in an engine.", MODEL)
        self._counters = {
            "prefilled_tokens": Counter(
                "steerlm_prefill_tokens_total", "Prompt tokens that went through the model.", MODEL
            ),
            "reused_tokens": Counter(
                "steerlm_prefix_cache_hit_tokens_total", "Prompt tokens in the prefix cache.", MODEL
            ),
            "generated_tokens": Counter(
                "steerlm_generated_tokens_total", "Tokens written, discarded ones included.", MODEL
            ),
        }
        self._counted = dict.fromkeys(self._counters, 0)

    def update(self, load: Load) -> None:
        """Its totals become increments; a total lower than the last one comes from a new engine."""
        self.running.set(load.running, self._tags)
        self.waiting.set(load.waiting, self._tags)
        for name, counter in self._counters.items():
            total, before = getattr(load, name), self._counted[name]
            new = total - before if total >= before else total
            if new:
                counter.inc(new, self._tags)
            self._counted[name] = total


@dataclass
class RequestContext:
    """One request to a route that generates or tokenizes, from its arrival to its end."""

    telemetry: "Telemetry"
    arrived: float
    route: str
    """Its path in the API."""
    team: str = ""
    model: str = ""
    profile: str = ""
    stream: bool = False
    answers: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_text_s: float | None = None
    gaps: dict[str, float] = field(default_factory=dict)
    outcome: tuple[int, str | None] | None = None
    """Status and error code of a stream, once its last event is sent."""
    over: bool = False

    def record_first_text(self) -> None:
        if self.first_text_s is None:
            self.first_text_s = self.telemetry.clock() - self.arrived

    def end(self, status: int, code: str | None = None) -> None:
        """The first call counts."""
        if not self.over:
            self.over = True
            self.telemetry.ended(self, status, code)


class Notes:
    """What was noted about each key within the last minute."""

    def __init__(self, clock: Callable[[], float]):
        self._clock, self._noted = clock, dict[Hashable, dict[str, float]]()

    def new(self, key: Hashable, names: Iterable[str]) -> list[str]:
        """Those of `names` that were not noted for `key` within the last minute, fit to be logged."""
        now, noted = self._clock(), self._noted.setdefault(key, {})
        if len(self._noted) > MAX_KEYS:
            del self._noted[next(iter(self._noted))]
        for name in [name for name, at in noted.items() if now - at >= NOTE_S]:
            del noted[name]
        shown = sorted({printable(name, MAX_NOTE_CHARS) for name in names})
        new = [name for name in shown if name not in noted][: MAX_NOTES - len(noted)]
        noted.update(dict.fromkeys(new, now))
        return new


class Telemetry:
    """Counts and logs every request once."""

    def __init__(
        self,
        metrics: EndpointMetrics | None,
        access_log: bool,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], object] = sys.stdout.write,
    ):
        self._metrics, self._access_log, self.clock, self._write = metrics, access_log, clock, write
        self._open: dict[str, int] = defaultdict(int)
        self._notes = Notes(clock)

    def unused(self, team: str, authorization: str | None, parameters: Iterable[str]) -> None:
        """A key's request had `parameters` that change no answer: one line for each key, parameter and minute."""
        new = self._notes.new((team, hash(authorization)), parameters)
        if new and self._access_log:
            line = {"event": "unused", "time": round(time.time(), 3), "team": team, "parameters": new}
            self._write(json.dumps(line) + "\n")

    def arrived(self, route: str) -> RequestContext:
        return RequestContext(self, self.clock(), route)

    def admitted(self, context: RequestContext, change: int) -> None:
        """A request of a model begins (+1) or ends (-1)."""
        self._open[context.model] += change
        if self._metrics is not None:
            self._metrics.open.set(self._open[context.model], {"model": context.model})

    def unkept(self) -> None:
        """The text of an answer is not there for feedback."""
        if self._metrics is not None:
            self._metrics.unkept.inc(1, {})

    def live_dropped(self, waited_for: str) -> None:
        """There is no live record of an answer, as too many wait for "rating" or "writing"."""
        if self._metrics is not None:
            self._metrics.live_dropped.inc(1, {"waited_for": waited_for})

    def gaps(self, model: str, gaps: Mapping[str, float]) -> None:
        """Of an answer that was rated in the background."""
        if self._metrics is not None:
            self._metrics.observe_gaps(model, gaps)

    def ended(self, context: RequestContext, status: int, code: str | None) -> None:
        seconds = self.clock() - context.arrived
        if self._metrics is not None:
            self._metrics.count(context, status, code, seconds)
        if self._access_log:
            self._write(json.dumps(_access_record(context, status, code, seconds)) + "\n")


def _access_record(context: RequestContext, status: int, code: str | None, seconds: float) -> dict[str, object]:
    """Never with the texts: whoever wants to know them must ask the caller."""
    logged = ("route", "team", "model", "profile", "stream", "answers", "prompt_tokens", "completion_tokens")
    return {
        "event": "request",
        "time": round(time.time(), 3),
        "status": status,
        "code": code,
        **{name: getattr(context, name) for name in logged},
        "first_text_s": None if context.first_text_s is None else round(context.first_text_s, 4),
        "seconds": round(seconds, 4),
    }
