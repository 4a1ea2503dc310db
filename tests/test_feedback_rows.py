"""The store of feedback is a source of stage `rows` as it is: masks, several raters, and what it passes by."""

from pathlib import Path

from support.asgi import USER, ask
from support.feedback import feedback_in, keyed_app, rated
from support.source_lines import DEMO

from cluster.settings.load import load
from data.conversation import from_table
from jobs.prepare import work
from jobs.runner.preset import Preset
from jobs.runner.stage import Run


def test_a_run_reads_the_store_as_one_source(tmp_path: Path) -> None:
    store = tmp_path / "store"
    app = keyed_app(feedback_in(store))
    questions = ["Why?", "How?", "When?"]
    ids = [ask(app, "a", messages=[{**USER, "content": text}]).json["id"] for text in questions]
    assert rated(app, "a", ids[0], humor=4, verbosity=1)[0] == 200
    assert rated(app, "b", ids[0], humor=1)[0] == 200
    assert rated(app, "b", ids[1], toxicity=0.5)[0] == 200
    sources = f"rows.sources=[{{name: feedback, format: messages, uri: {store}}}]"
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources]))
    metrics = work(run, run.folder("rows"))
    rows = [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table)]
    assert {(row.source, row.messages[0].content): row.human for row in rows} == {
        ("feedback", "Why?"): ({"humor": 2.5, "verbosity": 1.0},),
        ("feedback", "How?"): ({"toxicity": 0.5},),
    }
    expected = {"read": 3, "rows": 2, "answers": 2, "rated_answers": 2, "merged": 1, "several_raters": 1}
    assert metrics.counts["feedback"] == expected, "the answer that nobody rated is no row"
