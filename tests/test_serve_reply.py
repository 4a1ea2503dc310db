"""The replies: OpenAI's shape, whole and in chunks."""

from serve.protocol import Candidate, Steering
from serve.reply import Answer, Reply, usage


def test_replies_have_openai_s_shape() -> None:
    reply = Reply("demo", Steering(requested={"humor": 2.5}, effective={"humor": 2}))
    whole = reply.whole([Answer("Hi.", "stop", 2)], usage(3, 2))
    assert whole["object"] == "chat.completion"
    assert whole["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop", "logprobs": None}
    ]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert whole["steering"] == {"requested": {"humor": 2.5}, "effective": {"humor": 2}}
    opening, piece, closing, counts = (
        reply.opening(0),
        reply.piece(0, "Hi."),
        reply.closing(0, "length"),
        reply.counts(usage(3, 2)),
    )
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


def test_what_was_measured_stands_beside_what_was_asked() -> None:
    reply = Reply("demo", Steering(requested={}, effective={"humor": 2}))
    two = reply.whole([Answer("a", "stop", 1, {"humor": 1.5}), Answer("b", "length", 2, {"humor": 3.0})], usage(3, 3))
    assert [(c["index"], c["measured"]) for c in two["choices"]] == [(0, {"humor": 1.5}), (1, {"humor": 3.0})]
    assert two["steering"] == {"requested": {}, "effective": {"humor": 2}, "measured": {"humor": 1.5}}
    best = reply.whole(
        [Answer("a", "stop", 1, {"humor": 1.5})],
        usage(3, 3),
        [Candidate(measured={"humor": 1.5}, distance=0.125, chosen=True)],
    )
    assert best["steering"]["candidates"] == [{"measured": {"humor": 1.5}, "distance": 0.125, "chosen": True}]
    assert reply.measured({"humor": 1.5})["steering"] == two["steering"]
    assert [reply.piece(i, "x")["choices"][0]["index"] for i in (0, 1)] == [0, 1]
