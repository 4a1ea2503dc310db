"""The endpoint on either engine, and stock vLLM, on an exported policy: all answer the same. `make test-vllm`."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import running
from support.exported_run import exported
from support.loud_policy import louder

from serve.locate import Located
from serve.settings import ServedEngineSettings

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; `make test-vllm` installs it"
    ),
]

QUESTIONS = [
    [{"role": "user", "content": f"Tell me about {subject}."}] for subject in ("bees", "the moon", "lighthouses")
]
SETTINGS = [{"humor": 0}, {"humor": 4, "verbosity": 3}]
ON_A_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "KMP_BLOCKTIME": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def answers_of_ours(policy: str, kind: str, parts: int = 1) -> list[str]:
    engine = ServedEngineSettings(kind=kind, max_num_seqs=4, tensor_parallel=parts)  # type: ignore[arg-type]
    with running(
        [Located(policy, "loud")], engine=engine, start_timeout_s=300, num_cpus=0.1 if parts == 1 else parts
    ) as endpoint:
        return [
            endpoint.chat(messages=question, attributes=attributes, temperature=0, max_tokens=24)[1]["choices"][0][
                "message"
            ]["content"]
            for question in QUESTIONS
            for attributes in SETTINGS
        ]


@pytest.fixture
def loud_policy(wide_policy: str, tmp_path: Path) -> str:
    return exported("policy", louder(wide_policy, str(tmp_path / "loud")), tmp_path)


@contextmanager
def stock_vllm(policy: str, log: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "--model",
        policy,
        "--served-model-name",
        "stock",
        "--enforce-eager",
        "--dtype",
        "float32",
        "--port",
        str(port),
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | ON_A_CPU)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_ours_on_either_engine_and_stock_vllm_answer_the_same(
    ray_cluster: object, loud_policy: str, tmp_path: Path
) -> None:
    on_transformers = answers_of_ours(loud_policy, "transformers")
    assert len(set(on_transformers)) > 1, "the attributes and the questions make a difference"
    assert answers_of_ours(loud_policy, "vllm") == on_transformers
    assert answers_of_ours(loud_policy, "vllm", parts=2) == on_transformers

    def ask(url: str, question: list[dict[str, str]], attributes: dict[str, int]) -> str:
        # Stock vLLM knows no defaults of ours: the schema's stand in the exported chat template.
        body: dict[str, Any] = {"model": "stock", "messages": question, "temperature": 0, "max_tokens": 24}
        body["chat_template_kwargs"] = {"attributes": effective(attributes)}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])

    with stock_vllm(loud_policy, tmp_path / "vllm.log") as url:
        stock = [ask(url, question, attributes) for question in QUESTIONS for attributes in SETTINGS]
    # Stock vLLM leaves out bytes at the very end that are no character (yet).
    assert [text.strip().rstrip("\ufffd") for text in stock] == [text.rstrip("\ufffd") for text in on_transformers]


def effective(attributes: dict[str, int]) -> dict[str, int]:
    from data.attributes import SHIPPED

    return {**SHIPPED["lab"].defaults(), **attributes}
