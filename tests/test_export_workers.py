"""Workers that hold a model sharded save it together, to slow or full storage, and go on after one was killed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
DEADLINE_S = 200


def _base(tiny_base: str, folder: Path, **shape: int) -> str:
    """Weights that neither two nor three workers can cut in equal parts."""
    Storage(str(folder)).upload(tiny_base)
    sizes = {"hidden_size": 25, "intermediate_size": 67, "num_hidden_layers": 8, "head_dim": 10, **shape}
    config = LlamaConfig(vocab_size=601, **{"num_attention_heads": 5, **sizes}, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _run(folder: Path, words: dict[str, Any]) -> list[Any]:
    """What the workers print; as Ray Train does, end the other as soon as one is dead."""
    meeting, deadline = folder / f"meeting-{time.monotonic_ns()}", time.monotonic() + DEADLINE_S
    sizes = {"target": str(folder / "m"), "shard_bytes": 60_000, "batch_bytes": 2000, "seed": 7}
    command = [sys.executable, "tests/support/export_workers.py"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(meeting), json.dumps(sizes | words)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(words.get("world", 2))
    ]
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers) or time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)
    said = [worker.communicate() for worker in workers]
    codes = [worker.returncode for worker in workers]
    assert not any(codes) or "kill" in words, "".join(err[-3000:] for _, err in said)
    return [] if any(codes) else [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _require_same(ours: Path, theirs: Path) -> None:
    """Byte for byte, and plain transformers reads it."""
    found, expected = ({k: v for f in _files(at) for k, v in load_file(at / f).items()} for at in (ours, theirs))
    assert found.keys() == expected.keys()
    assert all(value.dtype == expected[name].dtype for name, value in found.items())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert AutoModelForCausalLM.from_pretrained(ours, dtype="auto").config.vocab_size == 601
    assert not Path(f"{ours}.partial").exists()


@pytest.mark.parametrize(
    ("precision", "lora", "world"), [("fp32", False, 2), ("bf16", False, 3), ("fp32", True, 3), ("bf16", True, 2)]
)
def test_a_sharded_model_is_saved_as_if_one_worker_had_all_of_it(
    precision: str, lora: bool, world: int, tiny_base: str, tmp_path: Path
) -> None:
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole"), "lora": lora}
    said = _run(tmp_path, {**words, "precision": precision, "world": world, "shard_bytes": 40_000})
    written = [name for worker in said for name in worker["written"] if name.endswith(".safetensors")]
    assert sorted(written) == _files(tmp_path / "m")
    assert all(worker["written"] for worker in said), "each of them writes"
    _require_same(tmp_path / "m", tmp_path / "whole")


def test_a_model_of_one_file_is_saved_by_one_of_two_workers(tiny_base: str, tmp_path: Path) -> None:
    """The other has no file, neither to look at nor to write."""
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole"), "lora": False}
    said = _run(tmp_path, {**words, "precision": "fp32", "shard_bytes": 10**9})
    assert _files(tmp_path / "m") == ["model.safetensors"]
    assert [worker["error"] for worker in said] == ["", ""]
    _require_same(tmp_path / "m", tmp_path / "whole")


def test_the_weights_of_an_earlier_step_come_from_storage(tiny_base: str, tmp_path: Path) -> None:
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole")}
    assert [worker["error"] for worker in _run(tmp_path, {**words, "kept": str(tmp_path / "best")})] == ["", ""]
    _require_same(tmp_path / "m", tmp_path / "whole")


@pytest.mark.case("B14: an export that takes longer than a collective may")
def test_slow_storage_may_take_longer_than_any_collective(tiny_base: str, tmp_path: Path) -> None:
    base = _base(tiny_base, tmp_path / "base")
    said = _run(tmp_path, {"base": base, "reference": str(tmp_path / "whole"), "write_s": 6.0, "limit_s": 4.0})
    assert [worker["error"] for worker in said] == ["", ""]
    _require_same(tmp_path / "m", tmp_path / "whole")


def test_a_disk_that_is_full_for_one_worker_ends_all_with_its_sentence(tiny_base: str, tmp_path: Path) -> None:
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole")}
    errors = {worker["error"] for worker in _run(tmp_path, {**words, "full": [1, 1]})}
    assert len(errors) == 1
    assert errors.pop().endswith(
        "No space left on device; free space or get access there, or set `storage` to another place"
    )
    assert not (tmp_path / "m").exists()
    _goes_on(tmp_path, words)


def test_an_export_goes_on_after_a_worker_was_killed(tiny_base: str, tmp_path: Path) -> None:
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole")}
    assert _run(tmp_path, {**words, "kill": [1, 1]}) == []
    assert not (tmp_path / "m").exists()
    _goes_on(tmp_path, words)


def _goes_on(folder: Path, words: dict[str, Any]) -> None:
    """With the files that are missing, and no other."""
    there = _files(folder / "m.partial")
    assert len(there) >= 2
    said = _run(folder, words)
    written = {name for worker in said for name in worker["written"]}
    assert written
    assert not written & set(there)
    assert sorted(written | set(there)) == _files(folder / "m")
    _require_same(folder / "m", folder / "whole")


def test_nothing_of_another_training_is_kept(tiny_base: str, tmp_path: Path) -> None:
    words = {"base": _base(tiny_base, tmp_path / "base"), "reference": str(tmp_path / "whole")}
    assert _run(tmp_path, {**words, "kill": [1, 1]}) == []
    said = _run(tmp_path, {**words, "seed": 1000})
    assert {name for worker in said for name in worker["written"]} == set(_files(tmp_path / "m"))
    _require_same(tmp_path / "m", tmp_path / "whole")


def test_no_worker_holds_more_than_its_share_and_what_is_on_the_way(tiny_base: str, tmp_path: Path) -> None:
    """414 MB in float32, files of 100 MB; with 8 MiB on the way a worker may hold some of them, in several places."""
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "head_dim": 512,
        "num_attention_heads": 2,
    }
    base, batch = _base(tiny_base, tmp_path / "base", **shape), 8 * 2**20
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert size > 400 * 10**6
    said = _run(tmp_path, {"base": base, "shard_bytes": 10**8, "batch_bytes": batch, "seed": 0})
    assert all(worker["most"] <= 3 * batch for worker in said)
    assert all(worker["grown"] < size / 4 for worker in said), said
