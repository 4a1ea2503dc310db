"""Attributes that are measures of the text: their scale, by rank and by cuts, and where they stand in rows."""

from pathlib import Path

import pytest

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Conversation, Message, to_table
from data.errors import UserError
from data.label_spread import text_rater
from data.storage import Storage
from data.text_rater import TextRater
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset

SCHEMA = shipped("helpsteer")
PRESETS = Path(__file__).parents[1] / "jobs" / "presets"


def answer(num_words: int) -> str:
    return " ".join(["word"] * num_words)


def rows_of(folder: Path, *num_words: int) -> Storage:
    asked = Message("user", "Write many, many words, please, and then even more of them.")
    rows = [Conversation("x", "", (asked, Message("assistant", answer(n)))) for n in num_words]
    write_table(to_table(rows, SCHEMA), Storage(str(folder)))
    return Storage(str(folder))


def test_by_rank_each_label_is_as_common_as_any_other(tmp_path: Path) -> None:
    rater = text_rater(rows_of(tmp_path, *range(1, 1001)), SCHEMA, {"verbosity": "words"}, {})
    labels = [SCHEMA["verbosity"].rounded(rater(answer(n))["verbosity"]) for n in range(1, 1001)]
    assert labels == sorted(labels)
    assert all(abs(labels.count(label) - 200) < 20 for label in range(5))
    assert rater(answer(5000)) == {"verbosity": 4.0}
    assert rater("?!") == {}


def test_cuts_are_where_a_label_rises(tmp_path: Path) -> None:
    nowhere = Storage(str(tmp_path / "none"))  # cuts need no rows
    rater = text_rater(nowhere, SCHEMA, {"verbosity": "words"}, {"verbosity": (10, 20, 40, 80)})
    labels = {
        n: SCHEMA["verbosity"].rounded(rater(answer(n))["verbosity"]) for n in (1, 9, 10, 19, 20, 40, 79, 80, 999)
    }
    assert labels == {1: 0, 9: 0, 10: 1, 19: 1, 20: 2, 40: 3, 79: 3, 80: 4, 999: 4}


def test_what_cannot_be_ranked_is_an_error_with_the_setting(tmp_path: Path) -> None:
    for folder, counts in (("few", range(1, 6)), ("alike", [7] * 50)):
        with pytest.raises(UserError, match=r"by words, which cannot be ranked.*give the text rater cuts of verbosity"):
            text_rater(rows_of(tmp_path / folder, *counts), SCHEMA, {"verbosity": "words"}, {})


def test_everybody_is_told_who_rated() -> None:
    rater = TextRater(measures={"complexity": "flesch_kincaid"}, elsewhere={"coherence": "judge: strict"})
    raters = rater.raters(SCHEMA.names)
    assert (raters["complexity"], raters["coherence"]) == ("text: flesch_kincaid", "judge: strict")
    assert {raters[name] for name in ("helpfulness", "correctness", "verbosity")} == {"predictor"}


def given(attributes: str, cuts: str = "{}") -> str:
    return f"annotate.raters=[{{kind: text, attributes: {{{attributes}}}, cuts: {cuts}}}]"


GIVEN = given("verbosity: words")
ALL = ", ".join(f"{name}: words" for name in shipped("lab").names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([given("loudness: words")], r"annotate.raters.0.attributes: unknown attribute 'loudness'"),
        ([given("verbosity: syllables")], r"annotate.raters.0.attributes.verbosity.*'flesch_kincaid'"),
        (
            [given("humor: words", "{verbosity: [1, 2, 3, 4]}")],
            r"annotate.raters.0.cuts has verbosity, its attributes have not",
        ),
        (
            [given("verbosity: words", "{verbosity: [9, 8, 7, 6]}")],
            r"cuts.verbosity is \[9.0, 8.0, 7.0, 6.0\]; the scale 0 to 4 needs 4 rising numbers",
        ),
        ([given("verbosity: words", "{verbosity: [9]}")], "needs 4 rising numbers"),
        ([given(ALL)], "so that the predictor has nothing to learn"),
        (["annotate.measures={verbosity: words}"], "annotate.measures .* is called annotate.raters now"),
        (
            [GIVEN, "predictor.pairs=[{name: p, uri: p.jsonl}]", "predictor.pair_weights={verbosity: 1.0}"],
            "predictor.pair_weights weighs verbosity, but annotate.raters takes these from others",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(words: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load(Preset, str(PRESETS / "demo.yaml"), words)
