"""The synthetic world: its texts are measured exactly, and its raters are as wrong as their settings."""

import time
from collections import Counter
from statistics import mean

import pytest
from pydantic import ValidationError

from data.conversation import Conversation, Message, from_table, problem, to_table
from data.lab import MAX_FACTS, MAX_SUBJECTS, Lab, LabSettings
from data.lab_mix import HIGH, LOW, SCHEMA
from data.lab_words import FACTS, FILLER, IMAGES, INSULTS

BEES = "Tell me about bees."
HONEY = "Bees make honey in a hive."
QUEEN = "Bees serve a single queen."
WRONG = "Bees throw out hot lava."
NOTHING = dict.fromkeys(SCHEMA.names, 0.0)

Intended = tuple[dict[str, int], ...]


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="module")
def written(lab: Lab) -> list[tuple[Conversation, Intended]]:
    return list(lab.rows_and_intended())


def _answers(written: list[tuple[Conversation, Intended]]) -> list[str]:
    return [m.content for conversation, _ in written for m in conversation.messages if m.role == "assistant"]


def _values(written: list[tuple[Conversation, Intended]], name: str) -> list[int]:
    return [values[name] for _, intended in written for values in intended]


def _ratings(written: list[tuple[Conversation, Intended]]) -> list[tuple[str, str, int, float]]:
    """(source, attribute, truth, rating) of every rating that is shown."""
    return [
        (conversation.source, name, values[name], rating)
        for conversation, intended in written
        for values, human in zip(intended, conversation.human, strict=True)
        for name, rating in human.items()
    ]


# ---- the rows


@pytest.mark.parametrize(
    "settings",
    [
        LabSettings(),
        LabSettings(seed=1, skew=1, shuffle=1, false_share=1, num_rows=500),
        LabSettings(
            num_subjects=MAX_SUBJECTS, facts_per_subject=MAX_FACTS, skew=0, false_share=0.5, max_turns=5, num_rows=500
        ),
        LabSettings(num_subjects=2, shuffle=0, num_rows=500),
    ],
    ids=["default", "skewed", "large", "small"],
)
def test_every_answer_measures_exactly_what_it_was_written_to_have(settings: LabSettings) -> None:
    lab = Lab(settings)
    for conversation, intended in lab.rows_and_intended():
        assert lab.truth(conversation) == intended
        for i in range(1, len(conversation.messages), 2):
            assert lab.unknown_sentences(conversation.messages[: i + 1]) == 0


def test_rows_are_well_formed_and_survive_arrow(written: list[tuple[Conversation, Intended]]) -> None:
    rows = [conversation for conversation, _ in written]
    assert len(rows) == 6000
    assert {problem(row.messages) for row in rows} == {""}
    assert {row.num_answers for row in rows} == {1, 2, 3}
    back = from_table(to_table(rows[:200], SCHEMA))
    assert [(row.id, row.messages, row.human) for row in back] == [
        (row.id, row.messages, row.human) for row in rows[:200]
    ]


@pytest.mark.parametrize(
    ("settings", "most"),
    [(LabSettings(), 0), (LabSettings(skew=1), 0.01), (LabSettings(skew=1, num_subjects=2), 0.02)],
    ids=["default", "skewed", "smallest"],
)
def test_duplicates_are_few(settings: LabSettings, most: float) -> None:
    ids = [row.id for row in Lab(settings).rows()]
    duplicate_share = 1 - len(set(ids)) / len(ids)
    print("duplicate rows:", duplicate_share)
    assert duplicate_share <= most


def test_no_answer_repeats_a_sentence(lab: Lab, written: list[tuple[Conversation, Intended]]) -> None:
    for answer in _answers(written):
        counts = Counter(sentence for sentence in lab.sentences if sentence in answer)
        assert sum(answer.count(sentence) for sentence in counts) == len(counts)


def test_the_seed_alone_decides(written: list[tuple[Conversation, Intended]]) -> None:
    assert list(Lab().rows_and_intended()) == written
    other = list(Lab(LabSettings(seed=1, num_rows=500)).rows())
    assert not {row.id for row in other} & {conversation.id for conversation, _ in written}


def test_more_rows_continue_the_same_world_and_raters_leave_the_text_alone(
    written: list[tuple[Conversation, Intended]],
) -> None:
    few = [conversation for conversation, _ in written[:300]]
    assert list(Lab(LabSettings(num_rows=300)).rows()) == few
    worse = list(Lab(LabSettings(num_rows=300, rater_exact=0.1)).rows())
    assert [row.id for row in worse] == [row.id for row in few]
    all_rated = list(Lab(LabSettings(num_rows=300, rated_share=1)).rows())
    assert all(before.human == after.human for before, after in zip(few, all_rated, strict=True) if any(before.human))


