import pytest

from data.diversity import is_loop, is_refusal, shingles, variety


def test_variety_counts_different_words_over_all_texts() -> None:
    metrics = variety(["Owls hunt. Owls hunt!", "bees hum"])
    assert metrics == {"texts": 2, "words": 3.0, "distinct_1": round(4 / 6, 4), "distinct_2": 0.75}
    assert variety([]) == {"texts": 0, "words": 0.0, "distinct_1": 0.0, "distinct_2": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry but no",
        "As an AI language model, I have no opinion.",
        "I cannot assist you.",
    ],
)
def test_a_refusal_begins_as_one(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Owls hunt at night.",
        "I can help with that.",
        "I am sorry for your loss.",
        "Owls " * 60 + "I cannot help with that.",
    ],
)
def test_other_answers_are_none(text: str) -> None:
    assert not is_refusal(text)


def test_a_loop_is_the_same_words_four_times_on_end() -> None:
    assert is_loop("no no no no")
    assert is_loop("first this, then that, then that, then that, then that, and so on")
    assert not is_loop("then that, then that, then that, and so on")
    assert not is_loop("owls hunt and bees hum and owls sleep and bees fly")
    assert not is_loop("")


def test_shingles_of_a_short_text_are_the_text() -> None:
    assert shingles("Owls hunt.") == {"owls hunt"}
    assert shingles("a b c d") == {"a b c", "b c d"}
