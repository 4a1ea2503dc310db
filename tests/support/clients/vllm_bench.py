"""vLLM's `bench serve`, over text completions, which is its default, and over the chat route."""

import json as json_text
import os
import subprocess
import sys
import tempfile

from harness import MODEL, URL, run

VLLM = os.path.join(os.path.dirname(sys.executable), "vllm")
POLICY = os.environ["CLIENT_POLICY"]
NUM_PROMPTS = 8


def benchmarked(*options: str) -> str:
    """Prompts and lengths that it draws by itself; it wants answers of one length (`ignore_eos`)."""
    with tempfile.TemporaryDirectory() as folder:
        words = [VLLM, "bench", "serve", "--base-url", URL, "--model", MODEL, "--tokenizer", POLICY]
        words += ["--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "16"]
        words += ["--num-prompts", str(NUM_PROMPTS), "--save-result", "--result-dir", folder]
        words += ["--result-filename", "found.json", *options]
        environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": folder, "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
        with open(f"{folder}/found.json") as file:
            found = json_text.load(file)
    assert found["completed"] == NUM_PROMPTS, found
    return f"{found['total_output_tokens']} tokens"


def chat() -> str:
    return benchmarked("--backend", "openai-chat", "--endpoint", "/v1/chat/completions")


def completions() -> str:
    return benchmarked()


run(chat, completions)
