"""People's ratings of answers over HTTP, without Ray: who may rate what, and which row comes of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send
from support.asgi import LAB, USER, Answered, Scripted, app_around, ask, exchanged
from support.feedback import answer_id, error_code, feedback_in, files, human, keyed_app, rated, rows

from data.attributes import SHIPPED
from data.conversation import Conversation, Message
from data.sources import read
from serve.models import ServedPolicies, ServedPolicy
from serve.request import Delta, PolicyInfo, Started

HOUR = {"answers_minutes": 60, "retention_days": 30}


def sent(app: Any, method: str, path: str, key: str | None = None) -> Answered:
    return asyncio.run(exchanged(app, method, path, b"", key=key))


def test_a_rating_is_a_row_of_the_next_run(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    messages = [
        {"role": "system", "content": "Be short."},
        USER,
        {"role": "assistant", "content": "So.", "attributes": {"humor": 4}},
        {"role": "user", "content": "And?"},
    ]
    id = answer_id(app, messages=messages, attributes={"humor": 3})
    assert rows_if_any(tmp_path) == [], "an answer alone is no row"
    assert rated(app, "a", id, helpfulness=3, verbosity=0.5) == (
        200,
        {"object": "feedback", "id": id, "index": 0, "attributes": {"helpfulness": 3.0, "verbosity": 0.5}},
    )
    [row] = rows(tmp_path)
    assert isinstance(row, Conversation)
    assert (row.source, row.system) == ("feedback", "Be short.")
    assert row.messages == (
        Message("user", "Why?"),
        Message("assistant", "So."),
        Message("user", "And?"),
        Message("assistant", "It is."),
    )
    assert row.human == ({}, {"helpfulness": 3.0, "verbosity": 0.5}), "what was requested of an answer is no rating"
    [file] = [name for name in files(tmp_path) if name.endswith(".jsonl")]
    record = json.loads((tmp_path / file).read_text())
    assert record["feedback"].items() >= {"answer": id, "team": "games", "model": "demo", "policy": "runs/demo"}.items()
    assert record["feedback"]["requested"] == {"humor": 3.0}
    assert record["feedback"]["effective"]["humor"] == 3


def rows_if_any(folder: Path) -> list[object]:
    return list(rows(folder)) if any(name.endswith(".jsonl") for name in files(folder)) else []


def test_a_key_that_rates_again_replaces_its_rating_and_two_keys_are_two_raters(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = answer_id(app)
    for value in (1, 4, 4):
        assert rated(app, "a", id, humor=value)[0] == 200
    assert human(tmp_path) == [[{"humor": 4.0}]]
    assert rated(app, "b", id, humor=2, toxicity=0)[0] == 200
    assert sorted(human(tmp_path), key=str) == [[{"humor": 2.0, "toxicity": 0.0}], [{"humor": 4.0}]]
    assert len({row.id for row in rows(tmp_path) if isinstance(row, Conversation)}) == 1, "the run takes their mean"


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_is_rated_by_its_index(tmp_path: Path, stream: bool) -> None:
    app = keyed_app(feedback_in(tmp_path))
    answered = ask(app, "a", messages=[USER], n=2, stream=stream)
    id = answered.chunks[0]["id"] if stream else answered.json["id"]
    assert rated(app, "a", id, index=1, humor=2)[0] == 200
    assert error_code(rated(app, "a", id, index=2, humor=2)) == (400, "unknown_choice")
    assert [name.rpartition("/")[2][:2] for name in files(tmp_path) if name.endswith(".jsonl")] == ["1."]


def test_an_answer_that_was_begun_by_the_caller_is_whole(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = answer_id(app, messages=[USER, {"role": "assistant", "content": "Well: "}])
    assert rated(app, "a", id, humor=2)[0] == 200
    [row] = rows(tmp_path)
    assert isinstance(row, Conversation)
    assert row.messages[-1].content == "Well: It is."


def test_an_answer_of_the_responses_route(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = ask(app, "c", "/v1/responses", input="Why?").json["id"]
    assert id.startswith("resp_")
    assert rated(app, "c", id, humor=2)[0] == 200
    assert human(tmp_path) == [[{"humor": 2.0}]]


def test_who_may_rate(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = answer_id(app)
    assert error_code(rated(app, "d", answer_id(app, "d"), humor=1)) == (403, "feedback_forbidden")
    assert error_code(rated(app, "d", id, humor=1)) == (403, "feedback_forbidden")
    assert error_code(rated(app, None, id, humor=1)) == (401, "invalid_api_key")
    assert error_code(rated(app, "c", id, humor=1)) == (404, "answer_not_found"), "of another team"
    for unknown in ("chatcmpl-1", "../games/_answers/x", f"chatcmpl-{'0' * 32}"):
        assert error_code(rated(app, "a", unknown, humor=1)) == (404, "answer_not_found")
    assert all(name.startswith("games/_answers/") for name in files(tmp_path)), "of silent teams nothing is kept"
    assert len(files(tmp_path)) == 1


def test_where_it_is_off_a_sentence_says_what_turns_it_on(tmp_path: Path) -> None:
    app = keyed_app(None)
    status, reply = rated(app, "a", answer_id(app), humor=1)
    assert (status, reply["error"]["code"]) == (404, "feedback_off")
    assert "the setting feedback.store" in reply["error"]["message"]
    assert sent(app, "DELETE", "/v1/feedback", "a").json["error"]["code"] == "feedback_off"
    assert sent(app, "GET", "/v1/attributes", "a").json["feedback"] is None


def test_the_attributes_say_whether_the_caller_may_rate(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path, **HOUR))
    assert sent(app, "GET", "/v1/attributes", "a").json["feedback"] == HOUR
    assert sent(app, "GET", "/v1/attributes", "d").json["feedback"] is None


def test_without_keys_this_machine_rates(tmp_path: Path) -> None:
    app = app_around(Scripted().generate, feedback=feedback_in(tmp_path))
    id = answer_id(app, None)
    assert rated(app, None, id, humor=1)[0] == 200
    assert rated(app, "any", id, humor=3)[0] == 200, "a header that opens nothing makes no second rater"
    assert human(tmp_path) == [[{"humor": 3.0}]]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"attributes": {"humour": 1}}, "attributes.humour", "did you mean 'humor'?"),
        ({"attributes": {"humor": 4.5}}, "attributes.humor", "got 4.5, out of range: an allowed value is a number"),
        ({"attributes": {"humor": True}}, "attributes.humor", "an allowed value is a number from 0 to 4"),
        ({"attributes": {"humor": None}}, "attributes.humor", "an allowed value is a number from 0 to 4"),
        ({"attributes": {}}, "attributes", "an object with one or more"),
        ({}, "attributes", "attributes is missing"),
        ({"attributes": {"humor": 1}, "id": 5}, "id", "id is 5; allowed: the id of a reply"),
        ({"attributes": {"humor": 1}, "index": -1}, "index", "a whole number from 0"),
        ({"attributes": {"humor": 1}, "comment": "good"}, "comment", "known here: id, index, attributes"),
    ],
)
def test_a_wrong_rating_names_the_field(tmp_path: Path, fields: dict[str, Any], param: str, words: str) -> None:
    app = keyed_app(feedback_in(tmp_path))
    answered = ask(app, "a", "/v1/feedback", **{"id": answer_id(app), **fields})
    assert answered.status == 400
    assert answered.json["error"]["param"] == param
    assert words in answered.json["error"]["message"]
    assert rows_if_any(tmp_path) == []


def test_deletion_takes_text_and_ratings(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    gone, stays, others = answer_id(app), answer_id(app), answer_id(app, "c")
    for key, id in [("a", gone), ("b", gone), ("a", stays), ("c", others)]:
        assert rated(app, key, id, humor=1)[0] == 200
    path = f"/v1/feedback/{gone}"
    assert sent(app, "DELETE", path, "c").status == 404, "of another team"
    assert sent(app, "DELETE", path, "d").status == 403
    assert sent(app, "DELETE", path).status == 401
    assert sent(app, "DELETE", path, "a").json == {"object": "feedback.deleted", "answers": 1, "ratings": 2}
    assert not [name for name in files(tmp_path) if gone in name]
    assert sent(app, "DELETE", path, "a").status == 404
    assert rated(app, "a", gone, humor=1)[0] == 404
    assert sent(app, "DELETE", "/v1/feedback", "b").json == {"object": "feedback.deleted", "answers": 1, "ratings": 1}
    assert all(name.startswith("school/") for name in files(tmp_path))
    assert len(files(tmp_path)) == 2


def test_what_cannot_be_a_row_is_not_kept(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    assert ask(app, "a", "/v1/completions", prompt="Owls").status == 200
    answer_id(app, messages=[{"role": "assistant", "content": "Hello."}, USER])
    empty = keyed_app(feedback_in(tmp_path), Scripted((Started(7), Delta("  ", 1, "stop"))).generate)
    answer_id(empty)
    assert files(tmp_path) == []


def test_an_answer_that_broke_off_is_not_kept(tmp_path: Path) -> None:
    script = Scripted((Started(7), Delta("It ", 1)), stalls=True)
    app = keyed_app(feedback_in(tmp_path), script.generate)
    body = json.dumps({"messages": [USER], "stream": True}).encode()
    asyncio.run(exchanged(app, "POST", "/v1/chat/completions", body, gone_after=2, key="a"))
    assert script.num_closed == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_the_end_of_a_reply_can_rate_it(tmp_path: Path, stream: bool) -> None:
    app, kept = keyed_app(feedback_in(tmp_path)), list[int]()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def seen(message: ASGIMessage) -> None:
            if b'"finish_reason":"stop"' in message.get("body", b""):
                kept.append(len(files(tmp_path)))
            await send(message)

        await app(scope, receive, seen)

    assert ask(watched, "a", messages=[USER], n=2, stream=stream).status == 200
    assert kept[-1] == 1, "the text was written before the last answer's end was sent"


def test_a_rating_is_taken_after_a_restart_with_another_model(tmp_path: Path) -> None:
    id = answer_id(keyed_app(feedback_in(tmp_path)))
    other = PolicyInfo("other", SHIPPED["steerlm_paper"].model_dump_json(), context=512)
    again = keyed_app(feedback_in(tmp_path), models=ServedPolicies([ServedPolicy(other)]))
    assert error_code(rated(again, "b", id, humor=5)) == (400, "invalid_attribute"), (
        "on the scale under which it was given"
    )
    assert rated(again, "b", id, humor=2)[0] == 200
    assert human(tmp_path) == [[{"humor": 2.0}]]


def test_rows_of_another_scale_are_rejected_and_not_misread(tmp_path: Path) -> None:
    app = keyed_app(feedback_in(tmp_path))
    assert rated(app, "a", answer_id(app), humor=4)[0] == 200
    wider = LAB.model_copy(
        update={"attributes": tuple(a.model_copy(update={"high": 9}) for a in LAB.attributes)},
    )
    [rejected] = read(str(tmp_path), "messages", wider, "feedback")
    assert not isinstance(rejected, Conversation)
    assert rejected.reason == "other_scale"
    assert "'humor'" in rejected.detail or "'helpfulness'" in rejected.detail


def test_openapi_knows_the_routes() -> None:
    described = sent(app_around(Scripted().generate), "GET", "/openapi.json").json
    assert set(described["paths"]["/v1/feedback"]) == {"post", "delete"}
    body = described["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/FeedbackRequest"}
    assert "delete" in described["paths"]["/v1/feedback/{id}"]
