"""A policy as its base plus low-rank adapters, a predictor as that base plus heads: written small, and put together.

The adapters are the truncated singular value decomposition of what training changed, so it does not matter whether one
LoRA training changed it, or a second one on top (bootstrap). Source of the form: LoRA, arXiv 2106.09685. Knows no run.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from actors.modeling.base_weights import fingerprint, vocabulary_names
from actors.modeling.gguf_file import gguf_file, is_gguf
from actors.modeling.gguf_model import convert
from actors.modeling.layer_heads import ENTRY, LayerHeads
from actors.modeling.layer_model import describe_as_backbone, load_cut
from actors.modeling.lora import linear_modules
from actors.modeling.model_folder import (
    Format,
    load_config,
    load_format,
    load_tokenizer,
    local_folder,
    save_model,
    stored_format,
    text_folder,
)
from actors.modeling.policy import load_causal_lm
from actors.modeling.regressor import load_regressor
from data.adapter_layout import ADAPTER, HEADS, LORA, AdapterRecord
from data.errors import UserError

SCORE = "score.weight"
PEFT = "base_model.model."
"""Before a module's name in peft's files."""
OVERSAMPLED, ITERATIONS = 16, 4
"""Of the randomized decomposition (arXiv 0909.4061): directions beyond the rank, and power iterations."""
State = dict[str, torch.Tensor]


def write_adapter(
    base: str, base_folder: str, policy: str, predictor: str | None, rank: int, folder: str
) -> AdapterRecord:
    """Write the difference of `policy` to its base (in `base_folder`) and the heads of `predictor` into `folder`.

    Raises UserError if training changed more than linear modules, as full training does, and if the predictor is more
    than heads on layers of the base.
    """
    format = load_format(policy)
    before = load_causal_lm(base_folder, format, "eager")
    after = load_causal_lm(policy, format, "eager")
    num_tokens = load_config(base_folder).get_text_config().vocab_size
    extra, deltas = _difference(before, after, num_tokens)
    lora, kept = _decomposed(deltas, after, rank)
    heads = {f"policy.{name}": rows for name, rows in extra.items()}
    entry = None
    if predictor:
        entry, own = _heads(before, predictor, num_tokens)
        heads |= {f"predictor.{name}": tensor for name, tensor in own.items()}
    record = AdapterRecord(
        base=base,
        base_digest=digest(base),
        base_weights=fingerprint(before),
        policy=dict(after.config.steerlm),
        predictor=entry,
        rank=rank,
        kept=round(kept, 6),
    )
    save_file({name: tensor.contiguous() for name, tensor in lora.items()}, os.path.join(folder, LORA))
    save_file({name: tensor.float().clone() for name, tensor in heads.items()}, os.path.join(folder, HEADS))
    _write_config(base, rank, deltas, after, folder)
    with open(os.path.join(folder, ADAPTER), "w") as file:
        file.write(record.model_dump_json(indent=1))
    return record


def put_together(adapter: str, folder: str) -> AdapterRecord:
    """Write the policy of the folder `adapter` into `folder`/policy, and its predictor, if any, into /predictor.

    Raises UserError if the base is not there, or not the one that the adapter was made from.
    """
    record = read_record(adapter)
    lora, heads = (load_file(os.path.join(adapter, name)) for name in (LORA, HEADS))
    with _base_of(record) as base:
        _save_policy(base, record, lora, _named(heads, "policy."), os.path.join(folder, "policy"))
        if record.predictor is not None:
            _save_predictor(base, record.predictor, _named(heads, "predictor."), os.path.join(folder, "predictor"))
    return record


def save_base(adapter: str, folder: str) -> AdapterRecord:
    """Write the base of the folder `adapter` into `folder` as a policy that is asked as the adapter's is, untrained.

    Raises UserError as `put_together` does.
    """
    record = read_record(adapter)
    rows = _named(load_file(os.path.join(adapter, HEADS)), "policy.")
    with _base_of(record) as base:
        _save_policy(base, record, {}, rows, folder)
    return record


def read_record(adapter: str) -> AdapterRecord:
    with open(os.path.join(adapter, ADAPTER)) as file:
        return AdapterRecord.model_validate_json(file.read())


@contextmanager
def _base_of(record: AdapterRecord) -> Iterator[str]:
    """The folder of the adapter's base; raises UserError if it is not there, or not the one it was made from."""
    if record.base_digest and record.base_digest != digest(record.base):
        raise UserError(
            f"the adapter belongs to another version of {record.base}: install the one that its card names, or make "
            "an adapter from a run of your own (`python -m jobs.export PRESET.yaml what=adapter`)"
        )
    with tempfile.TemporaryDirectory() as converted:
        if is_gguf(record.base):
            convert(record.base, converted)
        yield converted if is_gguf(record.base) else local_folder(record.base)


