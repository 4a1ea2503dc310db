"""Attributes that are measures of the text: their scale, by rank and by cuts, and where they stand in rows."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.annotated_run import ready
from support.manifests import metrics_of

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import RATERS_KEY, Conversation, Message, from_table, to_table
from data.errors import UserError
from data.label_spread import text_rater
from data.run_layout import TEXT_RATER, read_record
from data.stage_metrics import AnnotationMetrics
from data.storage import Storage
from data.text_rater import TextRater
from jobs.annotate import STAGE
from jobs.pipelines.annotation import read_text_rater
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset
from jobs.runner.stage import perform

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
        with pytest.raises(UserError, match=r"by words, which cannot be ranked.*give annotate.cuts.verbosity instead"):
            text_rater(rows_of(tmp_path / folder, *counts), SCHEMA, {"verbosity": "words"}, {})


def test_everybody_is_told_who_rated() -> None:
    raters = TextRater(measures={"complexity": "flesch_kincaid"}).raters(SCHEMA.names)
    assert raters["complexity"] == "text: flesch_kincaid"
    assert {raters[name] for name in SCHEMA.names if name != "complexity"} == {"predictor"}


GIVEN = "annotate.measures={verbosity: words}"
ALL = ", ".join(f"{name}: words" for name in shipped("lab").names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["annotate.measures={loudness: words}"], "annotate.measures: unknown attribute 'loudness'"),
        (["annotate.measures={verbosity: syllables}"], "annotate.measures.verbosity.*'flesch_kincaid'"),
        (["annotate.cuts={verbosity: [1, 2, 3, 4]}"], "annotate.cuts has verbosity, annotate.measures has not"),
        (
            [GIVEN, "annotate.cuts={verbosity: [9, 8, 7, 6]}"],
            r"annotate.cuts.verbosity is \[9.0, 8.0, 7.0, 6.0\]; the scale 0 to 4 needs 4 rising numbers",
        ),
        ([GIVEN, "annotate.cuts={verbosity: [9]}"], "needs 4 rising numbers"),
        ([f"annotate.measures={{{ALL}}}"], "so that the predictor has nothing to learn"),
        (
            [GIVEN, "predictor.pairs=[{name: p, uri: p.jsonl}]", "predictor.pair_weights={verbosity: 1.0}"],
            "predictor.pair_weights weighs verbosity, but annotate.measures takes these from the text",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(words: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load(Preset, str(PRESETS / "demo.yaml"), words)


@pytest.mark.ray
def test_the_stage_measures_and_tells_who_rated(ray_cluster: object, tiny_predictor: str, tmp_path: Path) -> None:
    sizes = ("rows.lab.num_rows=60", "rows.rows_per_file=25", "annotate.pool.batch_rows=10")
    run = ready(str(tmp_path), tiny_predictor, *sizes, "annotate.measures={verbosity: words}")
    metrics = metrics_of(perform(run, STAGE), AnnotationMetrics)
    assert metrics.raters["verbosity"] == "text: words"
    assert metrics.raters["humor"] == "predictor"
    rater = read_text_rater(run)
    assert rater == read_record(run.folder("annotated") / TEXT_RATER, TextRater)
    tables = list((run.folder("annotated") / "rows").tables())
    rows = [row for table in tables for row in from_table(table)]
    assert len(rows) == 60
    for row in rows:
        answers = [m.content for m in row.messages if m.role == "assistant"]
        for values, text in zip(row.predicted, answers, strict=True):
            assert values["verbosity"] == pytest.approx(rater(text)["verbosity"], abs=1e-5)
            assert 0 <= values["verbosity"] <= 4
    means = [values["verbosity"] for row in rows for values in row.predicted]
    assert metrics.predicted_mean["verbosity"] == pytest.approx(sum(means) / len(means), abs=1e-3)
    file = (run.folder("annotated") / "rows").files(".parquet")[0]
    assert b'"verbosity": "text: words"' in pq.read_schema(file).metadata[RATERS_KEY]
    assert perform(run, STAGE).skipped
