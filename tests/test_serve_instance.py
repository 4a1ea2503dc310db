"""What Ray prints while Serve ends: warnings that were expected are left out, and nothing else."""

from typing import Any

import pytest
from ray._private import worker

from serve import instance

EXPECTED = (
    "Task ServeController.listen_for_change failed. There are infinite retries remaining, so the task will be retried. "
    "Error: The actor is dead because it was killed by `ray.kill`."
)


def test_what_the_end_of_serve_makes_ray_print_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, **named: printed.append((data, named)))
    instance._expect_last_words()
    instance._expect_last_words()
    for lines in ([EXPECTED], [EXPECTED, "a worker died"], ["out of memory"]):
        worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False)
    left = {"pid": "raylet", "is_err": False}
    assert printed == [
        ({"lines": ["a worker died"], **left}, {"ignore_prefix": False}),
        ({"lines": ["out of memory"], **left}, {"ignore_prefix": False}),
    ]