def digest(base: str) -> str:
    """Of a GGUF file's content, 16 hex digits; "" for any other model. Raises UserError if it is not there."""
    if not is_gguf(base):
        return ""
    with open(gguf_file(base), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# --- what training changed --------------------------------------------------------------------------------------------


def _difference(before: PreTrainedModel, after: PreTrainedModel, num_tokens: int) -> tuple[State, State]:
    """The embeddings of tokens above `num_tokens`, and module -> what was added to its weight."""
    old, new = before.state_dict(), after.state_dict()
    linear = linear_modules(after, ())
    vocabulary = vocabulary_names(after)
    extra: State = {}
    deltas: State = {}
    for name, tensor in new.items():
        mine, theirs = tensor.float(), old[name].float()
        if name in vocabulary:
            extra[name], mine, theirs = mine[num_tokens:], mine[:num_tokens], theirs[:num_tokens]
        if _equal(mine, theirs):
            continue
        module = name.removesuffix(".weight")
        if module not in linear:
            raise UserError(
                f"training changed {name}, which no adapter holds: this policy was trained in full; set "
                "policy.learner.lora (and bootstrap.learner.lora), or export what=policy"
            )
        deltas[module] = mine - theirs
    if not deltas:
        raise UserError("the policy has the weights of its base, so there is nothing to export as an adapter")
    return extra, deltas


def _equal(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Alike, or but for the rounding of an export in bfloat16."""
    return torch.equal(mine, theirs) or torch.equal(mine, theirs.bfloat16().float())


def _decomposed(deltas: State, model: PreTrainedModel, rank: int) -> tuple[State, float]:
    """peft's tensors in float16, and the share of the squared norm that they hold."""
    found: State = {}
    held = whole = 0.0
    for number, (module, delta) in enumerate(sorted(deltas.items())):
        if isinstance(model.get_submodule(module), Conv1D):
            delta = delta.T  # GPT-2 stores its weights the other way round
        torch.manual_seed(number)
        most = min(rank, *delta.shape)
        u, s, v = torch.svd_lowrank(delta, q=min(most + OVERSAMPLED, *delta.shape), niter=ITERATIONS)
        root = s[:most].sqrt()
        b, a = (u[:, :most] * root).half(), (v[:, :most] * root).T.half()
        rest = delta - b.float() @ a.float()
        whole += float(delta.square().sum())
        held += float(delta.square().sum() - rest.square().sum())
        found[f"{PEFT}{module}.lora_A.weight"], found[f"{PEFT}{module}.lora_B.weight"] = a, b
    return found, held / whole


def _write_config(base: str, rank: int, deltas: State, model: PreTrainedModel, folder: str) -> None:
    """peft's own adapter_config.json: plain peft loads the adapters onto the base, without the added tokens."""
    import peft

    transposed = all(isinstance(model.get_submodule(module), Conv1D) for module in deltas)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(deltas),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        fan_in_fan_out=transposed,
    )
    config.save_pretrained(folder)


def _heads(base: PreTrainedModel, predictor: str, num_tokens: int) -> tuple[dict[str, Any], State]:
    """The entry of the predictor's config.json, its heads, and the embeddings of its own tokens.

    Raises UserError unless everything else is the base's.
    """
    config = load_config(predictor)
    if LayerHeads.of_config(config) is None:
        raise UserError(
            "the predictor reads its last layer, which was trained with it, so heads alone are not the predictor; set "
            "predictor.heads and predictor.learner.epochs to 0, or export the adapter with heads=false"
        )
    model = load_regressor(predictor, load_format(predictor))
    body, theirs = f"{model.base_model_prefix}.", base.state_dict()
    found: State = {SCORE: model.score.weight.detach()}
    for name, tensor in model.state_dict().items():
        if not name.startswith(body):
            continue
        mine, own = tensor.float(), theirs.get(name, torch.zeros(0)).float()
        if name in vocabulary_names(base):
            found["tokens"], mine, own = mine[num_tokens:], mine[:num_tokens], own[:num_tokens]
        if mine.shape != own.shape or not _equal(mine, own):
            raise UserError(
                f"the predictor's {name} is not the base's: it was trained beyond its heads, or on another backbone; "
                "set predictor.learner.epochs to 0 and predictor.backbone to null, or take heads=false"
            )
    return dict(config.steerlm), found


# --- together again ---------------------------------------------------------------------------------------------------


def _save_policy(base: str, record: AdapterRecord, lora: State, rows: State, folder: str) -> None:
    format = _format(base, record.policy)
    model = load_causal_lm(base, format, "eager")
    state = dict(model.state_dict())
    for name, tensor in rows.items():
        state[name] = torch.cat([state[name][: len(state[name]) - len(tensor)], tensor])
    for name, a in lora.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(PEFT).removesuffix(".lora_A.weight")
        delta = lora[name.replace(".lora_A.", ".lora_B.")].float() @ a.float()
        turned = delta.T if isinstance(model.get_submodule(module), Conv1D) else delta
        state[f"{module}.weight"] = state[f"{module}.weight"] + turned
    _share_tied(model, state)
    save_model(model, {f"model.{name}": tensor for name, tensor in state.items()}, format, folder, labels=True)


def _share_tied(model: PreTrainedModel, state: State) -> None:
    """Tied embeddings are one tensor, so that they are saved once."""
    if model.config.get_text_config().tie_word_embeddings:
        inputs = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
        state |= dict.fromkeys(vocabulary_names(model) & state.keys(), state[f"{inputs}.weight"])


def _save_predictor(base: str, entry: Mapping[str, Any], heads: State, folder: str) -> None:
    format, config = _format(base, entry), load_config(base)
    stored = entry[ENTRY]
    config.steerlm = dict(entry)
    layers = LayerHeads.of_config(config)
    assert layers is not None, f"{stored} describes heads on several layers"
    del config.steerlm  # the base has no heads to load
    model = load_cut(base, config, layers, format, torch.float32, "eager")
    model.score.weight.data.copy_(heads[SCORE])
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    (embeddings,) = vocabulary_names(model)
    rows, whole = heads["tokens"], state[f"model.{embeddings}"]
    state[f"model.{embeddings}"] = torch.cat([whole[: len(whole) - len(rows)], rows])
    save_model(model, state, format, folder, labels=False, entries={ENTRY: stored})
    describe_as_backbone(model, folder)


def _format(base: str, entry: Mapping[str, Any]) -> Format:
    """The format that `entry` describes, on the base's own tokenizer."""
    local = text_folder(base)
    return stored_format(load_config(local), load_tokenizer(local), entry)


def _named(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
