"""A chat template rendered once and cut: the ids of a rendering for each answer, in time linear in the length."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import CHATML, SHAPES, chat_folder, template_of
from support.tiny_backbones import save_backbone

from actors.modeling.model_folder import Format
from actors.modeling.policy import PolicyText
from actors.modeling.tokenizer import chat_ids, check_equality
from actors.scoring.preprocessor import read
from actors.training.examples import ConversationExamples, ExampleSpec, PredictorExamples
from data.attributes import Values, shipped
from data.conversation import Conversation, Message, to_table
from data.plain_text import BREAK
from data.template import Labels, SteerLMTemplate, Template, TextPiece, Unrenderable, label_line, per_message
from data.tokens import BackboneReading, ConversationTokens, Encode, OverLong, Tokens, prompt_ids, tokenize
from data.wrapped_template import MAX_ANSWERS_WITHOUT_FRAME, WrappedTemplate

SCHEMA = shipped("lab")


# --- the reference: a rendering for each answer, a tokenization for each exchange that is dropped -----------------


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


WORDS = ("bees", "dance ", " so", "\n\n", "1. ", "é🐝", "<", ">", "user", "assistant", "\u200b", "{{ x }}", "<|im")
CONTROL = ("<extra_id_1>", "<extra_id_2>humor:4\n", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")
BITS = st.sampled_from(WORDS + CONTROL)
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
    _, template, encode = template_of(shape)
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


def test_a_frame_is_found_wherever_turns_are_alike() -> None:
    found = {shape: template_of(shape)[1].is_local for shape in SHAPES}
    assert found == {**dict.fromkeys(SHAPES, True), "numbered": False}
    assert isinstance(template := template_of("zephyr")[1], WrappedTemplate)
    assert template.markers == ("<|assistant|>", "<|system|>", "<|user|>")
    assert {template_of(shape)[1].plain.gap for shape in SHAPES} == {BREAK}


# --- time -------------------------------------------------------------------------------------------------------------


def talk(num_answers: int, **more: Any) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Message(roles[i % 2], f"Turn {i}: what is it?") for i in range(2 * num_answers))
    return Conversation("t", "Be kind.", turns, **more)


def ratio(work: Callable[[Conversation], object], **more: Any) -> float:
    """Seconds of a thread for 800 answers over those for 400, the best of several.

    A collection of garbage takes as long as all objects of the process ask for, and only the longer work meets one.
    """
    rows = [talk(n, human=({"humor": 1.0},) * n) for n in (400, 800)]
    best = [float("inf")] * 2
    for _ in range(5):
        for i, row in enumerate(rows):
            gc.collect()
            gc.disable()
            start = time.thread_time()
            try:
                work(row)
            finally:
                best[i] = min(best[i], time.thread_time() - start)
                gc.enable()
    return best[1] / best[0]


@pytest.mark.case("27-many-turns")
@pytest.mark.parametrize("shape", ["steerlm", "llama3"])
def test_a_prompt_of_the_endpoint_takes_linear_time(shape: str) -> None:
    tokenizer, template, _ = template_of(shape)
    policy = PolicyText(Format(tokenizer, template, "chat", BackboneReading()), "p", "", 4096, None)
    end = Message("user", "And now?")
    assert ratio(lambda row: policy.prompt(row.system, [*row.messages, end], {"humor": 4})) < 2.5


@pytest.mark.case("B12: annotating one long dialogue")
@pytest.mark.parametrize("shape", ["steerlm", "chatml"])
def test_annotation_takes_linear_time(shape: str) -> None:
    tokenizer, template, _ = template_of(shape)
    format = Format(tokenizer, template, "chat", BackboneReading())
    assert ratio(lambda row: read([row], format, 512)) < 2.5


@pytest.mark.case("27-many-turns")
def test_training_examples_take_linear_time(tmp_path: Path) -> None:
    maker = ConversationExamples(ExampleSpec(chat_folder("gemma", tmp_path), SCHEMA, "chat", 512))
    assert ratio(lambda row: maker(to_table([row], SCHEMA))) < 2.5


@pytest.mark.case("B12: an encoder reads each answer with all before it")
def test_an_encoder_s_examples_take_linear_time(tmp_path: Path) -> None:
    maker = PredictorExamples(ExampleSpec(save_backbone("bert", str(tmp_path)), SCHEMA, "steerlm", 128))
    assert ratio(lambda row: maker(to_table([row], SCHEMA))) < 2.5


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_template_whose_turns_differ_takes_few_answers_and_says_so(tmp_path: Path) -> None:
    tokenizer, template, _ = template_of("numbered")
    most = MAX_ANSWERS_WITHOUT_FRAME
    assert len(template.pieces("", talk(most).messages, ())) == 2 * most
    with pytest.raises(Unrenderable, match=f"at most {most} answers in a conversation, and this one has {most + 1}; "):
        template.pieces("", talk(most + 1).messages, ())
    kept, whole = read([talk(most + 1)], Format(tokenizer, template, "chat", BackboneReading()), 64)
    assert (len(kept[0]), whole) == (0, [1]), "annotation marks the row as truncated, with no token read"
    maker = ConversationExamples(ExampleSpec(chat_folder("numbered", tmp_path), SCHEMA, "chat", 9999))
    table = maker(to_table([talk(most + 1), talk(2)], SCHEMA))
    assert table.column("reason").to_pylist() == ["chat_template_refuses", ""]


@pytest.mark.case("B12: a template that drops earlier thoughts")
def test_a_row_that_the_template_would_rewrite_is_counted(tmp_path: Path) -> None:
    template = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    maker = ConversationExamples(ExampleSpec(chat_folder("chatml", tmp_path, template=template), SCHEMA, "chat", 999))
    thought = Conversation("t", "", (Message("user", "1+1?"), Message("assistant", "<think>easy</think>2")))
    table = maker(to_table([thought, talk(2)], SCHEMA))
    assert table.column("reason").to_pylist() == ["chat_template_refuses", ""]


@pytest.mark.case("05-chat-template-refuses-system")
def test_without_a_system_role_the_system_text_stands_above_the_first_question() -> None:
    tokenizer, template, encode = template_of("gemma")
    check_equality(tokenizer, template)
    turns = [Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?")]
    first, *_ = template.pieces("Be kind.", turns, ())
    assert "<start_of_turn>user\nBe kind.\n\nHi.<end_of_turn>" in first.text
    chat = [{"role": "system", "content": "Be kind."}, *({"role": m.role, "content": m.content} for m in turns)]
    theirs = chat_ids(tokenizer, chat, template.jinja(), attributes={"humor": 2}, add_generation_prompt=True)
    assert theirs == prompt_ids(template, encode, "Be kind.", turns, {"humor": 2})
    assert "".join(p.text for p in template.pieces(" ", turns[:1], ())).count("\n\n") == 0


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.case("turns in any order")
@pytest.mark.parametrize("shape", ["steerlm", *SHAPES])
def test_a_prompt_may_begin_with_an_assistant_and_end_with_the_answer_s_beginning(shape: str) -> None:
    _, template, encode = template_of(shape)
    asked, user, spaced = {"humor": 4}, Message("user", "Bees?"), Message("assistant", "Bees dance ")
    plain = prompt_ids(template, encode, "Be kind.", [user], asked)
    assert prompt_ids(template, encode, "Be kind.", [user, spaced], asked) == [*plain, *encode("Bees dance")]
    greeted = [Message("assistant", "Hello."), user]
    ids = prompt_ids(template, encode, "", greeted, asked, [None])
    assert len(ids) > len(prompt_ids(template, encode, "", [user], asked))
    assert prompt_ids(template, encode, "", [*greeted, spaced], asked, [None]) == [*ids, *encode("Bees dance")]
    alone = prompt_ids(template, encode, "", [spaced], asked)
    assert alone[-len(encode("Bees dance")) :] == encode("Bees dance")
