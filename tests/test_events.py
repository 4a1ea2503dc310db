"""One line per event: text for people, JSON for machines."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.events import Level, log_event, write_events_as
from cluster.progress import Progress


@pytest.fixture
def as_json() -> Iterator[None]:
    write_events_as("json")
    yield
    write_events_as("text")


def test_people_read_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    log_event("[rows] done in 2 s", "stage.end", stage="rows", seconds=2.0)
    log_event("only 3 rows", "warned", "warning")
    log_event("python -m jobs.run: no rows", "run.fail", "error")
    out, err = capsys.readouterr()
    assert out == "[rows] done in 2 s\n"
    assert err == "warning: only 3 rows\npython -m jobs.run: no rows\n"


def test_machines_read_an_object_a_line(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    log_event("Ray on this machine\nrun: x", "run.start", run="x", path=Path("y"), loss=float("nan"))
    log_event("only 3 rows", "warned", "warning")
    out, err = capsys.readouterr()
    [line], [warning] = out.splitlines(), err.splitlines()
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "info",
        "event": "run.start",
        "text": "Ray on this machine\nrun: x",
        "run": "x",
        "path": "y",
        "loss": None,
    }
    assert json.loads(warning)["level"] == "warning"


def test_progress_is_logged_with_metrics(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("annotate", 200, 2) as progress:
        progress.add(200, tokens=5000)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["event"] == "pipeline.progress"
    assert (said["pipeline"], said["metrics"]["rows_done"], said["metrics"]["eta_seconds"]) == ("annotate", 200, 0)


STRANGE = "a\x1b]0;b\x07c\x9b2Jd\u202ee\ud800f\u2028g"


@pytest.mark.case("B11: escapes of strangers in a log")
@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_no_terminal_obeys_a_line(level: Level, capsys: pytest.CaptureFixture[str]) -> None:
    log_event(f"{STRANGE}\n\tsecond line: ünï", "row.skip", level)
    out, err = capsys.readouterr()
    first, second = (out + err).splitlines()
    assert first.removeprefix("warning: ") == r"a\x1b]0;b\x07c\x9b2Jd\u202ee\ud800f\u2028g"
    assert second == "\tsecond line: ünï"


@pytest.mark.case("B11: escapes of strangers in a log")
def test_no_terminal_obeys_an_object_and_machines_read_it_whole(
    as_json: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log_event(STRANGE, "row.skip", name=STRANGE, words="ünï 🙂")
    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable()
    assert "ünï 🙂" in out
    said = json.loads(out)
    assert (said["text"], said["name"]) == (STRANGE, STRANGE)
