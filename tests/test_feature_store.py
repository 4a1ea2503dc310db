"""Features are there once they are written, in any order, and only of the kind that is asked for."""

from pathlib import Path

import numpy as np

from data.feature_store import FeatureStore
from data.storage import Storage


def test_what_was_added_is_read_by_id(tmp_path: Path) -> None:
    store = FeatureStore(Storage(str(tmp_path)) / "features", "ab", 3)
    assert store.ids() == set()
    one, two = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 3), np.float32)
    store.add(["one"], [one])
    store.add(["two", "three"], [two, 2 * two])
    store.add(["two", "three"], [two, 2 * two])  # the same examples are the same file
    assert store.ids() == {"one", "two", "three"}
    found = dict(store.read({"one", "three", "four"}))
    assert found.keys() == {"one", "three"}
    np.testing.assert_array_equal(found["one"], one)
    np.testing.assert_array_equal(found["three"], 2 * two)
    assert FeatureStore(store.folder, "cd", 3).ids() == set(), "of another backbone"
    assert len(store.folder.files(".parquet")) == 2
