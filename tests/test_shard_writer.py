"""A file of weights appears whole or not at all, and whoever writes it never waits for a thread that has failed."""

from pathlib import Path

import pytest
import torch

from actors.training.shard_layout import ShardLayout
from actors.training.shard_writer import ShardWriter
from data.lease import LeaseLost
from data.storage import Storage, Unwritable

LAYOUT = ShardLayout({"w": torch.empty(4, device="meta")})
BATCH = [("w", 0, torch.ones(4))]


def _lost() -> None:
    raise LeaseLost("taken over")


def test_an_error_comes_back_at_the_end_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = ShardWriter(Storage(str(tmp_path / "file" / "w")), LAYOUT, lambda: None)
    for _ in range(5):  # more than may wait
        writer.add(BATCH)
    assert isinstance(error := writer.close(), Unwritable)
    assert "File exists; free space or get access" in str(error)


@pytest.mark.parametrize("uri", ["{}/w", "memory://{}/w"])
def test_a_file_is_not_published_by_who_may_not(uri: str, tmp_path: Path) -> None:
    target = Storage(uri.format(tmp_path))
    writer = ShardWriter(target, LAYOUT, _lost)
    writer.add(BATCH)
    assert isinstance(writer.close(), LeaseLost)
    assert not target.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lacks_values_is_not_published(tmp_path: Path) -> None:
    writer = ShardWriter(Storage(str(tmp_path / "w")), LAYOUT, lambda: None)
    writer.add([("w", 0, torch.ones(3))])
    assert str(writer.close()) == "12 bytes of 16"
    stopped = ShardWriter(Storage(str(tmp_path / "w")), LAYOUT, lambda: None)
    stopped.add(BATCH)
    stopped.abort()
    assert list(tmp_path.iterdir()) == []
