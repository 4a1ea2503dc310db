from pathlib import Path

from cluster.settings import load
from data.attributes import shipped
from data.conversation import Conversation, Message
from jobs.preset import Preset
from jobs.stage import Run
from jobs.steering import Answers, mean_spearman, off_best, questions, tabulate

SCHEMA = shipped("lab")
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def _row(turned: str, asked: float, number: int) -> Conversation:
    turns = (Message("user", f"q{number}"), Message("assistant", "a"))
    return Conversation("evaluate", "", turns, requested=({"humor": asked, "toxicity": asked},), group=turned)


def test_each_dial_is_judged_by_the_rows_that_turned_it() -> None:
    rows = [_row("humor", v, n) for v in (0, 2, 4) for n in range(3)] + [_row("toxicity", 4 - v, n) for v in (0, 4) for n in range(2)] + [_row("best", 0, 9)]
    answers = Answers(rows, "exactly", lambda row: {"humor": row.requested[0]["humor"] / 2, "toxicity": 4 - row.requested[0]["humor"]})
    table, best = tabulate(SCHEMA, answers)
    assert table["humor"] == {"requested": [0, 2, 4], "measured": [0, 1, 2], "n": 9, "spearman": 1.0, "monotonic": True, "off_target": 4.0}
    assert (table["toxicity"]["spearman"], table["toxicity"]["monotonic"]) == (-1.0, False)
    assert set(table) == {"humor", "toxicity"}
    assert best == {"humor": 0.0, "toxicity": 4.0}
    assert mean_spearman(table) == 0.0
    assert off_best(SCHEMA, best) == 2.0, "humor is as asked, toxicity off by 4"


def test_laboratory_questions_are_asked_in_the_laboratory() -> None:
    run = Run(load(Preset, DEMO, ["evaluate.num_questions=7"]))
    asked = questions(run, 7)
    assert len(asked) == 7
    assert asked == questions(run, 7)
    assert all(len(messages) == 1 and messages[0].role == "user" for messages in asked)
