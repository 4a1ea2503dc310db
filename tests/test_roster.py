"""Who rates what: the predictor's part, values of several raters, and settings that cannot be."""

from pathlib import Path

import numpy as np
import pytest

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.roster import merged
from jobs.runner.preset import Preset

PRESETS = Path(__file__).parents[1] / "jobs" / "presets"
JUDGE = "{kind: judge, judge: {model: strict}, attributes: {humor: Jokes., helpfulness: ''}}"
NAN = np.nan


def preset(raters: str, *words: str) -> Preset:
    return load(Preset, str(PRESETS / "demo.yaml"), [f"annotate.raters=[{raters}]", *words])


def test_values_of_several_raters_become_one_by_the_rule() -> None:
    """Three raters of two attributes of two answers."""
    values_RSA = np.array([[[2.0, NAN], [NAN, NAN]], [[4.0, 1.0], [3.0, NAN]], [[0.0, 3.0], [NAN, NAN]]])
    mean_SA, used_RSA = merged(values_RSA, [1, 3, 4], "mean")
    np.testing.assert_allclose(mean_SA, [[(2 + 12) / 8, (3 + 12) / 7], [3, NAN]])
    assert used_RSA[:, 0, 0].tolist() == [True, True, True]
    first_SA, used_RSA = merged(values_RSA, [1, 1, 1], "first")
    np.testing.assert_allclose(first_SA, [[2, 1], [3, NAN]])
    assert used_RSA[:, 0, 0].tolist() == [True, False, False]
    assert used_RSA[:, 0, 1].tolist() == [False, True, False]
    assert not used_RSA[:, 1, 1].any()


def test_the_predictor_gives_what_nobody_else_does() -> None:
    given = preset(f"{JUDGE}, {{kind: text, attributes: {{verbosity: words}}}}")
    assert given.roster.described == {
        "helpfulness": "judge: strict",
        "creativity": "predictor",
        "humor": "judge: strict",
        "toxicity": "predictor",
        "verbosity": "text: words",
    }
    assert given.roster.unpredicted == ("helpfulness", "humor", "verbosity")
    assert (given.roster.measures, list(given.roster.elsewhere)) == ({"verbosity": "words"}, ["helpfulness", "humor"])
    assert given.pair_weights()["helpfulness"] == 0, "pairs are judged by the predictor alone"


@pytest.mark.parametrize(
    ("merge", "words"), [("mean", "mean of judge: strict and predictor"), ("first", "judge: strict, else predictor")]
)
def test_it_may_be_one_of_several(merge: str, words: str) -> None:
    given = preset(f"{JUDGE}, {{kind: predictor, attributes: [humor]}}", f"annotate.merge={merge}")
    assert given.roster.described["humor"] == words
    assert given.roster.described["toxicity"] == "predictor"
    assert given.roster.unpredicted == ("helpfulness",)
    assert set(given.roster.elsewhere) == {"helpfulness", "humor"}
    assert given.roster.measures == {}


def test_without_other_raters_nothing_is_described_of_them() -> None:
    from jobs.annotate import STAGE

    plain, given = load(Preset, str(PRESETS / "demo.yaml")), preset(JUDGE)
    assert set(STAGE.settings(plain)) == {"annotate", "dtype"}
    assert set(STAGE.settings(given)) == {"annotate", "dtype", "raters", "merge"}


HF = "{kind: hf, model: a/b, attributes: {humor: 0}"


@pytest.mark.parametrize(
    ("raters", "words", "told"),
    [
        ("{kind: oracle}", [], 'annotate.raters.0.kind: got "oracle" .*allowed: predictor, text, hf, python, judge'),
        ("{attributes: [humor]}", [], "annotate.raters.0.kind is missing"),
        (f"{JUDGE}, {JUDGE}", [], "annotate.raters has two called 'judge: strict'"),
        (f"{HF}}}, {JUDGE}", [], "shares humor with another rater, .* set annotate.raters.0.range.humor"),
        (f"{HF}, range: {{humor: [1, 1]}}}}", [], "give two different outputs"),
        (f"{HF}, range: {{toxicity: [0, 1]}}}}", [], "range has toxicity, attributes has not"),
        (f"{HF}, weight: 2}}", [], "weight is 2, but no other rater gives its attributes"),
        (
            f"{HF}, weight: 2, range: {{humor: [0, 1]}}}}, {JUDGE}",
            ["annotate.merge=first"],
            "weight is 2, but annotate.merge is first",
        ),
        ("{kind: predictor, attributes: [humor]}", [], "it is the predictor's anyway"),
        ("{kind: python, function: nodots, attributes: [humor]}", [], "function is 'nodots'; write "),
        ("{kind: judge, judge: {}, attributes: {humor: x}}", [], "nobody judges: set judge.model"),
        ("{kind: judge, judge: {model: m}, votes: 3, attributes: {humor: x}}", [], "all votes are the same"),
        ("{kind: judge, judge: {model: m, concurrency: 0}, attributes: {humor: x}}", [], "from 1 to 100,000"),
    ],
)
def test_wrong_settings_are_one_sentence(raters: str, words: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        preset(raters, *words)
