"""Do segments of a pack see each other? Asked of the live model, by a few tokens, before it is trained or rates.

transformers hands the bounds of segments down as keyword arguments; an architecture that drops one, or that mixes
tokens by more than attention, gives numbers that depend on the neighbors, and no error. Knows no loss and no rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from actors.kernels.masked import MASKED
from actors.kernels.varlen import VARLEN
from data.errors import UserError
from data.printable import printable

LENGTHS = (13, 22)
"""Tokens of the two segments: few, and no multiples of a kernel's blocks."""
TRAINING, ANNOTATION = "its learner's packing", "annotate.packing"
"""Names of the setting for messages."""

Run = Callable[[list[np.ndarray]], object]
"""A forward of one pack of these segments of token ids."""

_passed: set[tuple[str, ...]] = set()


class _Failed(Exception):
    """The sentence why the forward of a pack cannot be compared."""


def require_isolated(model: PreTrainedModel, run: Run, setting: str = TRAINING) -> None:
    """Raise UserError, with the model's type and `setting`, if a segment depends on the others of its pack.

    `run` must go through `model`. Draws no random numbers, and asks once a process for each config. A model whose
    attention takes no packs reads one segment at a time, whoever packs them.
    """
    if not type(model)._supports_attention_backend:
        return
    parameter = next(model.parameters())
    asked = (type(model).__name__, model.config.to_json_string(), str(parameter.dtype), parameter.device.type)
    if asked in _passed:
        return
    if why := chunks(model.config) or _leak(model, run):
        raise unpackable(model.config, why, setting)
    _passed.add(asked)


def unpackable(config: PreTrainedConfig, why: str, setting: str) -> UserError:
    """The error for a model of which several conversations cannot share a sequence."""
    return UserError(
        f"a model of type {config.model_type} cannot run several conversations in one sequence: {why}; "
        f"set {setting} to off, which runs them one by one, or name another model"
    )


def attention_of(cls: type[PreTrainedModel], packing: bool) -> str:
    """The attention of a model of class `cls`: for packs, or for one conversation in each forward."""
    if cls._supports_attention_backend:
        return VARLEN if packing else MASKED
    return "sdpa" if cls._supports_sdpa else "eager"


def causal_lm_attention(config: PreTrainedConfig, packing: bool) -> str:
    """The same for the causal language model of `config`; raises UserError if its attention takes no packs."""
    cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if cls is None:  # loading it has the better message
        return VARLEN if packing else "eager"
    if packing and not cls._supports_attention_backend:
        raise unpackable(config, f"{cls.__name__} computes attention by itself", TRAINING)
    return attention_of(cls, packing)


def chunks(config: PreTrainedConfig) -> str:
    """Why the layers of `config` need transformers' own masks; "" = they do not. A few tokens would not show it."""
    text = config.get_text_config()
    if "chunked_attention" not in (getattr(text, "layer_types", None) or ()):
        return ""
    return f"its layers attend in chunks of {text.attention_chunk_size} tokens, counted from the start of the sequence"


def _leak(model: PreTrainedModel, run: Run) -> str:
    """Why the second segment of a pack is not what it is alone; "" = it is."""
    first, other, second = _segments(model.config)
    try:
        (after_first, dtype), (after_other, _), (by_itself, _) = _states(
            model, run, [[first, second], [other, second], [second]]
        )
    except _Failed as why:
        return str(why)
    begin, end = len(first), len(first) + len(second)
    expected = after_first[begin:end]
    for found, cause, power in (
        # Of the same shape even roundings are the same, but for experts, whose batches differ.
        (after_other[begin:end], "if the tokens before it are others", 2 / 3),
        (by_itself[: len(second)], "if it stands alone", 1 / 2),
    ):
        limit = torch.finfo(dtype).eps ** power
        moved = _distance(found, expected)
        if moved > limit:
            return (
                f"a conversation's hidden states change by {moved:.2%} {cause} (rounding in "
                f"{str(dtype).removeprefix('torch.')} would be below {limit:.2%})"
            )
    return ""


def _segments(config: PreTrainedConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A first segment, another one of the same length, and a second."""
    ids = min(config.get_text_config().vocab_size, 256) - 4
    numbers = 4 + np.arange(2 * LENGTHS[0] + LENGTHS[1], dtype=np.int64) * 7 % ids
    first, other, second = np.split(numbers, [LENGTHS[0], 2 * LENGTHS[0]])
    return first, other, second


def _states(model: PreTrainedModel, run: Run, packs: list[list[np.ndarray]]) -> list[tuple[torch.Tensor, torch.dtype]]:
    """The last hidden states [T, D] of each pack, and the dtype that they were computed in."""
    bodies = list(dict.fromkeys((model.base_model, model.get_decoder())))  # OPT's model calls the inner one
    found: dict[torch.nn.Module, list[tuple[torch.Tensor, torch.dtype]]] = {body: [] for body in bodies}

    def keep(body: torch.nn.Module, arguments: Any, out: Any) -> None:
        state = out[0] if isinstance(out, tuple) else out.last_hidden_state
        device = state.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else state.dtype
        found[body].append((state[0].float(), dtype))

    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    hooks, training = [b.register_forward_hook(keep) for b in bodies], [m for m in model.modules() if m.training]
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            for module in training:
                module.training = False
            for pack in packs:
                run(pack)
    except torch.OutOfMemoryError:
        raise
    except UserError as error:
        raise _Failed(str(error)) from error
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise _Failed(f"its forward fails ({type(error).__name__}: {printable(line, 120)})") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    states = next((states for states in found.values() if len(states) == len(packs)), None)
    if states is None:
        raise _Failed(f"its loss does not run {type(model.base_model).__name__} once for a pack")
    return states


def _distance(found_TD: torch.Tensor, expected_TD: torch.Tensor) -> float:
    """Mean over the tokens of the distance, as a share of what is expected; 0 where nothing is finite."""
    share_T = (found_TD - expected_TD).norm(dim=1) / expected_TD.norm(dim=1).clamp_min(1e-12)
    return float(share_T.mean().nan_to_num(0.0))
