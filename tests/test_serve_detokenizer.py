"""Ids to text: whole characters only, stop strings across token borders, and the same text however it was cut."""

import itertools
import random
from collections.abc import Callable

import pytest

from serve.detokenizer import AnswerText, Detokenizer


def decode(ids: list[int]) -> str:
    """A byte tokenizer: an id is a byte."""
    return bytes(ids).decode("utf-8", errors="replace")


def byte_fallback(ids: list[int]) -> str:
    """As SentencePiece's byte fallback: one missing byte makes every byte of the run a replacement character."""
    text = ""
    for plain, run in itertools.groupby(ids, lambda i: i < 128):
        raw = bytes(run)
        try:
            text += raw.decode()
        except UnicodeDecodeError:
            assert not plain
            text += "\ufffd" * len(raw)
    return text


def first_token_without_space(ids: list[int]) -> str:
    """As Llama 2's tokenizer: the space before the very first word is dropped. Every id is a word."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


def pushed(answer: AnswerText | Detokenizer, pieces: list[list[int]]) -> list[str]:
    return [answer.push(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]


def pieces_of(ids: list[int], rng: random.Random) -> list[list[int]]:
    pieces = []
    while ids:
        size = rng.randint(1, 4)
        pieces.append(ids[:size])
        ids = ids[size:]
    return [*pieces, []]


def test_no_half_character() -> None:
    assert pushed(Detokenizer(decode), [[0xC3], [0xA9], []]) == ["", "é", ""]
    assert pushed(Detokenizer(decode), [[b] for b in "a😀b".encode()]) == ["a", "", "", "", "😀", "b"]


@pytest.mark.parametrize("decoder", [decode, byte_fallback])
def test_text_is_complete_however_it_is_cut(decoder: Callable[[list[int]], str]) -> None:
    text = "Größe: 😀😀 — 12 €, 漢字, \ufffd and é."
    rng = random.Random(0)
    for _ in range(200):
        given = pushed(Detokenizer(decoder), pieces_of(list(text.encode()), rng))
        assert "".join(given) == text


def test_bytes_that_never_become_a_character_come_out_in_the_end() -> None:
    given = pushed(Detokenizer(decode), [[0xFF]] * 100)
    assert "".join(given) == "\ufffd" * 100
    assert any(given[:-1]), "a long run of wrong bytes does not wait for the end"
    assert "".join(pushed(Detokenizer(decode), [[65], [0xE2]])) == "A\ufffd"


def test_the_space_between_words_is_kept() -> None:
    assert pushed(Detokenizer(first_token_without_space), [[1], [2], [3, 4]]) == ["w1", " w2", " w3 w4"]


def test_only_a_window_is_decoded() -> None:
    longest = 0

    def counted(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    pushed(Detokenizer(counted), [[b] for b in "äöü, 漢字. ".encode() * 50])
    assert longest < 12


def test_a_stop_string_across_token_borders() -> None:
    answer = AnswerText(decode, ["STOP"])
    assert pushed(answer, [list(b"ab S"), list(b"TO"), list(b"P cd")]) == ["ab", "", " "]
    assert answer.stopped
    assert answer.push(list(b"more"), last=True) == ""


def test_what_only_looked_like_a_stop_string_is_given_out() -> None:
    answer = AnswerText(decode, ["STOP"])
    assert pushed(answer, [list(b"ST"), list(b"AR"), list(b"S")]) == ["", "STAR", "S"]
    assert not answer.stopped


def test_the_stop_string_that_is_complete_first_counts() -> None:
    for pieces in ([list(b"xabcd")], [[b] for b in b"xabcd"]):
        answer = AnswerText(decode, ["abcd", "bc"])
        assert "".join(pushed(answer, pieces)) == "xa"


def test_trailing_space_belongs_to_the_template() -> None:
    assert pushed(AnswerText(decode), [list(b"one \n"), list(b"two\n"), []]) == ["one", " \ntwo", ""]
    assert "".join(pushed(AnswerText(decode, ["\n\n"]), [list(b"a \n"), list(b"\nb"), []])) == "a "


def test_answers_do_not_depend_on_the_cuts() -> None:
    text = "One 😀. Two\n\nUser: three"
    rng = random.Random(1)
    for stops, expected in (
        ([], text),
        (["\nUser:", "zzz"], "One 😀. Two\n"),
        (["😀"], "One "),
        ([" three"], "One 😀. Two\n\nUser:"),
    ):
        for _ in range(100):
            assert "".join(pushed(AnswerText(decode, stops), pieces_of(list(text.encode()), rng))) == expected


@pytest.mark.case("an answer to continue")
def test_a_continued_text_keeps_the_space_of_its_first_word() -> None:
    assert pushed(AnswerText(first_token_without_space, context=[7, 8]), [[1], [2], []]) == [" w1", " w2", ""]
    assert pushed(AnswerText(first_token_without_space), [[1], [2], []]) == ["w1", " w2", ""]
