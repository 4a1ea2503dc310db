import json

from actors.generation.protocol import TokenLogprob
from serve.logprobs import LEAST, ChatLogprobs, CompletionLogprobs, ReportedToken, TokenReporter


def test_tokens_of_half_a_character_have_the_right_places() -> None:
    """One token a byte: "aé." is four of them, and the offsets are those of three characters."""
    ids = list("aé.".encode())
    reporter = TokenReporter(
        lambda i: bytes([i]).decode(errors="replace"), lambda ids: bytes(ids).decode(errors="replace")
    )
    found = reporter.push(ids, [None, *(TokenLogprob(-1.0, ((46, -float("inf")),)) for _ in ids[1:])], last=True)
    assert [token.settled for token in found] == ["a", "", "é", "."]
    assert CompletionLogprobs.of(found, 1).text_offset == [0, 1, 1, 2]
    assert found[1].top == ((".", LEAST),)
    chat = ChatLogprobs.of(found, 1)
    assert [content.bytes for content in chat.content] == [None, None, [46]]
    assert json.loads(chat.model_dump_json())["content"][2] == {
        "token": ".",
        "logprob": -1.0,
        "bytes": [46],
        "top_logprobs": [{"token": ".", "logprob": LEAST, "bytes": [46]}],
    }


def test_of_two_tokens_with_one_text_the_likelier_one_counts() -> None:
    token = ReportedToken("\ufffd", "", -3.0, (("\ufffd", -0.5), ("a", -1.0), ("b", -1.5)))
    assert CompletionLogprobs.of([token], 2).top_logprobs == [{"\ufffd": -0.5, "a": -1.0}]
    assert ChatLogprobs.of([token], 0).content[0].top_logprobs == []
