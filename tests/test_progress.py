"""The line for people: what an earlier run had finished counts as done, but not for the speed."""

import pytest

from cluster.progress import Progress


def test_the_line_says_rows_speed_fill_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("annotate", 1000, 10, rows_before=400, pieces_before=4) as progress:
        monkeypatch.setattr(Progress, "seconds", 10.0)
        assert (
            progress.line() == "annotate: 400/1,000 rows (400 before)  0.0 rows/s  0 tokens/s  4/10 pieces  ETA unknown"
        )
        progress.add(100, tokens=5000, filled=4500, budget=5000)
        progress.add(100, tokens=5000, filled=4500, budget=5000)
        line = (
            "annotate: 600/1,000 rows (400 before)  20.0 rows/s  1,000 tokens/s  packs 90% full  6/10 pieces  ETA 20 s"
        )
        assert progress.line() == line
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert progress.rows == 200


def test_a_watcher_gets_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, float]] = []
    monkeypatch.setattr(Progress, "seconds", 10.0)
    with Progress("annotate", 200, 2, watch=heard.append) as progress:
        assert "eta_seconds" not in progress.metrics(), "no row is done: nobody knows"
        progress.add(100, tokens=5000, filled=4500, budget=5000)
    assert heard == [
        {"rows": 200, "rows_done": 100, "rows_per_s": 10, "tokens_per_s": 500, "packs_filled": 0.9, "eta_seconds": 10}
    ]
