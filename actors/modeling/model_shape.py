"""The sizes of a model that its memory and its arithmetic depend on, counted exactly from its config alone.

The model is built on torch's meta device, where tensors have shapes and no storage: grouped heads, tied embeddings and
experts count as transformers builds them. Knows no training.
"""

import functools
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from actors.modeling.backbone import backbone_of, model_class
from actors.modeling.gguf_file import is_gguf
from actors.modeling.gguf_model import gguf_config
from actors.modeling.lora import linear_modules
from actors.modeling.model_folder import load_config
from actors.modeling.settings import SmallModel
from actors.modeling.tiny_llama import small_config
from data.errors import UserError, is_user_error
from data.printable import printable
from data.storage import Storage
from data.uris import shown_uri

HUB_TIMEOUT_S = 10
CONFIG = "config.json"


class HubUnreachable(UserError):
    """The hub does not answer, so a model that it has is unknown here."""


class NotOnHub(UserError):
    """The hub answers, and gives no such model to this caller."""


@dataclass(frozen=True)
class ModelShape:
    """Counts and widths of a model; without `layers` only its size is known."""

    num_parameters: int
    layers: int = 0
    width: int = 0
    feed_forward: int = 0
    """Width of the feed-forward part that a token goes through: with experts, of all that it is routed to."""
    vocabulary: int = 0
    query_width: int = 0
    """Query heads times their width; 0 = `width`."""
    key_width: int = 0
    """Key and value heads times their width; 0 = `query_width`."""
    norms: int = 0
    """Elements that the norms of a layer normalize per token; 0 = two norms of `width`."""
    gated: bool = True
    """Is the feed-forward part a product of two projections (SwiGLU, GeGLU)?"""
    experts_per_token: int = 0
    """0 = no experts."""
    layer: int = 0
    """Parameters of the largest layer."""
    largest: int = 0
    """Elements of the largest single parameter."""
    cast: int = 0
    """Elements of the linear layers' weights, the output layer's among them: what autocast copies to bf16."""
    linears: tuple[tuple[str, int], ...] = ()
    """Name, and inputs plus outputs, of each linear layer outside heads and vocabulary: those that LoRA may adapt."""
    inactive: int = 0
    """Parameters of the experts that a token is not routed to."""
    query_heads: int = 0
    key_heads: int = 0
    context: int = 0
    """Most tokens that it takes; 0 = its config does not tell."""

    @property
    def head_widths(self) -> tuple[int, int]:
        """Widths of all queries, and of all keys."""
        query = self.query_width or self.width
        return query, self.key_width or query


def shape_of_small(small: SmallModel) -> ModelShape:
    """Of the model that stage `base` makes."""
    return shape_of(small_config(small))


def shape_of(config: PreTrainedConfig, predictor: bool = False) -> ModelShape:
    """Of a causal language model of `config`; `predictor`: of a backbone without output layer, with attribute heads.

    Raises UserError for a config that transformers cannot build.
    """
    try:
        model = _on_meta(config, predictor)
    except UserError:
        raise
    except Exception as error:  # a config is data from outside: whatever a model's constructor makes of it
        kind = config.model_type
        raise UserError(f"no {kind} model can be built from this config.json: {_reason(error)}") from None
    return counted(model, config.get_text_config(), backbone_of(config).heads if predictor else ())


def _on_meta(config: PreTrainedConfig, predictor: bool) -> PreTrainedModel:
    with torch.device("meta"), no_init_weights():
        if predictor:
            model: PreTrainedModel = model_class(config)._from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()  # left out where no weights are initialized
    return model


