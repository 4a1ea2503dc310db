"""Several raters of the same rows: whose value counts, whose it is, what failed, and how far they agree with people."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stages import demo_run

from actors.scoring.annotator import Annotator
from actors.scoring.panel import OtherRaters
from data.attributes import shipped
from data.conversation import RATED_BY, RATERS_KEY, Conversation, Message, from_table, to_table
from data.counters import counters_of
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.label_spread import text_rater
from data.measures import spearman
from data.rater_metrics import MERGED, agreement_lines, rater_metrics, sums
from data.rater_settings import MergeRule, PredictorRaterSettings, PythonRaterSettings, TextRaterSettings
from data.roster import Roster
from data.storage import Storage
from data.text_rater import TextRater
from jobs.pipelines.map_rows import write_table
from jobs.runner.start_models import rater_models

SCHEMA = shipped("lab")
ARGUMENTS = {"fingerprint": "f", "pack_tokens": 512, "max_tokens": 512, "dtype": "float32", "num_threads": 1}


def humor_of(messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A function of somebody's own, with the ways to go wrong that it may have."""
    assert messages[-1]["role"] == "assistant"
    answer = messages[-1]["content"]
    if "raise" in answer:
        raise ZeroDivisionError
    if "nothing" in answer:
        return {}
    return {"humor": {"text": "three", "nan": math.nan, "numpy": np.float32(3)}.get(answer, 2.0)}


def careless(messages: Sequence[Mapping[str, str]]) -> dict[str, float]:
    return {"humour": 1.0}


OWN = PythonRaterSettings(kind="python", function="test_panel.humor_of", attributes=("humor",))
BESIDE = PredictorRaterSettings(kind="predictor", attributes=("humor",), weight=3)
WORDS = TextRaterSettings(kind="text", attributes={"verbosity": "words"})


def answered(*answers: str, human: Mapping[str, float] | None = None) -> Conversation:
    messages = [m for a in answers for m in (Message("user", "Well?"), Message("assistant", a))]
    return Conversation("t", "", tuple(messages), human=(dict(human or {}),) * len(answers))


def annotator(predictor: str, *raters: Any, merge: MergeRule = "mean", text: TextRater | None = None) -> Annotator:
    others = OtherRaters(Roster(raters, merge, SCHEMA), text or TextRater())
    return Annotator(predictor, SCHEMA, others=others, **ARGUMENTS)


def test_an_own_function_rates_and_what_it_fails_is_counted(tiny_predictor: str) -> None:
    rows = [answered("fine", "numpy"), answered("text"), answered("nan"), answered("raise"), answered("nothing")]
    result = annotator(tiny_predictor, OWN)(to_table(rows, SCHEMA))
    found = list(from_table(result))
    assert [[v.get("humor") for v in row.predicted] for row in found] == [[2, 3], [None], [None], [None], [None]]
    assert all(set(v) >= set(SCHEMA.names) - {"humor"} for row in found for v in row.predicted)
    by = [v for row in result.column(RATED_BY).to_pylist() for v in row]
    assert [v["humor"] for v in by] == ["python: test_panel.humor_of"] * 2 + [None] * 4
    assert {v["toxicity"] for v in by} == {"predictor"}
    metrics = rater_metrics(counters_of(result.schema), Roster((OWN,), "mean", SCHEMA))
    humor = metrics["python: test_panel.humor_of"]["humor"]
    assert (humor.given, humor.failed) == (2, {"no number": 2, "raised ZeroDivisionError": 1})
    assert metrics["predictor"]["toxicity"].given == 6
    assert b'"humor": "python: test_panel.humor_of"' in result.schema.metadata[RATERS_KEY]


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_merged_values_follow_the_rule(tiny_predictor: str, merge: MergeRule) -> None:
    rows = to_table([answered("fine"), answered("raise")], SCHEMA)
    alone = Annotator(tiny_predictor, SCHEMA, **ARGUMENTS)(rows)
    predicted = [row.predicted[0] for row in from_table(alone)]
    raters = (OWN, BESIDE if merge == "mean" else BESIDE.model_copy(update={"weight": 1.0}))
    result = annotator(tiny_predictor, *raters, merge=merge)(rows)
    both, left = (row.predicted[0] for row in from_table(result))
    expected = (2.0 + 3 * predicted[0]["humor"]) / 4 if merge == "mean" else 2.0
    assert both["humor"] == pytest.approx(expected, abs=1e-6)
    assert left["humor"] == predicted[1]["humor"], "where one fails the other's value counts"
    others = [name for name in SCHEMA.names if name != "humor"]
    assert [[v[n] for n in others] for v in (both, left)] == [[v[n] for n in others] for v in predicted]
    by = [v["humor"] for row in result.column(RATED_BY).to_pylist() for v in row]
    own = "python: test_panel.humor_of"
    assert by == [f"{own} + predictor" if merge == "mean" else own, "predictor"]


