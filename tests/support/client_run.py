"""What the clients speak to: a small run that went through all its stages, and a policy whose template has tools."""

import shutil
from pathlib import Path

import safetensors.torch
from support import tiny_run
from support.chat_policy import chat_policy

from serve.locate import Located, locate

SHAPE = (
    "{hidden_size: 64, num_layers: 3, num_heads: 4, num_kv_heads: 2, intermediate_size: 160, vocab_size: 700, "
    "max_tokens: 8192}"
)
LARGER = ["rows.lab.num_rows=1200", f"base.small={SHAPE}", "policy.learner.epochs=8", "bootstrap.rounds=0"]
# So few steps teach the labels only in a small and orderly world; else no attribute would change the likeliest answer.
LARGER += ["rows.lab.num_subjects=2", "rows.lab.shuffle=0", "policy.labels=human_else_predicted"]
SHARPER = 3.0
"""A model this small begins one answer in forty with its end, and many clients take an empty answer for a failure."""


def served(folder: Path, temporary: Path) -> list[Located]:
    """`folder` keeps the run: its finished stages are skipped the next time."""
    tiny_run.run(folder, *LARGER)
    found = locate(str(folder / "demo"), "")
    sharp = _sharpened(found.uri, temporary / "demo")
    tools = chat_policy("qwen_tools", temporary / "tools")
    return [Located(sharp, "demo", predictor=found.predictor), Located(tools, "chatml", weight=0)]


def _sharpened(policy: str, to: Path) -> str:
    """A copy of a Llama whose logits are SHARPER times as large, as if each request had a lower temperature."""
    shutil.copytree(policy, to)
    weights = safetensors.torch.load_file(to / "model.safetensors")
    weights["model.norm.weight"] *= SHARPER
    safetensors.torch.save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return str(to)
