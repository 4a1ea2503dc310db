"""What the endpoint tells of itself: metrics through Ray (Prometheus), and one JSON line per request. Never what was said.

Names and units of all metrics stand here and nowhere else. Knows no HTTP and no policy.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

CALLER = ("model", "team", "profile")
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60]
POINTS = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 9]


class EndpointMetrics:
    """Of the ingress: requests as callers see them."""

    def __init__(self) -> None:
        self.requests = Counter("steerlm_requests_total", "Requests by HTTP status.", (*CALLER, "status"))
        self.refused = Counter(
            "steerlm_refused_total", "Requests that got no answer, by error code.", (*CALLER, "code")
        )
        self.open = Gauge("steerlm_open_requests", "Requests that are being answered or wait.", ("model",))
        self.prompt_tokens = Counter("steerlm_prompt_tokens_total", "Prompt tokens of answered requests.", CALLER)
        self.completion_tokens = Counter("steerlm_completion_tokens_total", "Answer tokens that callers got.", CALLER)
        self.first_text = Histogram(
            "steerlm_time_to_first_text_seconds",
            "From the request's arrival to the answer's first text.",
            SECONDS,
            ("model",),
        )
        self.seconds = Histogram(
            "steerlm_request_seconds", "From the request's arrival to the reply's end.", SECONDS, ("model",)
        )
        self.gap = Histogram(
            "steerlm_steering_gap_points",
            "|measured - asked for|, in points of the attribute's scale, of rated answers.",
            POINTS,
            ("model", "attribute"),
        )


class EngineMetrics:
    """Of a replica: what its engine does."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self.running = Gauge("steerlm_slots_running", "Answers that are being written.", ("model",))
        self.waiting = Gauge("steerlm_slots_waiting", "Requests in a replica that wait for a slot.", ("model",))
        self.prefilled = Counter(
            "steerlm_prefilled_tokens_total", "Prompt tokens that went through the model.", ("model",)
        )
        self.reused = Counter(
            "steerlm_prefix_hit_tokens_total",
            "Prompt tokens whose keys and values were known from an earlier prompt.",
            ("model",),
        )
        self.generated = Counter(
            "steerlm_generated_tokens_total", "Tokens the engine wrote, thrown away ones included.", ("model",)
        )
        self._told: dict[str, int] = {}

    def log_event(self, running: int, waiting: int, **totals: int) -> None:
        """`totals`: prefilled, reused and generated tokens of an engine so far; one that counts anew is a new engine."""
        self.running.set(running, self._tags)
        self.waiting.set(waiting, self._tags)
        for name, total in totals.items():
            before = self._told.get(name, 0)
            new = total - before if total >= before else total
            if new:
                getattr(self, name).inc(new, self._tags)
            self._told[name] = total


@dataclass
class RequestContext:
    """One request to /v1/chat/completions, from its arrival to its end."""

    telemetry: "Telemetry"
    arrived: float
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
    """Status and error code of a stream, once it has said its last."""
    over: bool = False

    def heard_text(self) -> None:
        if self.first_text_s is None:
            self.first_text_s = self.telemetry.clock() - self.arrived

    def end(self, status: int, code: str | None = None) -> None:
        """The first call counts."""
        if not self.over:
            self.over = True
            self.telemetry.ended(self, status, code)


class Telemetry:
    """Books every visit once."""

    def __init__(
        self,
        metrics: EndpointMetrics | None,
        access_log: bool,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], Any] = sys.stdout.write,
    ):
        self.metrics, self._access_log, self.clock, self._write = metrics, access_log, clock, write
        self._open: dict[str, int] = {}

    def visit(self) -> RequestContext:
        return RequestContext(self, self.clock())

    def admitted(self, visit: RequestContext, change: int) -> None:
        """A request of a model begins (+1) or ends (-1)."""
        self._open[visit.model] = self._open.get(visit.model, 0) + change
        if self.metrics is not None:
            self.metrics.open.set(self._open[visit.model], {"model": visit.model})

    def ended(self, visit: RequestContext, status: int, code: str | None) -> None:
        seconds = self.clock() - visit.arrived
        if self.metrics is not None:
            self._count(self.metrics, visit, status, code, seconds)
        if self._access_log:
            self._write(json.dumps(_line(visit, status, code, seconds)) + "\n")

    def _count(
        self, metrics: EndpointMetrics, visit: RequestContext, status: int, code: str | None, seconds: float
    ) -> None:
        caller = {"model": visit.model, "team": visit.team, "profile": visit.profile}
        metrics.requests.inc(1, caller | {"status": str(status)})
        if code is not None:
            metrics.refused.inc(1, caller | {"code": code})
        for counter, tokens in (
            (metrics.prompt_tokens, visit.prompt_tokens),
            (metrics.completion_tokens, visit.completion_tokens),
        ):
            if tokens:
                counter.inc(tokens, caller)
        if visit.first_text_s is not None:
            metrics.first_text.observe(visit.first_text_s, {"model": visit.model})
        metrics.seconds.observe(seconds, {"model": visit.model})
        for attribute, gap in visit.gaps.items():
            metrics.gap.observe(gap, {"model": visit.model, "attribute": attribute})


def _line(visit: RequestContext, status: int, code: str | None, seconds: float) -> Mapping[str, Any]:
    """The access log's record; whoever wants to know what was said must ask the caller."""
    return {
        "event": "request",
        "time": round(time.time(), 3),
        "status": status,
        "code": code,
        "team": visit.team,
        "model": visit.model,
        "profile": visit.profile,
        "stream": visit.stream,
        "answers": visit.answers,
        "prompt_tokens": visit.prompt_tokens,
        "completion_tokens": visit.completion_tokens,
        "first_text_s": None if visit.first_text_s is None else round(visit.first_text_s, 4),
        "seconds": round(seconds, 4),
    }
