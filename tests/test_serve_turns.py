"""Messages in any order become turns that alternate."""

import json
from typing import Any

import pytest

from data.conversation import Message
from serve.chat_request import ChatRequest
from serve.parser import parse
from serve.turns import Turn, answers_of, system_of, turns_of


def parsed(messages: list[dict[str, Any]], **fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": messages, **fields}).encode()).chat


def said(text: str) -> list[Message]:
    """Each letter is a message: u, a, s = system, d = developer."""
    roles = {"u": "user", "a": "assistant", "s": "system", "d": "developer"}
    return [Message(roles[letter], f"{letter}{i}") for i, letter in enumerate(text)]


def test_turns_alternate_and_know_their_messages() -> None:
    assert turns_of(said("suudaau")) == (
        Turn(Message("user", "u1\n\nu2"), (1, 2)),
        Turn(Message("assistant", "a4\n\na5"), (4, 5)),
        Turn(Message("user", "u6"), (6,)),
    )
    assert turns_of(said("sd")) == ()
    assert [turn.sources for turn in turns_of(said("usu"))] == [(0, 2)], "a system text between them ends no turn"


def test_all_system_texts_are_one() -> None:
    assert system_of(said("sudas")) == "s0\n\nd2\n\ns4"
    assert system_of(said("u")) == system_of([Message("system", ""), *said("u")]) == ""


def test_nothing_is_added_where_a_message_is_empty() -> None:
    [turn] = turns_of([Message("user", ""), Message("user", "b"), Message("user", "")])
    assert turn == Turn(Message("user", "b"), (0, 1, 2))


def test_an_answer_to_continue_is_no_earlier_one() -> None:
    assert [turn.sources for turn in answers_of(turns_of(said("auaua")))] == [(0,), (2,)]
    assert [turn.sources for turn in answers_of(turns_of(said("uau")))] == [(1,)]


@pytest.mark.case("turns in any order")
def test_turns_come_in_any_order() -> None:
    def read(*messages: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
        chat = parsed([{"role": role, "content": content} for role, content in messages])
        return chat.system, [(turn.message.role, turn.message.content) for turn in chat.turns]

    u, a = ("user", "q"), ("assistant", "a")
    assert read(("system", "s"), u, ("developer", "t"), u) == ("s\n\nt", [("user", "q\n\nq")])
    assert read(a, u, a, a, u) == ("", [a, u, ("assistant", "a\n\na"), u])
    assert read(u, u, a) == ("", [("user", "q\n\nq"), a])
    assert read(u, ("user", " ")) == ("", [("user", "q\n\n ")])


def test_an_answer_that_is_last_is_to_be_continued() -> None:
    begun = {"role": "assistant", "content": "It", "attributes": {"humor": 1}}
    chat = parsed(
        [{"role": "user", "content": "Why?"}, begun], continue_final_message=True, add_generation_prompt=False
    )
    assert chat.begun is not None
    assert (chat.begun.message.content, chat.answers) == ("It", [])
    assert chat.labels_of(chat.begun) == [("messages[1].attributes", {"humor": 1})]