def test_without_other_raters_the_table_is_as_it_was(tiny_predictor: str) -> None:
    rows = to_table(Lab(LabSettings(num_rows=5)).rows(), SCHEMA)
    result = Annotator(tiny_predictor, SCHEMA, **ARGUMENTS)(rows)
    assert result.schema.names == rows.schema.names
    assert RATERS_KEY not in result.schema.metadata
    assert not any(name.startswith("rate") and "/" in name for name in counters_of(result.schema))


def test_the_text_rater_s_verbosity_follows_the_true_length(tiny_predictor: str, tmp_path: Path) -> None:
    rows = list(Lab(LabSettings(num_rows=150)).rows())
    table = to_table(rows, SCHEMA)
    write_table(table, Storage(str(tmp_path)))
    rater = text_rater(Storage(str(tmp_path)), SCHEMA, WORDS.attributes, {})
    found = from_table(annotator(tiny_predictor, WORDS, text=rater)(table))
    values = [(row.predicted[-1]["verbosity"], len(row.messages[-1].content)) for row in found]
    assert spearman(*zip(*values, strict=True)) >= 0.9
    assert all(0 <= value <= 4 for value, _ in values)


def test_how_far_raters_agree_with_people_and_what_brings_them_onto_their_scale(tiny_predictor: str) -> None:
    """A function that gives half of the people's values, and one more."""
    rng = np.random.default_rng(0)
    human = rng.integers(0, 5, 60)
    values = 1 + human / 2
    roster = Roster((OWN, BESIDE), "mean", SCHEMA)
    noise = rng.normal(size=60)
    counters = sums(0, "humor", values, human.astype(float)) | sums(1, "humor", noise, human.astype(float))
    counters |= sums(MERGED, "humor", (values + 3 * noise) / 4, human.astype(float))
    metrics = rater_metrics(counters, roster)
    own = metrics[OWN.name]["humor"]
    assert (own.pearson, own.rated_by_people) == (1.0, 60)
    assert own.mean_absolute_gap == pytest.approx(np.abs(values - human).mean(), abs=1e-4)
    assert (own.scale, own.shift) == (pytest.approx(2, abs=1e-4), pytest.approx(-2, abs=1e-4))
    assert metrics[MERGED]["humor"].pearson == pytest.approx(
        np.corrcoef((values + 3 * noise) / 4, human)[0, 1], abs=1e-3
    )
    (line,) = agreement_lines(metrics)
    assert "merged agrees less with people than the best of them alone" in line
    few = rater_metrics(sums(0, "humor", values[:5], human[:5].astype(float)), roster)[OWN.name]["humor"]
    assert (few.scale, few.shift) == (1, 0), "too few pairs change nothing"


def test_functions_that_are_not_there_or_speak_of_something_else_are_named(tiny_predictor: str) -> None:
    for function, told in (
        ("no.such_module", "python: no.such_module cannot be imported"),
        ("test_panel.nobody", "cannot be imported"),
        ("test_panel.SCHEMA", "is no function"),
    ):
        with pytest.raises(UserError, match=told):
            annotator(tiny_predictor, OWN.model_copy(update={"function": function}))
    wrong = annotator(tiny_predictor, OWN.model_copy(update={"function": "test_panel.careless"}))
    with pytest.raises(UserError, match="returned 'humour', which its attributes"):
        wrong(to_table([answered("fine")], SCHEMA))


def test_nobody_rates_what_the_predictor_does_not_read(tiny_predictor: str) -> None:
    long = answered("First.", "Second. " * 60)
    others = OtherRaters(Roster((OWN, WORDS), "mean", SCHEMA), TextRater(measures={"verbosity": "words"}))
    short = ARGUMENTS | {"max_tokens": 64, "pack_tokens": 64}
    result = Annotator(tiny_predictor, SCHEMA, others=others, **short)(to_table([long], SCHEMA))
    (row,) = from_table(result)
    assert [set(v) for v in row.predicted] == [set(), set(SCHEMA.names)]
    assert set(result.column(RATED_BY).to_pylist()[0][0].values()) == {None}


def test_a_model_named_by_a_relative_path_is_found_from_another_folder(
    tiny_predictor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rater").symlink_to(tiny_predictor)
    monkeypatch.chdir(tmp_path)
    run = demo_run(tmp_path, "annotate.raters=[{kind: hf, model: rater, attributes: {humor: 0}}]")
    others = OtherRaters(run.preset.roster, models=rater_models(run))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as a worker
    result = Annotator(tiny_predictor, SCHEMA, others=others, **ARGUMENTS)(to_table([answered("fine")], SCHEMA))
    assert result.column(RATED_BY).to_pylist()[0][0]["humor"] == "hf: rater"
    remote = demo_run(tmp_path, "annotate.raters=[{kind: hf, model: owner/name, attributes: {humor: 0}}]")
    assert rater_models(remote) == {"hf: owner/name": "owner/name"}
