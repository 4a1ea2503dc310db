from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.settings.load import load
from data.attributes import Values, shipped
from data.conversation import Conversation, Message, to_table
from data.examples import bucket
from data.run_layout import as_json
from data.steering_metrics import DialogueCurve, JudgeMetrics, TrustEverywhere
from jobs.evaluation.ask import MeasuredAnswers, gap_at_best, mean_spearman, num_unseen, questions, tabulate
from jobs.evaluation.steering_metrics import combined, cross_talk, curves, dialogue, judge, judge_note, length
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

SCHEMA = shipped("lab")
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
OASST = str(Path(__file__).parent.parent / "jobs" / "presets" / "oasst.yaml")


def _row(turned: str, asked: float, number: int) -> Conversation:
    turns = (Message("user", f"q{number}"), Message("assistant", "a"))
    return Conversation("evaluate", "", turns, requested=({"humor": asked, "toxicity": asked},), group=turned)


def test_each_attribute_is_judged_by_the_rows_that_varied_it() -> None:
    rows = (
        [_row("humor", v, n) for v in (0, 2, 4) for n in range(3)]
        + [_row("toxicity", 4 - v, n) for v in (0, 4) for n in range(2)]
        + [_row("best", 0, 9)]
    )
    answers = MeasuredAnswers(
        rows, "exactly", lambda row: {"humor": row.requested[0]["humor"] / 2, "toxicity": 4 - row.requested[0]["humor"]}
    )
    table, best = tabulate(SCHEMA, answers)
    assert as_json(table["humor"]) == {
        **{"requested": [0, 2, 4], "measured": [0, 1, 2], "n": 9, "spearman": 1.0, "monotonic": True},
        **{"slope": 0.5, "reached": [0, 2], "mean_absolute_gap": 4.0},
    }
    assert (table["toxicity"].spearman, table["toxicity"].monotonic) == (-1.0, False)
    assert set(table) == {"humor", "toxicity"}
    assert best == {"humor": 0.0, "toxicity": 4.0}
    assert mean_spearman(table) == 0.0
    assert gap_at_best(SCHEMA, best) == 2.0, "humor is as asked, toxicity off by 4"


def test_laboratory_questions_are_asked_in_the_laboratory() -> None:
    run = Run(load(Preset, DEMO, ["evaluate.num_questions=7"]))
    asked = questions(run, 7)
    assert len(asked) == 7
    assert asked == questions(run, 7)
    assert all(len(messages) == 1 and messages[0].role == "user" for messages in asked)


def _asked(
    group: str, requested: Values, number: int = 0, predicted: Values | None = None, answer: str = "a"
) -> Conversation:
    turns = (Message("user", f"q{number}"), Message("assistant", answer))
    return Conversation(
        "evaluate",
        "",
        turns,
        requested=(requested,),
        predicted=(predicted or {},),
        group=group,
        id=f"{group}{requested}{number}",
    )


def _turned(name: str, num_questions: int = 4) -> Iterator[Conversation]:
    """One attribute over its scale, the others at best."""
    for number in range(num_questions):
        for value in range(5):
            yield _asked(name, {**SCHEMA.best(), name: value}, number)


def test_curves_have_a_band_around_each_mean() -> None:
    # Odd questions are answered a point too high, so that the mean depends on which are asked.
    answers = MeasuredAnswers(
        list(_turned("humor")),
        "exactly",
        lambda row: {"humor": row.requested[0]["humor"] + int(row.messages[0].content[1:]) % 2},
    )
    table, best = curves(SCHEMA, answers, 1000, seed=0)
    row = table["humor"]
    assert row.measured == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert (row.low, row.high) == ((0, 1, 2, 3, 4), (1, 2, 3, 4, 5))
    assert best == {}
    assert curves(SCHEMA, answers, 1000, seed=0)[0] == table
    alone = MeasuredAnswers([r for r in answers.rows if r.messages[0].content == "q0"], "exactly", answers.measure)
    assert curves(SCHEMA, alone, 100, seed=0)[0]["humor"].low == (None,) * 5


def test_cross_talk_is_what_else_moves() -> None:
    def half_of_humor_is_toxic(row: Conversation) -> Values:
        asked = row.requested[0]
        return {**asked, "toxicity": asked["toxicity"] + asked["humor"] / 2, "helpfulness": 4 - asked["verbosity"]}

    answers = MeasuredAnswers(
        [*_turned("humor"), *_turned("verbosity"), _asked("best", SCHEMA.best())], "exactly", half_of_humor_is_toxic
    )
    metrics = cross_talk(SCHEMA, answers)
    assert metrics.attributes == ("humor", "verbosity")
    assert metrics.measured == SCHEMA.names
    assert metrics.slope == ((0, 0, 1, 0.5, 0), (-1, 0, 0, 0, 1))


