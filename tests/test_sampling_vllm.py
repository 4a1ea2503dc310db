"""Text of jobs by vLLM: one worker, and a tiny run to its end (bootstrap, promotion, report). `make test-vllm`."""

from pathlib import Path

import pyarrow as pa
import pytest
from support import tiny_run
from support.annotated_run import ready
from support.engines import NO_VLLM
from support.loud_policy import louder

from actors.generation.protocol import Sampling
from actors.generation.settings import EngineKind, EngineSettings
from data.attributes import shipped
from data.conversation import Conversation, Message, from_table
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample
from jobs.pipelines.sample_and_rate import SamplerAndAnnotator

pytestmark = NO_VLLM

SCHEMA = shipped("lab")

SMALL = [
    # Heads are 32 wide, the smallest that vLLM's kernels for CPUs take.
    "base.small={hidden_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 1, intermediate_size: 64, "
    "vocab_size: 600, max_tokens: 512}",
    "sampling.pool.num_actors=1",
    "annotate.pool.num_actors=1",
    "evaluate.num_questions=1",
]
ENGINES = {
    "transformers": ["sampling.engine.kind=transformers"],
    "vllm": ["sampling.engine.kind=vllm"],
    "split": ["sampling.engine.kind=vllm", "sampling.engine.tensor_parallel=2", "sampling.pool.cpus_per_actor=2"],
}


def prompts() -> pa.Table:
    asked = [[Message("user", f"Tell me about {subject}.")] for subject in ("bees", "the moon")]
    return prompts_table(steering_prompts(asked, SCHEMA, SCHEMA.best(), 0, "test"))


def rated_answers(kind: EngineKind, policy: str, predictor: str) -> list[Conversation]:
    """Greedy answers of one worker that samples and rates, without Ray."""
    engine = EngineSettings(kind=kind, max_num_seqs=4)
    sampler = {"policy": policy, "schema": SCHEMA, "sampling": Sampling(12, temperature=0), "engine": engine}
    annotator = {"predictor": predictor, "schema": SCHEMA, "fingerprint": "test", "pack_tokens": 512, "max_tokens": 256}
    shared = {"dtype": "float32", "num_threads": 1}
    worker = SamplerAndAnnotator(sampler | shared, annotator | shared)
    try:
        return list(from_table(worker(prompts())))
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


@pytest.mark.ray
def test_actors_on_vllm_write_what_those_on_transformers_do(
    ray_cluster: object, wide_policy: str, tiny_predictor: str, tmp_path: Path
) -> None:
    folder = Storage(str(tmp_path))
    (folder / "policy" / "model").upload(louder(wide_policy, str(tmp_path / "loud")))
    write_table(prompts(), folder / "prompts")
    texts = []
    for name, engine in ENGINES.items():
        words = (*engine, "sampling.max_tokens=12", "sampling.pool.num_actors=1")
        run = ready(str(tmp_path / name), tiny_predictor, "rows.lab.num_rows=40", *words)
        metrics = sample(run, name, folder / "policy", folder / "prompts", folder / f"answers-{name}", 0)
        rows = [row for table in (folder / f"answers-{name}").tables() for row in from_table(table)]
        assert metrics.rows == len(rows) == 52
        texts.append({row.id: row.messages[-1].content for row in rows})
    assert texts[1:] == [texts[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "split"])
def test_a_run_writes_all_its_text_with_vllm(engine: str, tmp_path: Path) -> None:
    result, out = tiny_run.run(tmp_path, *SMALL, *ENGINES[engine])
    assert "sampling.engine: vLLM, because sampling.engine.kind is vllm" in out
    assert "sampling.engine: transformers" not in out
    assert result["stages"]["bootstrap-1/samples"]["counts"]["prompts"] == 40
    assert result["stages"]["bootstrap-1/promotion"]["policy"] == "bootstrap-1/policy"
    assert result["measured_by"] == "exactly, from the text"
    for stage in ("bootstrap-1/samples", "bootstrap-1/promotion", "report"):
        manifest = Storage(str(tmp_path / "demo" / stage / "manifest.json")).read_json()
        # How many processes a model is split into changes no answer.
        assert manifest["description"]["settings"]["sampling"]["engine"] == {"kind": "vllm"}