def test_top_values_are_common_by_default_and_rare_when_skewed(written: list[tuple[Conversation, Intended]]) -> None:
    skewed = list(Lab(LabSettings(skew=1, num_rows=2000)).rows_and_intended())
    for name in SCHEMA.names:
        histogram = Counter(_values(written, name))
        share = {value: count / histogram.total() for value, count in sorted(histogram.items())}
        print(name, {value: round(s, 3) for value, s in share.items()})
        assert set(share) == set(range(LOW, HIGH + 1))
        assert all(s > 0.14 for s in share.values())
        assert mean(value >= 3 for value in _values(skewed, name)) < 0.08


def test_answers_are_short_enough_to_learn(written: list[tuple[Conversation, Intended]]) -> None:
    num_words = [len(answer.split()) for answer in _answers(written)]
    print("words an answer:", mean(num_words), "longest:", max(num_words))
    assert mean(num_words) <= 45


def test_some_answers_are_wrong(lab: Lab, written: list[tuple[Conversation, Intended]]) -> None:
    false = {
        text for text, sentence in lab.sentences.items() if sentence.attribute == "helpfulness" and not sentence.true_of
    }
    with_false = [
        any(sentence + "." in false for sentence in answer.rstrip(".").split(". ")) for answer in _answers(written)
    ]
    assert 0.10 < mean(with_false) < 0.15  # of 0.15 requested: an answer of four facts takes no other


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (LabSettings(hold_out_helpful_humor=True, num_rows=2000), {"helpfulness": 3, "humor": 2}),
        (LabSettings(held_out=({"toxicity": 1, "creativity": 1},), num_rows=2000), {"toxicity": 1, "creativity": 1}),
    ],
    ids=["named", "listed"],
)
def test_held_out_combinations_never_occur(
    written: list[tuple[Conversation, Intended]], settings: LabSettings, rule: dict[str, int]
) -> None:
    def occurs(values: dict[str, int]) -> bool:
        return all(values[name] >= least for name, least in rule.items())

    assert any(occurs(values) for _, intended in written for values in intended)
    held = list(Lab(settings).rows_and_intended())
    assert not any(occurs(values) for _, intended in held for values in intended)
    # Each attribute alone still has its whole range.
    for name in rule:
        assert set(_values(held, name)) == set(range(LOW, HIGH + 1))


# ---- the raters


def test_raters_are_as_wrong_as_configured(written: list[tuple[Conversation, Intended]]) -> None:
    ratings = _ratings(written)
    off = Counter(abs(rating - truth) for _, _, truth, rating in ratings)
    assert off[0] / off.total() == pytest.approx(0.6, abs=0.02)
    assert off[2] / off.total() == pytest.approx(0.4 * 0.1, abs=0.01)
    assert set(off) == {0, 1, 2}
    assert {rating for *_, rating in ratings} == set(range(LOW, HIGH + 1))
    for value in range(LOW, HIGH + 1):  # also at the ends of the scale
        assert mean(rating == value for _, _, truth, rating in ratings if truth == value) == pytest.approx(
            0.6, abs=0.04
        )


