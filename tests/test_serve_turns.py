"""Messages in any order become turns that alternate."""

from data.conversation import Message
from serve.turns import Turn, answers_of, system_of, turns_of


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
