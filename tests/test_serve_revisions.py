"""What a cluster remembers of swaps."""

import pytest

from serve.request import Revision
from serve.revisions import forget, keep, wanted


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
