"""Does a model give the same logits with our KV cache as without one? Asked once, by a few tokens, when it is loaded.

Layers that keep a state beside keys and values (linear attention, convolutions), or an attention that the cache's own
does not compute, would end the engine's thread in the first request, or give other text.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from actors.generation.kv_cache import KVCache
from actors.modeling.isolation import chunks
from data.errors import UserError
from data.printable import printable

PROMPTS, NEW = (11, 5), 3
"""Tokens of the two prompts, and tokens that are decoded after each."""

_passed: set[tuple[str, ...]] = set()


def require_cacheable(model: PreTrainedModel) -> None:
    """Raise UserError, with the model's type, if our KV cache would change what `model` writes.

    `model` has the attention that the engine runs. Asks once a process for each config.
    """
    parameter = next(model.parameters())
    asked = (type(model).__name__, model.config.to_json_string(), str(parameter.dtype), parameter.device.type)
    if asked in _passed:
        return
    if why := chunks(model.config) or _difference(model):
        raise UserError(
            f"the transformers engine cannot run a model of type {model.config.model_type}: {why}; name a model whose "
            "layers keep keys and values only (Llama, Qwen 2 and 3, Mistral, Gemma, ...), or set the engine's kind to "
            "vllm"
        )
    _passed.add(asked)


@torch.inference_mode()
def _difference(model: PreTrainedModel) -> str:
    """What is wrong with the logits of two rows of different length; "" = nothing."""
    try:
        expected, found = _without_cache(model), _with_cache(model)
    except torch.OutOfMemoryError:
        raise
    except UserError as error:
        return str(error)
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        return f"its forward with a KV cache fails ({type(error).__name__}: {printable(line, 120)})"
    limit = torch.finfo(model.dtype).eps ** 0.5
    share_N = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)
    off = float(share_N.mean().nan_to_num(0.0))
    if off <= limit:
        return ""
    return f"with a KV cache its logits are off by {off:.2%} (rounding would be below {limit:.2%})"


def _ids(model: PreTrainedModel) -> list[torch.Tensor]:
    """Prompt and continuation of each row, int64 [1, T]."""
    ids = min(model.config.get_text_config().vocab_size, 256) - 4
    numbers = 4 + torch.arange(sum(PROMPTS) + NEW * len(PROMPTS), device=model.device) * 7 % ids
    return [part[None] for part in numbers.split([length + NEW for length in PROMPTS])]


def _without_cache(model: PreTrainedModel) -> torch.Tensor:
    """Logits [N, V] at each prompt's end and after each new token but the last, row by row."""
    logits = [model(input_ids=ids_1T, use_cache=False).logits[0, -NEW - 1 : -1] for ids_1T in _ids(model)]
    return torch.cat(logits).float()


def _with_cache(model: PreTrainedModel) -> torch.Tensor:
    """The same as the engine computes it: each prompt alone, then a token for every row at a time."""
    rows, kv_cache = _ids(model), KVCache(len(PROMPTS))
    logits: list[list[torch.Tensor]] = []
    for ids_1T, length in zip(rows, PROMPTS, strict=True):
        prefilled: Any = DynamicCache()
        positions_1T = torch.arange(length, device=model.device)[None]
        out = model(input_ids=ids_1T[:, :length], position_ids=positions_1T, past_key_values=prefilled, use_cache=True)
        kv_cache.join(prefilled, length)
        logits.append([out.logits[0, -1]])
    for new in range(NEW - 1):
        ids_B1 = torch.cat([ids_1T[:, length + new, None] for ids_1T, length in zip(rows, PROMPTS, strict=True)])
        positions_B1 = torch.tensor([[length + new] for length in PROMPTS], device=model.device)
        mask_BL = kv_cache.begin_step()
        out = model(
            input_ids=ids_B1,
            position_ids=positions_B1,
            attention_mask=mask_BL,
            past_key_values=kv_cache,
            use_cache=True,
        )
        kv_cache.end_step()
        for own, logits_V in zip(logits, out.logits[:, -1], strict=True):
            own.append(logits_V)
    return torch.stack([logits_V for own in logits for logits_V in own]).float()
