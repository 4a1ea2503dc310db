"""What is counted, and that nothing is counted twice."""

from collections import defaultdict
from typing import Any

import pytest
from support.manual_clock import ManualClock

from actors.generation.protocol import Load
from serve import telemetry
from serve.telemetry import MAX_KEYS, MAX_NOTES, NOTE_S, EndpointMetrics, EngineMetrics, Notes, Telemetry

COUNTED: dict[str, float] = defaultdict(float)


class Fake:
    """A metric of Ray's that remembers its calls."""

    def __init__(self, name: str, description: str = "", *rest: Any) -> None:
        assert description.endswith("."), "every metric has a description"
        self.name = name

    def inc(self, value: float, tags: dict[str, str]) -> None:
        COUNTED[f"{self.name} {' '.join(tags.values())}"] += value

    observe = inc

    def set(self, value: float, tags: dict[str, str]) -> None:
        COUNTED[f"{self.name} {' '.join(tags.values())}"] = value


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    COUNTED.clear()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(telemetry, kind, Fake)


def test_an_answer_whose_text_was_not_kept_is_counted() -> None:
    Telemetry(EndpointMetrics(), access_log=False).unkept()
    Telemetry(None, access_log=False).unkept()
    assert COUNTED == {"steerlm_answers_not_kept_total ": 1}


def test_answers_without_a_live_record_are_counted_and_gaps_of_the_background_are_among_all() -> None:
    book = Telemetry(EndpointMetrics(), access_log=False)
    book.live_dropped("rating")
    book.gaps("demo", {"humor": 1.5, "toxicity": 0.0})
    Telemetry(None, access_log=False).live_dropped("rating")
    Telemetry(None, access_log=False).gaps("demo", {"humor": 1.5})
    assert COUNTED == {
        "steerlm_live_records_dropped_total rating": 1,
        "steerlm_steering_gap_points demo humor": 1.5,
        "steerlm_steering_gap_points demo toxicity": 0.0,
    }


def test_a_request_is_counted_once_with_its_tokens_times_and_gaps() -> None:
    now = [100.0]
    book = Telemetry(EndpointMetrics(), access_log=False, clock=lambda: now[0])
    context = book.arrived("/v1/chat/completions")
    context.model, context.team, context.profile = "demo", "games", "gaming"
    book.admitted(context, +1)
    assert COUNTED["steerlm_open_requests demo"] == 1
    now[0] = 100.25
    context.record_first_text()
    now[0] = 101.0
    context.record_first_text()
    context.prompt_tokens, context.completion_tokens, context.gaps = 7, 3, {"humor": 1.5}
    book.admitted(context, -1)
    context.end(200)
    context.end(499, "client_left")
    assert COUNTED == {
        "steerlm_open_requests demo": 0,
        "steerlm_requests_total demo games gaming /v1/chat/completions 200": 1,
        "steerlm_prompt_tokens_total demo games gaming": 7,
        "steerlm_completion_tokens_total demo games gaming": 3,
        "steerlm_time_to_first_text_seconds demo": 0.25,
        "steerlm_request_seconds demo": 1.0,
        "steerlm_steering_gap_points demo humor": 1.5,
    }


def test_a_refusal_is_counted_by_its_code() -> None:
    book = Telemetry(EndpointMetrics(), access_log=False)
    book.arrived("/v1/chat/completions").end(401, "invalid_api_key")
    assert COUNTED["steerlm_refused_total    invalid_api_key"] == 1
    assert not [name for name in COUNTED if "tokens" in name]


def test_an_engine_s_totals_become_increments_and_a_new_engine_counts_anew() -> None:
    metrics = EngineMetrics("demo")
    metrics.update(Load(2, 1, prefilled_tokens=10, reused_tokens=0, generated_tokens=5))
    metrics.update(Load(1, 0, prefilled_tokens=15, reused_tokens=4, generated_tokens=5))
    metrics.update(Load(0, 0, prefilled_tokens=3, reused_tokens=0, generated_tokens=1))
    assert COUNTED["steerlm_prefill_tokens_total demo"] == 18
    assert COUNTED["steerlm_prefix_cache_hit_tokens_total demo"] == 4
    assert COUNTED["steerlm_generated_tokens_total demo"] == 6
    assert COUNTED["steerlm_engine_requests_running demo"] == 0


def test_what_was_not_used_is_noted_once_for_each_key_name_and_minute() -> None:
    clock = ManualClock()
    notes = Notes(clock)
    assert notes.new("a", {"store", "tools"}) == ["store", "tools"]
    assert notes.new("a", {"store", "metadata"}) == ["metadata"]
    assert notes.new("b", {"store"}) == ["store"]
    clock.now += NOTE_S
    assert notes.new("a", {"store"}) == ["store"]
    assert notes.new("a", ()) == []


def test_notes_are_printable_short_and_few_whatever_callers_send() -> None:
    notes = Notes(ManualClock())
    [note] = notes.new("a", {"\x1b]0;x\x07" * 1000})
    assert note.isprintable()
    assert len(note) < 400
    assert len(notes.new("b", map(str, range(10_000)))) == MAX_NOTES
    assert notes.new("b", ["one more"]) == []
    for key in range(2 * MAX_KEYS):
        notes.new(key, ["store"])
    assert len(notes._noted) <= MAX_KEYS + 1
