"""What a cluster remembers of swaps."""

import pytest

from serve.request import Revision
from serve.revisions import forget, keep, kept, wanted, wanted_adapters


@pytest.mark.ray
@pytest.mark.case("A8: a swap holds until the settings name another policy")
def test_the_last_swap_counts_until_the_settings_name_another_policy(ray_cluster: object) -> None:
    assert wanted("one", "m", "runs/may") == Revision("runs/may", 0)
    keep("one", "m", "runs/may", Revision("runs/june", 5))
    keep("one", "m", "runs/may", Revision("runs/july", 6))
    keep("one", "canary", "runs/may", Revision("runs/mayfly", 7))
    assert wanted("one", "m", "runs/may") == Revision("runs/july", 6)
    assert wanted("one", "canary", "runs/may") == Revision("runs/mayfly", 7)
    assert wanted("one", "m", "runs/august") == Revision("runs/august", 0)
    assert wanted("two", "m", "runs/may") == Revision("runs/may", 0)
    forget("one", ["m", "never swapped"])
    assert wanted("one", "m", "runs/may") == Revision("runs/may", 0)
    assert wanted("one", "canary", "runs/may") == Revision("runs/mayfly", 7)


@pytest.mark.ray
def test_adapters_that_came_and_went_are_remembered_beside_their_policy(ray_cluster: object) -> None:
    settings = {"games": "a/games", "school": "a/school"}
    keep("three", "m", "runs/may", Revision("runs/june", 4))
    keep("three", "games", "a/games", Revision("b/games", 5), adapter=True)
    keep("three", "school", "a/school", Revision("", 6), adapter=True)
    keep("three", "added", "runs/may", Revision("a/added", 7), adapter=True)
    found = {"games": Revision("b/games", 5), "school": Revision("", 6), "added": Revision("a/added", 7)}
    assert wanted_adapters("three", "runs/may", settings) == found
    named_anew = wanted_adapters("three", "runs/may", {"games": "c/games"})
    assert named_anew == {"games": Revision("c/games", 0), "added": Revision("a/added", 7)}
    assert wanted_adapters("three", "runs/august", {}) == {}, "it was added to another policy"
    assert wanted_adapters("four", "runs/may", {}) == {}
    assert kept("three") == ["added", "games", "m", "school"]
    forget("three", kept("three"))
    assert kept("three") == []
