"""The replies: OpenAI's shape, whole and in chunks."""

import json
from typing import Any

from serve.protocol import ProtocolRecord
from serve.reply import BestOfCandidate, BestOfChoice, ChatReply, FinishedAnswer, Steering, Usage

USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def sent(record: ProtocolRecord) -> dict[str, Any]:
    return dict(json.loads(record.model_dump_json()))


def test_replies_have_openai_s_shape() -> None:
    reply = ChatReply("demo", Steering(requested={"humor": 2.5}, effective={"humor": 2}))
    whole = sent(reply.whole([FinishedAnswer("Hi.", "stop")], USAGE))
    assert whole["object"] == "chat.completion"
    assert whole["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop", "logprobs": None}
    ]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert whole["steering"] == {"requested": {"humor": 2.5}, "effective": {"humor": 2}}
    chunks = (
        *reply.opening(0),
        *reply.pieces(0, "Hi."),
        *reply.closing(0, "length"),
        *reply.counts(USAGE),
    )
    opening, piece, closing, counts = map(sent, chunks)
    assert {chunk["id"] for chunk in (whole, opening, piece, closing, counts)} == {whole["id"]}
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert opening["steering"] == whole["steering"]
    assert piece["choices"][0] == {"index": 0, "delta": {"content": "Hi."}, "finish_reason": None, "logprobs": None}
    assert closing["choices"][0]["delta"] == {}
    assert closing["choices"][0]["finish_reason"] == "length"
    assert counts["choices"] == []
    assert counts["usage"] == whole["usage"]
    assert "usage" not in piece
    assert "steering" not in piece


def test_what_was_measured_stands_beside_what_was_requested() -> None:
    reply = ChatReply("demo", Steering(requested={}, effective={"humor": 2}))
    first, second = FinishedAnswer("a", "stop", {"humor": 1.5}), FinishedAnswer("b", "length", {"humor": 3.0})
    two = sent(reply.whole([first, second], USAGE))
    assert [(c["index"], c["measured"]) for c in two["choices"]] == [(0, {"humor": 1.5}), (1, {"humor": 3.0})]
    assert two["steering"] == {"requested": {}, "effective": {"humor": 2}, "measured": {"humor": 1.5}}
    candidate = BestOfCandidate(measured={"humor": 1.5}, distance=0.125, chosen=True)
    best = sent(reply.whole([first], USAGE, BestOfChoice([candidate])))
    assert best["steering"]["candidates"] == [{"measured": {"humor": 1.5}, "distance": 0.125, "chosen": True}]
    [closing] = map(sent, reply.closing(0, "stop", {"humor": 1.5}))
    assert closing["steering"] == closing["choices"][0]["delta"]["steering"] == two["steering"]
    assert closing["choices"][0]["finish_reason"] == "stop"
    assert [sent(reply.pieces(i, "x")[0])["choices"][0]["index"] for i in (0, 1)] == [0, 1]
