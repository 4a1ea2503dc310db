"""A tiny run whose text vLLM writes, to its end: bootstrap round, promotion decision and report. `make test-vllm`."""

from pathlib import Path

import pytest
from support import tiny_run
from support.engines import NO_VLLM

from data.conversation import from_table
from data.storage import Storage

pytestmark = [pytest.mark.slow, NO_VLLM]

SMALL = [
    # Heads are 32 wide, the smallest that vLLM's kernels for CPUs take.
    "base.small={hidden_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 1, intermediate_size: 64, "
    "vocab_size: 600, max_tokens: 512}",
    "sampling.temperature=0",
    "evaluate.temperature=0",
    "sampling.pool.num_actors=1",
    "annotate.pool.num_actors=1",
    "evaluate.num_questions=1",
]


def texts(storage: Path) -> dict[str, str]:
    """Id of a prompt of the bootstrap round -> the policy's answer."""
    samples = Storage(str(storage / "demo" / "bootstrap-1" / "samples" / "answers"))
    return {row.id: row.messages[-1].content for table in samples.tables() for row in from_table(table)}


def test_a_run_samples_on_vllm_to_its_end_and_writes_what_transformers_writes(tmp_path: Path) -> None:
    _, out = tiny_run.run(tmp_path, *SMALL)
    assert "sampling.engine: transformers, because no GPU is set aside" in out
    expected = texts(tmp_path)
    assert len(expected) == 40
    assert len(set(expected.values())) > 1
    result, out = tiny_run.run(tmp_path, *SMALL, "sampling.engine.kind=vllm")
    assert "sampling.engine: vLLM, because sampling.engine.kind is vllm" in out
    ran = [name for name, stage in result["stages"].items() if not stage["skipped"]]
    assert ran == [f"bootstrap-1/{kind}" for kind in ("samples", "rated", "selected", "policy", "promotion")] + [
        "report"
    ]
    assert texts(tmp_path) == expected
    assert result["measured_by"] == "exactly, from the text"
