"""The report about production: what records come to, which lines are none, and pages that need nothing else."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Scripted, app_around, ask
from support.finished_run import HOSTILE
from support.html_page import Page
from support.live import Predictor, live_in

from data.conversation import Rejected
from data.live_records import LiveRecord, read_live
from data.measures import NORMAL_95
from jobs.evaluation.live_metrics import LiveMetrics, live_sums
from jobs.report import main

RECORD: dict[str, Any] = {
    "time": "2026-11-29T23:59:59+00:00",
    "team": "games",
    "model": "demo",
    "policy": "runs/demo/policy",
    "profile": None,
    "scales": {"humor": [0, 4], "verbosity": [0, 4]},
    "requested": {"humor": 4},
    "effective": {"humor": 4, "verbosity": 2},
    "measured": {"humor": 3.0, "verbosity": 2.5},
    "prompt_tokens": 7,
    "completion_tokens": 10,
    "sampled": True,
    "best_of": 0,
    "guidance": 1.0,
}
NEXT_DAY = {"time": "2026-11-30T02:00:00+02:00"}
"""On a clock of another country."""


def humor(effective: int, measured: float, **fields: Any) -> dict[str, Any]:
    values = {"requested": {}, "effective": {"humor": effective}, "measured": {"humor": measured}}
    return RECORD | values | {"scales": {"humor": [0, 4]}} | fields


def stored(folder: Path, *found: dict[str, Any] | str) -> str:
    """A store with these records, or lines."""
    day = folder / "store" / "2026-11-30"
    day.mkdir(parents=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in found]
    (day / "20261130T000000Z-01234567.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(folder / "store")


def metrics(*found: dict[str, Any]) -> LiveMetrics:
    made = live_sums(LiveRecord.model_validate(record) for record in found).metrics()
    assert made is not None
    return made


def written(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The last line of stdout."""
    main(list(words))
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_curve_has_the_mean_of_each_requested_value_with_its_interval() -> None:
    curve = metrics(humor(0, 1), humor(4, 4), humor(4, 2), humor(4, 3, requested={"humor": 3.6})).curves["humor"]
    half = round(3 - NORMAL_95 * 1 / math.sqrt(3), 4), round(3 + NORMAL_95 * 1 / math.sqrt(3), 4)
    assert (curve.requested, curve.counts, curve.measured) == ((0, 4), (1, 3), (1, 3))
    assert (curve.low, curve.high) == ((None, half[0]), (None, half[1])), "one answer has no interval"
    assert (curve.n, curve.named, curve.monotonic, curve.slope) == (4, 1, True, 0.5)
    assert curve.gap == 1.0, "(1 + 0 + 2 + 1) / 4"
    spread = NORMAL_95 * math.sqrt(2 / 3) / 2
    assert curve.gap_interval == (round(1 - spread, 4), round(1 + spread, 4))
    assert curve.spearman is not None
    assert 0 < curve.spearman < 1


def test_gaps_are_by_team_day_checkpoint_and_kind() -> None:
    found = metrics(
        humor(4, 4),
        humor(4, 3, team="school", **NEXT_DAY),
        humor(4, 1, sampled=False, best_of=4, policy="runs/other", guidance=2.0),
    )
    assert {team: group.gaps for team, group in found.teams.items()} == {
        "games": {"humor": 1.5},
        "school": {"humor": 1},
    }
    assert {day: group.answers for day, group in found.days.items()} == {"2026-11-29": 2, "2026-11-30": 1}
    assert found.days["2026-11-30"].gaps == {"humor": 1.0}
    assert list(found.checkpoints) == ["demo: runs/demo/policy", "demo: runs/other"]
    kinds = {kind: (group.answers, group.gaps["humor"]) for kind, group in found.kinds.items()}
    assert kinds == {"drawn": (2, 0.5), "rated for its caller": (1, 3), "best_of": (1, 3), "guidance": (1, 3)}
    assert (found.first, found.last) == ("2026-11-29T23:59:59+00:00", "2026-11-30T00:00:00+00:00")


