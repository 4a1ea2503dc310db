"""What a killed export has written is kept if it is whole and holds these very weights, and only then."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.modeling.policy import PolicyTask
from actors.training import export_plan
from actors.training.collectives import AgreedError
from actors.training.save_model import save_trained_model
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.lease import LeaseLost
from data.storage import Storage

SCHEMA = shipped("lab")


def _written(monkeypatch: pytest.MonkeyPatch, last: int, error: OSError | None = None) -> list[str]:
    """The names of the files that are written from now on; number `last` fails."""
    real, names = Storage.written, list[str]()

    @contextlib.contextmanager
    def written(self: Storage) -> Iterator[str]:
        with real(self) as path:
            yield path
            if error and len(names) == last:
                raise error
        names.append(self.uri.rsplit("/", 1)[1])

    monkeypatch.setattr(Storage, "written", written)
    return names


class Exported:
    """An export of several files that ended when two of them were whole: the disk was full."""

    def __init__(self, base: str, uri: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(export_plan, "SHARD_BYTES", 40_000)
        self.task, self.target = PolicyTask(base, SCHEMA, "steerlm"), Storage(uri)
        self.settings: dict[str, Any] = {"precision": "fp32"}
        self.module: Any = self.task.build()
        with monkeypatch.context() as patch:
            self.before = _written(patch, 2, OSError(28, "No space left on device"))
            with pytest.raises(AgreedError, match=r"^cannot write .*: No space left on device; free space or get"):
                self.save()
        assert len(self.before) == 2
        self.partial = Storage(f"{uri}.partial")
        self.files = self.partial if self.target.is_local else self.target

    def save(self, fence: Any = None) -> None:
        engine: Any = SimpleNamespace(
            rank=0, world=1, module=self.module, settings=LearnerSettings(zero_stage=0, **self.settings)
        )
        save_trained_model(self.task, engine, None, self.target, 1, 1e-3, fence)

    def saved(self, folder: Path) -> dict[str, torch.Tensor]:
        local = self.target.download(str(folder))
        return {k: v for file in Path(local).glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.fixture(params=["disk", "object store"])
def exported(request: Any, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    uri = str(tmp_path / "m") if request.param == "disk" else f"memory://{tmp_path.name}/m"
    return Exported(tiny_base, uri, monkeypatch)


def _require_right(exported: Exported, folder: Path) -> None:
    expected, found = exported.module.model.state_dict(), exported.saved(folder)
    assert found
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    index = (exported.target / "model.safetensors.index.json").read_json()
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert exported.partial.names() == []
    assert set(index["weight_map"].values()) == {n for n in exported.target.names() if n.endswith(".safetensors")}


def test_files_that_are_whole_are_not_written_again(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (exported.target / "config.json").exists()
    (exported.files / "model-00001-of-00099.safetensors").write_bytes(b"of another plan")
    (exported.files / f"{exported.before[0]}.0123abcd.tmp").write_bytes(b"half a file")
    names = _written(monkeypatch, 99)
    exported.save()
    assert names
    assert not set(names) & set(exported.before)
    assert f"export: 2 of {len(names) + 2} files are whole already" in capsys.readouterr().out
    _require_right(exported, tmp_path / "local")


def _another_training(exported: Exported, file: Storage) -> None:
    """It differs in one number of the first file."""
    with torch.no_grad():
        exported.module.model.get_input_embeddings().weight[3, 3] += 1


def _damaged(exported: Exported, file: Storage) -> None:
    with file.fs.open(file.path, "rb") as stream:
        content = stream.read()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _cut(exported: Exported, file: Storage) -> None:
    file.write_bytes(b"")


def _gone(exported: Exported, file: Storage) -> None:
    file.remove()


def _no_mark(exported: Exported, file: Storage) -> None:
    (exported.partial / f"{exported.before[0]}.json").remove()


def _mark_is_damaged(exported: Exported, file: Storage) -> None:
    (exported.partial / f"{exported.before[0]}.json").write_bytes(b"{")


@pytest.mark.parametrize("change", [_another_training, _damaged, _cut, _gone, _no_mark, _mark_is_damaged])
def test_a_file_that_is_not_whole_or_of_other_weights_is_written_again(
    change: Callable[[Exported, Storage], None], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(exported, exported.files / exported.before[0])
    names = _written(monkeypatch, 99)
    exported.save()
    assert exported.before[0] in names
    assert exported.before[1] not in names
    _require_right(exported, tmp_path / "local")


def test_another_dtype_keeps_no_file(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    exported.settings["export"] = "bfloat16"
    names = _written(monkeypatch, 99)
    exported.save()
    assert len(names) == len([name for name in exported.target.names() if name.endswith(".safetensors")]) > 1


def test_who_has_lost_the_lease_removes_and_writes_nothing(exported: Exported) -> None:
    def require() -> None:
        raise LeaseLost("taken over")

    before = exported.files.names()
    with pytest.raises(LeaseLost):
        exported.save(SimpleNamespace(require=require))
    assert exported.files.names() == before