def test_sources_rate_what_they_rate(written: list[tuple[Conversation, Intended]]) -> None:
    rated_by = {
        source: {name for s, name, *_ in _ratings(written) if s == source} for source in ("lab_forum", "lab_desk")
    }
    assert rated_by == {
        "lab_forum": set(SCHEMA.names) - {"verbosity"},
        "lab_desk": set(SCHEMA.names) - {"humor", "toxicity"},
    }
    assert mean(any(conversation.human) for conversation, _ in written) == pytest.approx(0.35, abs=0.02)
    for conversation, intended in written:
        # A conversation is rated in all its turns or in none.
        assert len(conversation.human) == len(intended)
        assert len({frozenset(human) for human in conversation.human}) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source_unrated": {"only": ("humor",)}}, "no source rates humor"),
        ({"source_unrated": {"only": ("humour",)}}, "did you mean 'humor'"),
        ({"held_out": ({"humour": 2},)}, "did you mean 'humor'"),
        ({"held_out": ({"humor": 0},)}, "must have a value from 1 to 4"),
        ({"held_out": ({"humor": 2, "toxicity": 5},)}, "none above"),
        ({"facts_per_subject": 3}, "facts_per_subject"),
        ({"num_subjects": 21}, "num_subjects"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabSettings.model_validate(wrong)


# ---- the measure


@pytest.mark.parametrize(
    ("question", "answer", "expected", "unknown"),
    [
        (BEES, "", {}, 0),
        (BEES, " \n\t ", {}, 0),
        (BEES, HONEY, {"helpfulness": 1}, 0),
        (BEES, f"{HONEY} {QUEEN}", {"helpfulness": 2}, 0),
        (BEES, f"{HONEY}\n\n{QUEEN}\n", {"helpfulness": 2}, 0),
        (BEES, f"{HONEY} {HONEY} {HONEY}", {"helpfulness": 1}, 0),
        (BEES, f"{HONEY} {QUEEN} {WRONG}", {"helpfulness": 1}, 0),
        (BEES, f"{HONEY} {WRONG} {WRONG} {QUEEN}", {"helpfulness": 1}, 0),
        (BEES, WRONG, {}, 0),
        (BEES, "Volcanoes throw out hot lava.", {}, 0),
        (BEES, f"{HONEY} Volcanoes throw out hot lava.", {}, 0),
        ("And volcanoes?", HONEY, {}, 0),
        ("what about BEES, please", HONEY, {"helpfulness": 1}, 0),
        ("Are bees like volcanoes?", f"{HONEY} Volcanoes throw out hot lava.", {"helpfulness": 2}, 0),
        ("Tell me about beeswax.", HONEY, {}, 0),
        ("", HONEY, {}, 0),
        (BEES, f"{IMAGES[0]} {IMAGES[1]} {IMAGES[0]}", {"creativity": 2}, 0),
        (BEES, " ".join(IMAGES), {"creativity": 4}, 0),
        (BEES, "Never lend bees your umbrella. Never lend owls your umbrella.", {"humor": 2}, 0),
        (BEES, " ".join(INSULTS + FILLER), {"toxicity": 4, "verbosity": 4}, 0),
        (BEES, HONEY.lower(), {}, 1),
        (BEES, HONEY.upper(), {}, 1),
        (BEES, HONEY.rstrip("."), {}, 1),
        (BEES, HONEY.replace(" ", "  "), {}, 1),
        (BEES, f"{HONEY}{QUEEN}", {}, 1),
        (BEES, f"Bees make {HONEY} Bees", {}, 2),
        (BEES, f"{HONEY} Bees make honey. Bees make honey.", {"helpfulness": 1}, 2),
        (BEES, f"{HONEY} 蜂は蜜を作る。 🐝! \u202eseeb \x00", {"helpfulness": 1}, 2),
        (BEES, "... !!! ???", {}, 3),
        (BEES, "<extra_id_2>helpfulness:4", {}, 1),
    ],
)
def test_any_text_is_measured_sentence_by_sentence(
    lab: Lab, question: str, answer: str, expected: dict[str, float], unknown: int
) -> None:
    messages = (Message("user", question), Message("assistant", answer))
    assert lab.measure(messages) == NOTHING | expected
    assert lab.unknown_sentences(messages) == unknown


def test_six_facts_are_no_better_than_four() -> None:
    lab = Lab(LabSettings(facts_per_subject=6))
    assert lab.read_answer(BEES, " ".join(f"Bees {fact}." for fact in FACTS["bees"])).values["helpfulness"] == 4


def test_only_the_last_answer_counts_against_its_own_question(lab: Lab) -> None:
    messages = (
        Message("user", BEES),
        Message("assistant", QUEEN),
        Message("user", "And owls?"),
        Message("assistant", HONEY),
        Message("user", BEES),
    )
    assert lab.measure(messages)["helpfulness"] == 0
    assert lab.truth(Conversation("lab", "", messages)) == (NOTHING | {"helpfulness": 1}, NOTHING)


def test_measuring_nothing_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="none of the 1 messages is an assistant's"):
        lab.measure([Message("user", BEES)])


def test_measure_is_fast(lab: Lab, written: list[tuple[Conversation, Intended]]) -> None:
    start = time.process_time()
    num_answers = sum(len(lab.truth(conversation)) for conversation, _ in written)
    assert num_answers / (time.process_time() - start) > 10_000


# ---- the questions


def test_questions_name_one_subject_and_come_round(lab: Lab) -> None:
    questions = lab.questions(100, seed=3)
    assert questions == lab.questions(100, seed=3) != lab.questions(100, seed=4)
    assert len(set(questions)) == len(set(questions[:72])) == 72  # 12 subjects x 6 openings
    for question in questions:
        assert sum(subject in question for subject in lab.subjects) == 1
