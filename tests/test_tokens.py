import numpy as np
import pytest

from data.attributes import shipped
from data.conversation import Message
from data.template import CONTROL_TOKENS, SteerLMTemplate
from data.tokens import ConversationTokens, OverLong, prompt_ids, tokenize, turn_starts

TEMPLATE = SteerLMTemplate(shipped("lab"))


def letters(text: str) -> list[int]:
    """A tokenizer one can check by hand: a control token is one id (0, 1, 2), every other character its code."""
    ids = []
    while text:
        control = next((t for t in CONTROL_TOKENS if text.startswith(t)), None)
        ids.append(CONTROL_TOKENS.index(control) if control else ord(text[0]))
        text = text[len(control) if control else 1 :]
    return ids


def test_loss_mask_by_hand() -> None:
    turns = [Message("user", "a"), Message("assistant", "xy"), Message("user", "b"), Message("assistant", "z")]
    tokens = tokenize(TEMPLATE.pieces("s", turns, [{"humor": 3}, None]), letters)
    shown = "".join("^" if trained else "." for trained in tokens.trained_T)
    text = "".join("#" if i < 3 else chr(i).replace("\n", "/") for i in tokens.ids_T)
    assert text == "#System/s/#User/a/#Assistant/#humor:3/xy/#User/b/#Assistant/z/#"
    assert shown == "." * 38 + "^^^^" + "." * 18 + "^^^"
    assert [text[i] for i in tokens.turn_ends_S] == ["#", "#"]
    assert tokens.turn_ends_S.tolist() == [text.index("xy/#") + 3, len(text) - 1]


def test_answers_begin_where_their_loss_does() -> None:
    turns = [Message("user", "a"), Message("assistant", "xy"), Message("user", "b"), Message("assistant", "z")]
    tokens = tokenize(TEMPLATE.pieces("s", turns, ()), letters)
    assert [chr(tokens.ids_T[start]) for start in tokens.turn_starts_S] == ["x", "z"]
    assert turn_starts(tokens.trained_T[-2:], np.array([1])).tolist() == [0], "its front was cut"
    assert turn_starts(np.zeros(3, np.bool_), np.array([2])).tolist() == [2], "nothing of it is an answer"


def test_every_prefix_that_ends_with_an_answer_is_a_prefix_of_the_whole() -> None:
    turns = [Message("user", "a"), Message("assistant", "x"), Message("user", "b"), Message("assistant", "y")]
    whole = tokenize(TEMPLATE.pieces("", turns, ()), letters)
    first = tokenize(TEMPLATE.pieces("", turns[:2], ()), letters)
    assert whole.ids_T[: len(first)].tolist() == first.ids_T.tolist()


def test_oldest_exchanges_are_cut_first_and_the_last_answer_never() -> None:
    turns = [Message("user", "a" * 50), Message("assistant", "x"), Message("user", "b"), Message("assistant", "y")]
    whole = len(tokenize(TEMPLATE.pieces("", turns, ()), letters))
    tokens = ConversationTokens(TEMPLATE, letters, "", turns).fitted(whole - 1)
    assert tokens.num_dropped_turns == 1
    assert tokens.ids_T.tolist() == tokenize(TEMPLATE.pieces("", turns[2:], ()), letters).ids_T.tolist()
    with pytest.raises(OverLong, match=r"the last exchange has .* tokens, max_tokens is 10"):
        ConversationTokens(TEMPLATE, letters, "", turns).fitted(10)


def test_a_prompt_ends_with_the_label_line() -> None:
    ids = prompt_ids(TEMPLATE, letters, "", [Message("user", "a")], {"humor": 4})
    assert "".join(map(chr, ids[-9:])) == "\x02humor:4\n"[-9:]
    with pytest.raises(ValueError, match="needs a message"):
        prompt_ids(TEMPLATE, letters, "s", [], None)


@pytest.mark.case("an answer to continue")
def test_an_answer_that_is_begun_is_continued_as_it_was_trained() -> None:
    turns = [Message("user", "a"), Message("assistant", "xyz")]
    trained = tokenize(TEMPLATE.pieces("s", turns, [{"humor": 4}]), letters).ids_T.tolist()
    begun = prompt_ids(TEMPLATE, letters, "s", [turns[0], Message("assistant", "xy")], {"humor": 4})
    assert trained[: len(begun)] == begun
    assert begun[-2:] == letters("xy")
    alone = prompt_ids(TEMPLATE, letters, "s", [Message("assistant", "xy")], {"humor": 4})
    assert "".join(map(chr, alone)).endswith("Assistant\n\x02humor:4\nxy")


@pytest.mark.case("B12: a dropped exchange is not tokenized again")
def test_what_is_dropped_is_hardly_tokenized() -> None:
    read: list[str] = []

    def counted(text: str) -> list[int]:
        read.append(text)
        return letters(text)

    turns = [Message(("user", "assistant")[i % 2], f"turn {i:03}") for i in range(400)]
    tokens = ConversationTokens(TEMPLATE, counted, "s", turns).fitted(300)
    assert 190 < tokens.num_dropped_turns < 200
    assert len(tokens) <= 300
    assert len(read) < 50, "of 400 texts, those that are kept and a few at the border"
