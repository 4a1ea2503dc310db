"""Tiny policies that write other things."""

from actors.modeling.policy import PolicyTask
from data.attributes import shipped


def turned_policy(base: str, folder: str, schema: str = "lab") -> str:
    """A policy whose embeddings are turned round, so that it writes other things."""
    task = PolicyTask(base, shipped(schema), "steerlm")
    module = task.build()
    state = {
        name: value.flip(0) if "embed_tokens" in name or "lm_head" in name else value
        for name, value in module.state_dict().items()
    }
    task.save(module, state, folder)
    return folder
