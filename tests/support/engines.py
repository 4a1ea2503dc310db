"""Both kinds of engine over one policy, and prompts for it."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from support.engine_listener import Recorder

from actors.generation.factory import load_engine
from actors.generation.protocol import Engine, GenerationStep, Sampling
from actors.generation.settings import EngineKind, EngineSettings
from actors.modeling.policy import Policy
from data.conversation import Message

MAX_NUM_SEQS = 4
NO_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; `make test-vllm` installs it"
)
KINDS = ["transformers", pytest.param("vllm", marks=NO_VLLM)]


@contextmanager
def running(kind: EngineKind, policy: str) -> Iterator[Engine]:
    """An engine of that kind over the policy in a folder."""
    own = {"prefix_cache_tokens": 2000} if kind == "transformers" else {}
    _, engine = load_engine(EngineSettings(kind=kind, max_num_seqs=MAX_NUM_SEQS, **own), policy, "float32")
    yield engine
    engine.close()


def prompts_of(policy: Policy) -> list[list[int]]:
    words = ["bees", "lighthouses and the sea", "a", "volcanoes " * 30, "why"]
    return [policy.prompt("", [Message("user", f"Tell me about {w}.")], {"humor": i % 5}) for i, w in enumerate(words)]


def steps_of(engine: Engine, ids: Sequence[int], sampling: Sampling) -> list[GenerationStep]:
    """All steps of one request."""
    recorder = Recorder()
    engine.submit(ids, sampling, recorder)
    assert recorder.ended.wait(60)
    return recorder.steps
