"""Policies trained with low-rank matrices on one base, their exported adapters, and the base as a policy."""

from pathlib import Path

import torch

from actors.modeling.adapter import save_base, write_adapter
from actors.modeling.policy import PolicyTask
from data.attributes import AttributeSchema, shipped
from data.calibration import Calibration

LAB = shipped("lab")


def exported_adapter(
    base: str,
    folder: Path,
    seed: int,
    rank: int = 4,
    schema: AttributeSchema = LAB,
    kind: str = "words",
    calibration: Calibration | None = None,
) -> str:
    """The folder of an adapter on `base` that changes every linear module, and the embeddings of the added tokens."""
    task = PolicyTask(base, schema, kind, calibration=calibration or Calibration())  # type: ignore[arg-type]
    module = task.build()
    state = dict(module.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if "_proj.weight" in name:
            b, a = (torch.randn(n, rank, generator=generator) for n in tensor.shape)
            state[name] = tensor + 0.1 * b @ a.T
    added = len(task.format().tokenizer) - _base_tokens(base)
    if added > 0:
        rows = torch.randn(added, module.model.config.hidden_size, generator=generator)
        for name in ("model.model.embed_tokens.weight", "model.lm_head.weight"):
            state[name] = torch.cat([state[name][:-added], rows])
    policy = folder.with_name(f"{folder.name}-policy")
    task.save(module, state, str(policy))
    folder.mkdir(parents=True)
    write_adapter(base, base, str(policy), None, rank, str(folder))
    return str(folder)


def base_policy(adapter: str, folder: Path) -> str:
    """The adapter's base as a policy."""
    save_base(adapter, str(folder))
    return str(folder)


def _base_tokens(base: str) -> int:
    from actors.modeling.model_folder import load_config

    return int(load_config(base).get_text_config().vocab_size)
