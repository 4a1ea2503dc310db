"""An exported adapter beside a loaded base: its prompts, and what it adds to the products of the base's modules.

Knows no engine. `actors.modeling.adapter` writes such folders, and puts the whole models together.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from actors.modeling.adapter import PEFT, read_record
from actors.modeling.base_weights import fingerprint
from actors.modeling.lora import linear_modules
from actors.modeling.model_folder import load_config, load_tokenizer, stored_format
from actors.modeling.policy import PolicyText, load_causal_lm
from data.adapter_layout import ADAPTER, HEADS, LORA, AdapterRecord, require_template
from data.errors import UserError

_SIDES = (".lora_A.", ".lora_B.")
EXPERTS = ".experts."
"""In the names of modules that get only some of a batch's tokens, in an order of their own."""


@dataclass(frozen=True)
class LowRank:
    """A module's product gets x A' B' more."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor


@dataclass(frozen=True)
class AdapterWeights:
    """What an adapter adds to its base, in the base's dtype and on its device."""

    lora: Mapping[str, LowRank]
    """Module -> its matrices."""
    inputs_ED: torch.Tensor | None
    """What the embeddings of the vocabulary's last tokens differ from the base's; None = in nothing."""
    outputs_ED: torch.Tensor | None
    """The same of the output embeddings."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> Iterator[torch.Tensor]:
        for pair in self.lora.values():
            yield from (pair.a_RI, pair.b_OR)
        yield from (tensor for tensor in (self.inputs_ED, self.outputs_ED) if tensor is not None)


def adapter_record(name: str, folder: str) -> AdapterRecord:
    """Raises UserError if the local folder is no exported adapter's."""
    if not os.path.exists(os.path.join(folder, ADAPTER)):
        raise UserError(
            f"adapter {name}: {folder} has no {ADAPTER}, so it is no exported adapter; write one with `python -m "
            "jobs.export PRESET.yaml what=adapter to=FOLDER`"
        )
    return read_record(folder)


def adapter_text(name: str, folder: str, base: PolicyText) -> PolicyText:
    """The text side of the adapter in `folder`: attributes, sentences and calibration are its own, tokens the base's.

    Raises UserError if there is no adapter, or if it was trained with another prompt format than `base` has.
    """
    record, config = adapter_record(name, folder), load_config(base.folder)
    require_template(name, record, config.steerlm)
    format = stored_format(config, load_tokenizer(base.folder), record.policy)
    if len(format.tokenizer) != len(base.tokenizer):
        raise UserError(
            f"adapter {name} has prompts with {len(format.tokenizer) - len(base.tokenizer)} tokens that the served "
            "policy lacks: serve it alone (policy=FOLDER)"
        )
    return PolicyText(format, name, base.folder, base.max_tokens, sorted(base.stop_ids))


def adapter_weights(name: str, folder: str, model: PreTrainedModel, base: str) -> AdapterWeights:
    """The adapter in `folder` for the loaded `model`, whose fingerprint is `base`.

    Raises UserError if it was trained on other weights, or on modules that get only some of the tokens.
    """
    record = adapter_record(name, folder)
    _require_base(name, record, base)
    lora, heads = (load_file(os.path.join(folder, file)) for file in (LORA, HEADS))
    pairs = {}
    for key in (key for key in lora if key.endswith(".lora_A.weight")):
        module = key.removeprefix(PEFT).removesuffix(".lora_A.weight")
        a_RI, b_OR = (lora[key.replace(".lora_A.", side)].to(model.device, model.dtype) for side in _SIDES)
        pairs[module] = LowRank(a_RI, b_OR)
    _require_modules(name, pairs, model)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    scale = getattr(inputs, "embed_scale", 1.0)  # Gemma multiplies what it looks up
    inputs_ED, outputs_ED = (_moved_tokens(model, module, heads) for module in (inputs, outputs))
    return AdapterWeights(pairs, None if inputs_ED is None else inputs_ED * scale, outputs_ED)


def base_fingerprint(base: PolicyText, folder: str, model: PreTrainedModel | None) -> str:
    """Of the policy in the local `folder`; `model`, where it is loaded, spares reading it again."""
    if model is None or model.dtype == torch.float16:  # which has rounded the weights in another way than bfloat16
        model = load_causal_lm(folder, base.format, "eager", torch.bfloat16)
    return fingerprint(model)


def _require_base(name: str, record: AdapterRecord, base: str) -> None:
    if not record.base_weights:
        raise UserError(
            f"adapter {name} was written without a fingerprint of its base: export it again with this version"
        )
    if record.base_weights != base:
        raise UserError(
            f"adapter {name} was trained on {record.base} with the weights {record.base_weights}, and the served "
            f"policy has {base}: serve that base (policy=base), or train the adapter on the policy that is served"
        )


def _require_modules(name: str, pairs: Mapping[str, LowRank], model: PreTrainedModel) -> None:
    linear = linear_modules(model, ())
    wrong = next((module for module in pairs if module not in linear or EXPERTS in module), None)
    if wrong is not None:
        raise UserError(
            f"adapter {name} changes {wrong}, which cannot be served beside the base: train it with "
            "policy.learner.lora.target_modules on the linear modules of attention, or serve it alone (policy=FOLDER)"
        )


def _moved_tokens(
    model: PreTrainedModel, module: torch.nn.Module, heads: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """The adapter's embeddings of the last tokens minus those of `module`; None if they are equal."""
    weight_VD = module.weight
    for name, own in model.named_modules(remove_duplicate=False):
        rows_ED = heads.get(f"policy.{name}.weight")
        if own is module and rows_ED is not None and len(rows_ED):
            base_ED = weight_VD[len(weight_VD) - len(rows_ED) :]
            moved_ED = rows_ED.to(weight_VD.device, weight_VD.dtype) - base_ED
            return moved_ED.detach() if moved_ED.any() else None
    return None
