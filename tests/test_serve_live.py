"""Live records: which answers have one, what is in it, and that no request waits for it or fails of it."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.asgi import KEYS_TEXT, LAB, Answered, Counting, Scripted, app_around
from support.live import CHAT, NOW_S, VALUES, Counted, Predictor, live_in, records, sent

from serve.answering import Generate
from serve.live import MOST_RATING, Live
from serve.live_store import LiveSettings
from serve.locate import locate_all
from serve.models import ServedPolicies, ServedPolicy
from serve.request import Delta, PolicyInfo, Started
from serve.settings import ServeSettings

TWO_TOKENS = "It is."


def run(
    live: Live, predictor: Predictor, *requests: dict[str, Any], generate: Generate | None = None, path: str = CHAT
) -> list[Answered]:
    """The answers to requests, one after the other; then what waits is rated and written."""
    app = app_around(generate or Scripted().generate, predictor.score, live=live)

    async def session() -> list[Answered]:
        answered = [await sent(app, fields, path) for fields in requests]
        await live.aclose()
        return answered

    answered = asyncio.run(session())
    assert [one.status for one in answered] == [200] * len(requests), answered
    return answered


@pytest.mark.parametrize("stream", [False, True])
def test_a_rated_answer_is_recorded_without_its_text(tmp_path: Path, stream: bool) -> None:
    predictor = Predictor()
    wanted = {"attributes": {"humor": 4, "verbosity": 0.6}, "score": True, "stream": stream, "guidance": 2}
    [answered] = run(live_in(tmp_path, predictor.score), predictor, wanted)
    [record] = records(tmp_path)
    assert record.model_dump() == {
        "time": datetime.fromtimestamp(NOW_S, UTC),
        "team": "everyone",
        "model": "demo",
        "policy": "runs/demo",
        "profile": None,
        "scales": {a.name: (a.low, a.high) for a in LAB.attributes},
        "requested": {"humor": 4, "verbosity": 0.6},
        "effective": LAB.defaults() | {"humor": 4, "verbosity": 1},
        "measured": VALUES,
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "sampled": False,
        "best_of": 0,
        "guidance": 2,
    }
    assert predictor.num == 1
    [file] = tmp_path.rglob("*.jsonl")
    kept = f"{file} {file.read_text()}"
    id = answered.chunks[0]["id"] if stream else answered.json["id"]
    for never in (TWO_TOKENS, "Why", id, id.partition("-")[2]):
        assert never not in kept


@pytest.mark.parametrize("stream", [False, True])
def test_a_drawn_answer_is_rated_in_the_background_and_costs_its_caller_nothing(tmp_path: Path, stream: bool) -> None:
    predictor, counted = Predictor(), Counted()
    live = live_in(tmp_path, predictor.score, counted, share=0.6)
    [answered] = run(live, predictor, {"attributes": {"humor": 4}, "stream": stream})
    steering = answered.chunks[0]["steering"] if stream else answered.json["steering"]
    assert "measured" not in steering
    if not stream:
        assert answered.json["usage"]["total_tokens"] == 9
    [record] = records(tmp_path)
    assert (record.sampled, record.effective["humor"], record.measured) == (True, 4, VALUES)
    assert counted.observed == [dict.fromkeys(LAB.names, 0.0) | {"humor": 1.5}], "the alert rests on it"
    assert counted.dropped == []


@pytest.mark.parametrize(("draw", "fields", "num", "sampled"), [(0.7, {}, 0, []), (0.7, {"score": True}, 1, [False])])
def test_what_is_not_drawn_is_not_rated(
    tmp_path: Path, draw: float, fields: dict[str, Any], num: int, sampled: list[bool]
) -> None:
    predictor = Predictor()
    run(live_in(tmp_path, predictor.score, share=0.6, draw=lambda: draw), predictor, fields)
    assert predictor.num == num
    assert [record.sampled for record in records(tmp_path)] == sampled


def test_the_chosen_answer_of_best_of_is_recorded_with_its_own_tokens(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"best_of": 3, "seed": 0}, generate=Counting().generate)
    [record] = records(tmp_path)
    assert (record.best_of, record.completion_tokens, record.sampled) == (3, 1, True)
    assert predictor.num == 3, "it is rated once"


def test_of_several_choices_the_first_is_recorded(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"n": 3, "seed": 0}, {"n": 3, "seed": 0, "stream": True}, generate=Counting().generate)
    assert [(r.completion_tokens, r.prompt_tokens) for r in records(tmp_path)] == [(1, 7), (1, 7)]


def test_raw_prompts_and_empty_answers_have_no_record(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"prompt": "Why?"}, path="/v1/completions")
    empty = Scripted((Started(7), Delta("", 0, "stop")))
    run(live, predictor, {}, {"score": True}, generate=empty.generate)
    assert records(tmp_path) == []


def test_the_newer_route_and_teams_are_recorded(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    app = app_around(Scripted().generate, predictor.score, keys_text=KEYS_TEXT, live=live)

    async def session() -> None:
        await sent(app, {"input": "Why?"}, "/v1/responses", key="key-all")
        await sent(app, {}, key="key-games")
        await live.aclose()

    asyncio.run(session())
    found = [(r.team, r.profile) for r in records(tmp_path)]
    assert found == [("all", None), ("games", "gaming")]


def test_values_are_those_that_the_policy_was_labeled_with(tmp_path: Path) -> None:
    """A reply with `score` and a record in the background measure with the same calibration."""
    calibration = json.dumps({"scale": {"humor": 2.0}, "shift": {"humor": -1.0}})
    info = PolicyInfo("demo", LAB.model_dump_json(), "runs/demo", calibration, context=512)
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    app = app_around(Scripted().generate, predictor.score, models=ServedPolicies([ServedPolicy(info)]), live=live)

    async def session() -> Any:
        await sent(app, {})
        answered = await sent(app, {"score": True})
        await live.aclose()
        return answered.json["steering"]["measured"]

    measured = asyncio.run(session())
    assert measured["humor"] == 4.0
    assert [r.measured for r in records(tmp_path)] == [measured, measured]


def test_a_predictor_that_is_slow_or_away_costs_records_and_no_request(tmp_path: Path) -> None:
    predictor, counted = Predictor(), Counted()
    live = live_in(tmp_path, predictor.score, counted, share=1)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        predictor.go.clear()
        for _ in range(MOST_RATING + 3):
            assert (await sent(app, {})).status == 200
        assert counted.dropped == ["rating"] * 3
        predictor.go.set()
        while live._rating:
            await asyncio.sleep(0)
        predictor.fails = True
        assert (await sent(app, {})).status == 200
        await live.aclose()

    asyncio.run(session())
    assert counted.dropped == ["rating"] * 4
    assert len(records(tmp_path)) == MOST_RATING


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"live": {"share": 0.1}}, r"share is 0\.1, but store is null: set store to a folder, or share to 0"),
        ({"live": {"store": "memory://x"}}, "is gone when the process ends"),
        ({"live": {"store": "x", "share": 1.5}}, "less than or equal to 1"),
        ({"live": {"store": "x"}, "feedback": {"store": "x"}}, r"are the same folder, and a run reads .* live\.store"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServeSettings.model_validate(settings)


def test_without_a_predictor_there_is_nothing_to_record(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    settings = ServeSettings.model_validate({"policy": str(tmp_path / "policy"), "live": {"store": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"live\.store is set, but no attribute predictor is served .* set predictor"):
        locate_all(settings)


def test_it_is_off_unless_a_store_is_named() -> None:
    assert Live.of(LiveSettings(), Predictor().score, Counted()) is None
