"""Text of jobs by vLLM: one worker, and a tiny run to its end (bootstrap, promotion, report). `make test-vllm`."""

from pathlib import Path

import pytest
from support import tiny_run
from support.engines import NO_VLLM
from support.loud_policy import louder

from actors.generation.protocol import Sampling
from actors.generation.settings import EngineKind, EngineSettings
from data.attributes import shipped
from data.conversation import Conversation, Message, from_table
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.pipelines.sample_and_rate import SamplerAndAnnotator

pytestmark = NO_VLLM

SCHEMA = shipped("lab")

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


def rated_answers(kind: EngineKind, policy: str, predictor: str) -> list[Conversation]:
    """Greedy answers of one worker that samples and rates, without Ray."""
    asked = [[Message("user", f"Tell me about {subject}.")] for subject in ("bees", "the moon")]
    prompts = prompts_table(steering_prompts(asked, SCHEMA, SCHEMA.best(), 0, "test"))
    engine = EngineSettings(kind=kind, max_num_seqs=4)
    sampler = {"policy": policy, "schema": SCHEMA, "sampling": Sampling(12, temperature=0), "engine": engine}
    annotator = {"predictor": predictor, "schema": SCHEMA, "fingerprint": "test", "pack_tokens": 512, "max_tokens": 256}
    shared = {"dtype": "float32", "num_threads": 1}
    worker = SamplerAndAnnotator(sampler | shared, annotator | shared)
    try:
        return list(from_table(worker(prompts)))
    finally:
        worker.sampler.engine.close()


def test_a_worker_on_vllm_writes_and_rates_what_one_on_transformers_does(
    wide_policy: str, tiny_predictor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = louder(wide_policy, str(tmp_path / "loud"))
    expected, found = (rated_answers(kind, policy, tiny_predictor) for kind in ("transformers", "vllm"))
    assert len({row.messages[-1].content for row in expected}) > 10
    assert [row.messages for row in found] == [row.messages for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.predicted[-1] == pytest.approx(theirs.predicted[-1], abs=1e-5, nan_ok=True)
    assert "sampling.engine: vLLM, because sampling.engine.kind is vllm" in capsys.readouterr().out


@pytest.mark.slow
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