def test_scales_that_differ_are_curves_of_their_own() -> None:
    other = RECORD | {"scales": {"humor": [0, 9]}, "effective": {"humor": 9}, "measured": {"humor": 7.0}}
    found = metrics(RECORD, other)
    assert {name: (c.scale, c.gap) for name, c in found.curves.items()} == {
        "humor_0_to_4": ((0, 4), 1.0),
        "humor_0_to_9": ((0, 9), 2.0),
        "verbosity": ((0, 4), 0.5),
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "broken_json"),
        ("[1]", "wrong_type"),
        ({"messages": []}, "no_live_record"),
        (RECORD | {"answer": "It is."}, "no_live_record"),
        (RECORD | {"time": "2026-11-30T00:00:00"}, "no_live_record"),
        (RECORD | {"effective": {"humor": 5}}, "no_live_record"),
        (RECORD | {"measured": {"toxicity": 1.0}}, "no_live_record"),
        (RECORD | {"scales": {"humor": [0, 4]}}, "no_live_record"),
        (RECORD | {"scales": {"../x": [0, 4]}, "effective": {"../x": 1}, "measured": {"../x": 1.0}}, "no_live_record"),
        (json.dumps(RECORD).replace("2.5", "NaN"), "no_live_record"),
    ],
)
def test_what_is_no_record_is_counted_and_left_out(tmp_path: Path, line: Any, reason: str) -> None:
    found = list(read_live(stored(tmp_path, RECORD, line, RECORD)))
    assert [one.reason for one in found if isinstance(one, Rejected)] == [reason]
    assert [type(one) for one in found] == [LiveRecord, Rejected, LiveRecord]
    made = live_sums(found).metrics()
    assert made is not None
    assert (made.answers, made.bad_lines, made.bad_reasons) == (2, 1, {reason: 1})
    assert "20261130T000000Z-01234567.jsonl, line 2: " in made.first_bad


def test_a_file_that_is_removed_meanwhile_is_passed_by(tmp_path: Path) -> None:
    store = Path(stored(tmp_path, RECORD))
    (store / "2026-12-01").mkdir()
    late = store / "2026-12-01" / "20261201T000000Z-01234567.jsonl"
    late.write_text(json.dumps(RECORD))
    found = read_live(str(store))
    assert isinstance(next(found), LiveRecord)
    late.unlink()
    assert list(found) == []


def test_the_pages_of_an_endpoint_s_own_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = Predictor()
    live = live_in(tmp_path / "store", predictor.score)
    app = app_around(Scripted().generate, predictor.score, live=live)
    for value in (0, 4, 4):
        ask(app, messages=[{"role": "user", "content": "Why?"}], attributes={"humor": value}, score=True)
    asyncio.run(live.aclose())
    out = tmp_path / "pages"
    last = written(capsys, "--live", str(tmp_path / "store"), "--out", str(out))
    assert (last["answers"], last["bad_lines"], last["gap"]["humor"]) == (3, 0, round((2.5 + 1.5 + 1.5) / 3, 4))
    assert last.keys() == {
        *("live", "html", "markdown", "png", "answers", "bad_lines", "bad_reasons", "first", "last", "gap")
    }
    assert (out / "live.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "report.json").read_text())["curves"]["humor"]["counts"] == [1, 2]
    markdown = (out / "report.md").read_text()
    assert "| humor | 3 | 3 | 1.83 (1.18 to 2.49) |" in markdown
    for name in ("figures/steering-humor.svg", "figures/steering-toxicity.svg"):
        assert name in markdown
        assert (out / name).exists()
    page = Page((out / "report.html").read_text())
    assert [section["id"] for section in page.named("section")] == ["live", "groups", "kinds"]


def test_the_pages_show_days_bad_lines_and_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = RECORD | NEXT_DAY | {"team": HOSTILE}
    store = stored(tmp_path, RECORD, hostile, "{")
    last = written(capsys, f"--live={store}", "--out", str(tmp_path / "pages"))
    assert (last["answers"], last["bad_lines"], last["bad_reasons"]) == (2, 1, {"broken_json": 1})
    text, markdown = ((tmp_path / "pages" / name).read_text() for name in ("report.html", "report.md"))
    assert not Page(text).named("script")
    assert "<script" not in markdown
    assert "figures/gap-humor.svg" in markdown
    for page in (text, markdown):
        assert "1 lines are no records and were left out (1 broken" in page.replace("\\_", "_")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--live", "{folder}/nowhere"], "nothing to read at {folder}/nowhere"),
        (["--live", "{folder}/store"], "no live record at {folder}/store; 1 lines are no records; name the endpoint's"),
        (["--live", "{folder}/store", "--out", "memory://x"], "memory://x is gone when the process ends"),
    ],
)
def test_nothing_to_report_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    stored(tmp_path, "{}")
    with pytest.raises(SystemExit) as ended:
        main([word.format(folder=tmp_path) for word in words])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"python -m jobs.report: {sentence.format(folder=tmp_path)}")
    assert error.count("\n") == 1


def test_a_flag_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--live", "x", "--output", "y"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --output y" in capsys.readouterr().err
