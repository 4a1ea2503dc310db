"""lm-eval: a task that generates and one that asks for log-likelihoods, on local rows.

CLIENT_POLICY is the folder of the model that is served: its tokenizer makes the prompts, and REFERENCE is a file with
transformers' own log-likelihood of each choice.
"""

import json as json_text
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import BASE, MODEL, run
from lm_eval_tasks import CHOSEN, WRITTEN, write_tasks

POLICY, REFERENCE = os.environ["CLIENT_POLICY"], os.environ["CLIENT_REFERENCE"]
WITHIN = 1e-4
"""Of a text's log-likelihood, in nats."""
NUM_TEXTS = 200


def evaluated(task: str, model: str, arguments: str, *options: str) -> list[dict[str, Any]]:
    """The samples of a task, as lm-eval logs them."""
    with open(REFERENCE) as file:
        rows = [{"question": r["question"], "choices": r["choices"], "answer": 0} for r in json_text.load(file)]
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), rows)
        words = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", task]
        words += ["--include_path", folder, "--output_path", folder, "--log_samples", *options]
        own = {"OPENAI_API_KEY": "none", "HF_HOME": folder, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder}
        done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        [found] = [
            os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.startswith("samples_")
        ]
        with open(found) as file:
            return [json_text.loads(line) for line in file]


def chat() -> None:
    options = ("--apply_chat_template", "--fewshot_as_multiturn", "true", "--num_fewshot", "0", "--limit", "3")
    found = evaluated(WRITTEN, "local-chat-completions", f"model={MODEL},base_url={BASE}/chat/completions", *options)
    assert found
    assert all(isinstance(sample["resps"][0][0], str) for sample in found)


def completions() -> str:
    """Log-likelihoods, against transformers' own."""
    arguments = f"model={MODEL},base_url={BASE}/completions,tokenizer={POLICY},tokenizer_backend=huggingface"
    found = evaluated(CHOSEN, "local-completions", arguments)
    with open(REFERENCE) as file:
        rows = {row["question"]: row for row in json_text.load(file)}
    most, num_texts = 0.0, 0
    for sample in found:
        row = rows[sample["doc"]["question"]]
        for (resps,), own, tokens in zip(sample["resps"], row["logprobs"], row["tokens"], strict=True):
            gap = abs(float(resps[0]) - own)
            assert gap < WITHIN, f"{resps[0]} is not {own}, the sum over {tokens} tokens"  # neither is a NaN
            most, num_texts = max(most, gap), num_texts + 1
    assert num_texts >= NUM_TEXTS
    return f"{num_texts} texts; at most {most:.1e} nats from transformers' own"


run(chat, completions)
