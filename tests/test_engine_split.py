"""vLLM with a model that is split into two processes: the same greedy answers, and nothing left when it is closed."""

import psutil
from support.engines import MAX_NUM_SEQS, NO_VLLM, prompts_of

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete
from actors.generation.settings import EngineSettings
from actors.modeling.policy import Policy

pytestmark = NO_VLLM


def processes() -> list[psutil.Process]:
    """Those that vLLM has started here."""
    return [process for process in psutil.Process().children(recursive=True) if "VLLM" in process.name()]


def answers(policy: str, parts: int) -> list[list[int]]:
    settings = EngineSettings(kind="vllm", max_num_seqs=MAX_NUM_SEQS, tensor_parallel=parts)
    _, engine = load_engine(settings, policy, "float32", num_threads=1)
    requests = [(ids, Sampling(12, temperature=0)) for ids in prompts_of(Policy.load(policy, "float32"))]
    own = processes()
    try:
        assert len(own) == (1 if parts == 1 else 1 + parts), "the engine's core, and the parts beside it"
        return [ids for ids, _ in complete(engine, requests)]
    finally:
        engine.close()
        assert psutil.wait_procs(own, timeout=20)[1] == []


def test_vllm_answers_alike_whole_and_split_and_its_processes_end(wide_policy: str) -> None:
    whole = answers(wide_policy, 1)
    assert answers(wide_policy, 2) == whole
    assert sum(map(len, whole)) > 12
