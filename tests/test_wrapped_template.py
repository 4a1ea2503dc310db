"""A chat template rendered once and cut gives the ids of one rendering for each answer, in time linear in the length."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import CHATML, SHAPES, chat_tokenizer

from actors.modeling.tokenizer import chat_ids, check_equality, encoder, make_template
from data.attributes import Values, shipped
from data.conversation import Message
from data.plain_text import BREAK
from data.template import Labels, SteerLMTemplate, Template, TextPiece, Unrenderable, label_line, per_message
from data.tokens import ConversationTokens, Encode, OverLong, Tokens, prompt_ids, tokenize
from data.wrapped_template import MAX_ANSWERS_WITHOUT_FRAME, WrappedTemplate

SCHEMA = shipped("lab")


@functools.cache
def made(shape: str) -> tuple[Any, Template, Encode]:
    tokenizer = chat_tokenizer("chatml" if shape == "steerlm" else shape)
    template = make_template(tokenizer, SCHEMA, "steerlm" if shape == "steerlm" else "chat")
    return tokenizer, template, functools.cache(encoder(tokenizer))


# --- the reference: a rendering for each answer, a tokenization for each exchange that is dropped ----------------------


def old_plain(text: str, control_tokens: Sequence[str]) -> str:
    for token in control_tokens:
        text = text.replace(token, token[0] + BREAK + token[1:])
    return text.strip()


def old_pieces(
    template: Template, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
) -> list[TextPiece]:
    if isinstance(template, SteerLMTemplate):
        return template.pieces(system, messages, labels, attributes)
    assert isinstance(template, WrappedTemplate)
    control = template.control_tokens
    chat: list[dict[str, Any]] = [{"role": "system", "content": old_plain(system, control)}] if system else []
    above = ""
    if template.merges_system and chat:
        above = f"{chat.pop()['content']}\n\n".lstrip("\n")
    pieces: list[TextPiece] = []
    done = ""
    for message, values in zip(messages, per_message(messages, labels), strict=True):
        content = above + old_plain(message.content, control)
        above = ""
        if message.role == "assistant":
            line = label_line(SCHEMA, values)
            prompt = template.render(template.base, chat, True) + line
            chat.append({"role": "assistant", "content": line + content})
            whole = template.render(template.base, chat, False)
            assert whole.startswith(prompt + content)
            assert prompt.startswith(done)
            tail = whole[len(prompt + content) :]
            end = tail[: min(tail.find(t) + len(t) for t in control if t in tail)]
            pieces += [TextPiece(prompt[len(done) :]), TextPiece(content + end, trained=True)]
            done = prompt + content + end
        else:
            chat.append({"role": "user", "content": content})
    if messages and messages[-1].role == "user":
        prompt = template.render(template.base, chat, True)
        assert prompt.startswith(done)
        pieces.append(TextPiece(prompt[len(done) :] + label_line(SCHEMA, attributes)))
    return pieces


def old_fitted(
    template: Template, encode: Encode, system: str, messages: Sequence[Message], labels: Labels, max_tokens: int
) -> Tokens:
    dropped = 0
    while True:
        tokens = tokenize(old_pieces(template, system, messages, labels), encode)
        if len(tokens) <= max_tokens:
            return Tokens(tokens.ids_T, tokens.trained_T, tokens.turn_ends_S, dropped)
        if len(messages) <= 2:
            raise OverLong(f"the last exchange has {len(tokens)} tokens, max_tokens is {max_tokens}")
        messages, labels, dropped = messages[2:], labels[1:], dropped + 1


BITS = st.sampled_from(
    [
        "bees",
        "dance ",
        " so",
        "\n\n",
        "1. ",
        "é🐝",
        "<",
        ">",
        "<extra_id_2>humor:4\n",
        "<|im_end|>",
        "<|eot_id|>",
        "</s>",
    ]
    + ["user", "assistant", "<end_of_turn>", "\u200b", "{{ x }}", "|im", "<extra_id_1>"]
)
TEXTS = st.lists(BITS, min_size=1, max_size=6).map("".join).filter(lambda text: bool(text.strip()))
VALUES = st.none() | st.dictionaries(st.sampled_from(SCHEMA.names), st.floats(0, 4), max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, list[Message], list[Values | None]]:
    num_answers = draw(st.integers(1, 6))
    turns = [Message(("user", "assistant")[i % 2], draw(TEXTS)) for i in range(2 * num_answers)]
    return draw(st.just("") | TEXTS), turns, [draw(VALUES) for _ in range(num_answers)]


def plain_lists(tokens: Tokens) -> tuple[object, ...]:
    assert (tokens.ids_T.dtype, tokens.turn_ends_S.dtype, tokens.trained_T.dtype) == ("int32", "int32", "bool")
    return tokens.ids_T.tolist(), tokens.trained_T.tolist(), tokens.turn_ends_S.tolist(), tokens.num_dropped_turns


@pytest.mark.case("27-many-turns")
@pytest.mark.parametrize("shape", ["steerlm", *SHAPES])
@given(drawn=conversations(), share=st.floats(0.05, 1.2))
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_a_rendering_for_each_answer(
    shape: str, drawn: tuple[str, list[Message], list[Values | None]], share: float
) -> None:
    system, turns, labels = drawn
    _, template, encode = made(shape)
    asked = {"humor": 4}
    assert template.pieces(system, turns, labels) == old_pieces(template, system, turns, labels)
    assert template.pieces(system, turns[:-1], labels[:-1], asked) == old_pieces(
        template, system, turns[:-1], labels[:-1], asked
    )
    rendered = ConversationTokens(template, encode, system, turns, labels)
    for num_answers in range(1, len(labels) + 1):
        upto = turns[: 2 * num_answers], labels[:num_answers]
        limit = int(share * len(tokenize(template.pieces(system, *upto), encode)))
        try:
            expected = plain_lists(old_fitted(template, encode, system, *upto, limit))
        except OverLong as problem:
            with pytest.raises(OverLong, match=str(problem)):
                rendered.fitted(limit, num_answers)
        else:
            assert plain_lists(rendered.fitted(limit, num_answers)) == expected
