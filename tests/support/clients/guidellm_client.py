"""guidellm's benchmark, over the chat route and over text completions."""

import json as json_text
import os
import subprocess
import sys
import tempfile

from harness import MODEL, URL, run

GUIDELLM = os.path.join(os.path.dirname(sys.executable), "guidellm")
POLICY = os.environ["CLIENT_POLICY"]


def benchmarked(route: str) -> None:
    """Four prompts that guidellm makes; it wants answers of one length (`ignore_eos`), and looks at /health first."""
    with tempfile.TemporaryDirectory() as folder:
        words = [GUIDELLM, "run", "--backend", f"kind=openai_http,target={URL},model={MODEL},request_format={route}"]
        words += ["--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=4"]
        words += ["--tokenizer", f"kind=hf_auto,model={POLICY}", "--output", f"kind=json,path={folder}/found.json"]
        words += ["--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"]
        environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": folder}
        done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
        with open(f"{folder}/found.json") as file:
            [found] = json_text.load(file)["benchmarks"]
    total = found["metrics"]["request_totals"]
    assert (total["successful"], total["errored"]) == (4, 0), total


def chat() -> None:
    benchmarked("/v1/chat/completions")


def completions() -> None:
    benchmarked("/v1/completions")


run(chat, completions)
