"""Two JSON values, leaf by leaf."""

from jobs.runner.changes import Change, changes


def test_they_are_leaves_in_order() -> None:
    before = {"a": {"x": 1, "gone": True}, "list": [{"n": 1}, {"n": 2}], "long": [1, 2], "same": float("nan")}
    after = {"a": {"x": 1.5, "new": None}, "list": [{"n": 1}, {"n": 3}], "long": [1], "same": float("nan")}
    found = [Change("a.gone", True, None), Change("a.x", 1, 1.5), Change("list.1.n", 2, 3)]
    assert list(changes(before, after)) == [*found, Change("long", [1, 2], [1])]
    assert [c.path for c in changes(before, after, tolerance=1)] == ["a.gone", "long"]


def test_an_arrow_is_short_and_printable() -> None:
    assert Change("a.x", "one\n", None).arrow == '"one\\n" -> null'
    assert len(Change("a", "x" * 900, "y" * 900).arrow) < 140


def test_costs_are_known_by_their_units() -> None:
    costs = ("seconds", "rows_per_s", "training.peak_memory_bytes", "training.checkpoints.written", "cpu_seconds")
    assert all(Change(path, 1, 2).is_cost for path in costs)
    assert not any(Change(path, 1, 2).is_cost for path in ("rows", "training.steps", "held_out.humor.mae"))
