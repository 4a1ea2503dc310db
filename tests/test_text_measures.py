"""Measures of a text, against numbers counted by hand."""

import math
import time

import pytest

from data.text_measures import MEASURES, flesch_kincaid, num_sentences, num_syllables, type_token_ratio, words


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (1, "the make names used whale strengths house moved queue 42 html"),
        (2, "table boxes wanted lion being people safely value issue didn't engine"),
        (3, "media element idea beautiful creative example animal"),
        (4, "society information experience education"),
        (5, "university imagination"),
    ],
)
def test_syllables_of_common_words(count: int, found: str) -> None:
    assert {word: num_syllables(word) for word in found.split()} == dict.fromkeys(found.split(), count)


def test_words_keep_their_apostrophes_and_hyphens() -> None:
    found = words("Don't -- a well-known _thing_, 3.5 café’s!")
    assert found == [
        "Don't",
        "a",
        "well-known",
        "thing",
        "3",
        "5",
        "café’s",
    ]


def test_lines_and_full_stops_end_a_sentence_and_numbers_do_not() -> None:
    assert num_sentences("It costs 3.50 euros. Really?! Yes...") == 3
    assert num_sentences("Steps:\n- open it\n- eat it\n\n") == 3
    assert num_sentences(' "Stop!" he said.') == 2
    assert num_sentences("?!") == 0


def test_the_grade_is_kincaids_formula() -> None:
    # 6 words, 1 sentence, 6 syllables.
    assert flesch_kincaid("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)
    plain = flesch_kincaid("We eat bread. It is good. Do you like it?")
    learned = flesch_kincaid("Fermentation of carbohydrates generates considerable quantities of carbon dioxide.")
    assert learned > plain + 10


def test_the_variety_of_words_does_not_fall_with_the_length() -> None:
    some = " ".join(f"w{i % 40}" for i in range(50))
    assert type_token_ratio(some) == pytest.approx(40 / 50)
    assert type_token_ratio(" ".join(f"w{i % 40}" for i in range(4000))) == pytest.approx(40 / 50)
    assert type_token_ratio("no No NO") == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", "  \n", "?!", "—"])
def test_a_text_without_a_word_has_no_measure(text: str) -> None:
    assert all(math.isnan(measure.of(text)) for measure in MEASURES.values())


def test_any_text_is_measured_in_time() -> None:
    texts = ["a" * 200_000, "ea" * 100_000, "e" * 200_000, "." * 200_000, "你好，世界", "x-" * 100_000, "a.\n" * 70_000]
    started = time.process_time()
    assert all(math.isfinite(measure.of(text)) for measure in MEASURES.values() for text in texts if words(text))
    assert time.process_time() - started < 20
