"""The replies: OpenAI's shape, whole and in chunks."""

from serve.reply import Reply, usage
from serve.wire import Steering


def test_replies_have_openai_s_shape() -> None:
    reply = Reply("demo", Steering(requested={"humor": 2.5}, effective={"humor": 2}))
    whole = reply.whole("Hi.", "stop", usage(3, 2))
    assert whole["object"] == "chat.completion"
    assert whole["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop", "logprobs": None}]
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert whole["steering"] == {"requested": {"humor": 2.5}, "effective": {"humor": 2}}
    opening, piece, closing, counts = reply.opening(), reply.piece("Hi."), reply.closing("length"), reply.counts(usage(3, 2))
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