def test_combined_requests_are_told_apart() -> None:
    high, low = {"humor": 4.0, "verbosity": 2.0}, {"humor": 1.0, "verbosity": 3.0}
    rows = [_asked("combined", asked, number) for asked in (high, low) for number in range(2)] + list(_turned("humor"))
    answers = MeasuredAnswers(
        rows,
        "exactly",
        lambda row: {**row.requested[0], "humor": 4.0 - int(row.messages[0].content[1:]), "toxicity": 1.0},
    )
    assert [as_json(setting) for setting in combined(SCHEMA, answers)] == [
        {
            "requested": low,
            "measured": {"humor": 3.5, "toxicity": 1.0, "verbosity": 3.0},
            "mean_absolute_gap": 1.25,
            "n": 2,
        },
        {
            "requested": high,
            "measured": {"humor": 3.5, "toxicity": 1.0, "verbosity": 2.0},
            "mean_absolute_gap": 0.25,
            "n": 2,
        },
    ]
    assert combined(SCHEMA, MeasuredAnswers(list(_turned("humor")), "exactly", lambda row: row.requested[0])) == []


def test_a_dialogue_is_judged_by_its_second_answer() -> None:
    rows = [_asked("dialogue/humor", {"humor": value}, number) for value in (0.0, 4.0) for number in range(3)]
    answers = MeasuredAnswers(rows, "exactly", lambda row: {"humor": 0.5 + row.requested[-1]["humor"] / 2})
    found = dialogue(SCHEMA, answers)
    assert found == {"humor": DialogueCurve(first=(0, 4), second=(4, 0), measured_second=(2.5, 0.5), n=6)}
    assert tabulate(SCHEMA, answers) == ({}, {})


def test_a_perfect_judge_of_many_answers_alike_is_not_distrusted() -> None:
    """Over all answers its Spearman is low: most have no humor at all, and nobody can order those."""
    rows = [*_turned("humor"), *(_asked("toxicity", {"humor": 0.0, "toxicity": 2.0}, number) for number in range(200))]
    judged = [
        replace(row, predicted=({"humor": 0.7 * row.requested[0]["humor"] + number / 1000},))
        for number, row in enumerate(rows)
    ]
    metrics = judge(SCHEMA, MeasuredAnswers(judged, "exactly", lambda row: {"humor": row.requested[0]["humor"]}))[
        "humor"
    ]
    assert (metrics.n, metrics.everywhere.n) == (20, 220)
    assert metrics.spearman is not None
    assert metrics.spearman > 0.97
    assert metrics.slope == pytest.approx(0.7, abs=0.01)
    assert metrics.everywhere.spearman is not None
    assert metrics.everywhere.spearman < 0.6
    assert metrics.everywhere.spearman == pytest.approx(metrics.everywhere.ceiling, abs=1e-4)
    assert judge_note({"humor": metrics}).endswith("on every attribute.")


def test_the_note_names_who_is_distrusted() -> None:
    everywhere = TrustEverywhere(n=9, spearman=0.5, mae=1.0, slope=1.0, ceiling=0.6)
    found = {"humor": 0.95, "toxicity": 0.894, "verbosity": None}
    said = judge_note(
        {name: JudgeMetrics(n=9, spearman=s, mae=1.0, slope=1.0, everywhere=everywhere) for name, s in found.items()}
    )
    assert "toxicity (0.894), verbosity (unknown)" in said
    assert "humor" not in said


def test_longer_answers_are_more_of_what_was_asked_but_not_among_equals() -> None:
    def row(asked: int, number: int) -> Conversation:
        return _asked("humor", {"humor": asked}, number, answer=" ".join(["word"] * (10 * asked + number)))

    # A longer answer to the same request is the less funny one.
    answers = MeasuredAnswers(
        [row(a, n) for a in range(5) for n in range(4)],
        "exactly",
        lambda r: {"humor": r.requested[0]["humor"] - int(r.messages[0].content[1:]) / 10},
    )
    metrics = length(SCHEMA, answers)["humor"]
    assert metrics.spearman_words is not None
    assert metrics.spearman_words > 0.8
    assert metrics.partial_spearman == pytest.approx(-1)
    assert length(SCHEMA, answers)["toxicity"].spearman_words is None


def test_a_question_that_training_has_seen_anywhere_is_asked_last(tmp_path: Path) -> None:
    """Two sources may ask the same; a group that is held out in one of them hides nothing."""
    run = Run(load(Preset, OASST, [f"storage={tmp_path}", "policy.validation_share=0.5"]))
    groups = [f"g{n}" for n in range(40)]
    held_out = [g for g in groups if bucket(g, 2) == 0]
    rows = [Conversation("a", "", _turns(f"only {g}"), group=g) for g in groups]
    rows += [Conversation("a", "", _turns("shared"), group=g) for g in (held_out[0], *groups)]
    write_table(to_table(rows, run.schema), run.folder("rows") / "rows")
    asked = questions(run, 100)
    unseen = [messages[0].content for messages in asked[: len(held_out)]]
    assert sorted(unseen) == sorted(f"only {g}" for g in held_out)
    assert num_unseen(run, asked) == len(held_out)
    assert "shared" in [messages[0].content for messages in asked[len(held_out) :]]
    assert [m[0].content for m in questions(run, 1, for_promotion=True)] == [max(unseen, key=lambda q: (q[5:], q))]


def _turns(question: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", "a")