def counted(model: PreTrainedModel, config: Any, heads: tuple[str, ...] = ()) -> ModelShape:
    """Of a model on the meta device. `heads`: names of linear layers that no adapter goes to."""
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    query_heads = int(getattr(config, "num_attention_heads", 1))
    head = int(getattr(config, "head_dim", None) or width // query_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]
    layer = _layer_of(model, layers)
    experts, width_each = _experts(config)
    linears = linear_modules(model, heads)
    output = model.get_output_embeddings()
    return ModelShape(
        sum(sizes),
        layers,
        width,
        width_each or int(getattr(config, "intermediate_size", None) or 4 * width),
        int(config.vocab_size),
        query_heads * head,
        key_heads * head,
        _normalized(layer, width, query_heads, key_heads) if layer else 0,
        _is_gated(layer) if layer else True,
        experts,
        sum(p.numel() for p in layer.parameters()) if layer else sum(sizes) // max(layers, 1),
        max(sizes),
        sum(m.weight.numel() for m in linears.values()) + (output.weight.numel() if output is not None else 0),
        tuple((name, sum(m.weight.shape)) for name, m in linears.items()),
        _unused(parameters, config, experts),
        query_heads,
        key_heads,
        int(getattr(config, "max_position_embeddings", None) or 0),
    )


def _layer_of(model: PreTrainedModel, layers: int) -> torch.nn.Module | None:
    """The last of the list of `layers` modules: in models with a dense start the one with experts."""
    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
    found = next(lists, None)
    return found[-1] if found is not None else None


def _experts(config: Any) -> tuple[int, int]:
    """Experts that a token goes through, and their width together; (0, 0) for a model without."""
    each = getattr(config, "num_experts_per_tok", None)
    if not each:
        return 0, 0
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    shared = getattr(config, "shared_expert_intermediate_size", None)
    shared = shared if shared is not None else (getattr(config, "n_shared_experts", None) or 0) * width
    return int(each), int(each * width + shared)


def _unused(parameters: dict[str, torch.nn.Parameter], config: Any, each: int) -> int:
    """Parameters of the routed experts beyond those `each` token uses; transformers keeps them as [experts, ...]."""
    routed = [p for name, p in parameters.items() if ".experts." in name and p.dim() == 3]
    return sum(p.numel() - p.numel() * each // p.shape[0] for p in routed) if each else 0


def _normalized(layer: torch.nn.Module, width: int, query_heads: int, key_heads: int) -> int:
    """Elements per token that a layer's norms read; those of single heads run once for each head."""
    total = 0
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and isinstance(weight, torch.Tensor):
            heads = 1 if weight.numel() >= width else key_heads if name.split(".")[-1].startswith("k") else query_heads
            total += weight.numel() * heads
    return total


def _is_gated(layer: torch.nn.Module) -> bool:
    names = {name.split(".")[-1] for name, _ in (*layer.named_modules(), *layer.named_parameters())}
    return bool(names & {"gate_proj", "gate_up_proj", "w1", "Wi"})


@functools.cache
def read_config(model: str) -> PreTrainedConfig:
    """The config of a model: of a folder, a URI (config.json alone is fetched), or a name of the hub.

    Raises HubUnreachable or NotOnHub for a name of the hub, and UserError for a config that cannot be read.
    """
    if is_gguf(model):
        return gguf_config(model)
    if "://" in model:
        with tempfile.TemporaryDirectory(prefix="steerlm-config-") as folder:
            with open(os.path.join(folder, CONFIG), "wb") as file:
                file.write((Storage(model) / CONFIG).read_text().encode())
            return _loaded(folder, model)
    return _loaded(model if os.path.isdir(model) else os.path.dirname(_from_hub(model)), model)


def _loaded(folder: str, model: str) -> PreTrainedConfig:
    try:
        return load_config(folder)
    except UserError:
        raise
    except Exception as error:  # as in `shape_of`: a config's constructor divides by what it reads
        raise UserError(f"the config.json of {shown_uri(model)} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 150) or type(error).__name__


def _from_hub(model: str) -> str:
    """Path of the model's config.json in this machine's cache of the hub, fetched if it is not there."""
    cached = huggingface_hub.try_to_load_from_cache(model, CONFIG)
    if isinstance(cached, str):
        return cached
    try:
        # The first call has no retries: a machine without network would wait half a minute for the second.
        huggingface_hub.HfApi().model_info(model, timeout=HUB_TIMEOUT_S)
        return huggingface_hub.hf_hub_download(model, CONFIG, etag_timeout=HUB_TIMEOUT_S)
    except Exception as error:
        is_refused = isinstance(error, HfHubHTTPError)
        if not (is_refused or is_user_error(error)):
            raise
        raise (NotOnHub if is_refused else HubUnreachable)(_reason(error)) from None
