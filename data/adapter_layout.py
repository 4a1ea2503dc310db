"""The folder of an exported adapter: what lies where, and what its record says. Knows no weights.

A trained policy is its base model plus a small difference; the predictor is the same base plus its heads. The folder
holds the differences only: `actors.modeling.adapter` writes it and puts the models together again.
"""

from collections.abc import Mapping
from typing import Any

from data.errors import UserError
from data.record import Record

ADAPTER = "steerlm_adapter.json"
"""The record; a folder with it is such a folder."""
LORA, LORA_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The adapters as peft names them."""
HEADS = "heads.safetensors"
"""The predictor's heads and the embeddings of tokens that the base does not have."""


class AdapterRecord(Record):
    """What puts the two models together again."""

    base: str
    """The model that the differences belong to: a hub name, folder, GGUF file or package:NAME."""
    base_digest: str
    """SHA-256 of its GGUF file, 16 hex digits; "" where it is none."""
    base_weights: str = ""
    """Fingerprint of its weights (`actors.modeling.base_weights`): the adapter is served beside these only; "" = it was
    written before there was one."""
    policy: dict[str, Any]
    """The entry `steerlm` of the policy's config.json: schema, template, calibration."""
    predictor: dict[str, Any] | None = None
    """The same of the predictor; None = without one."""
    rank: int
    kept: float
    """Share of the trained difference (squared norm) that adapters of this rank hold, over all modules."""


def require_template(name: str, record: AdapterRecord, served: Mapping[str, Any]) -> None:
    """Raise UserError unless the adapter asks as the policy does whose entry `steerlm` is `served`: with the template's
    own tokens, and the same chat template around it. Attributes and sentences may be its own."""
    own = record.policy
    if own["template"] != served["template"]:
        raise UserError(
            f"adapter {name} has the template {own['template']}, and the served policy {served['template']}: train the "
            f"adapter with template={served['template']}, or serve it alone (policy=FOLDER)"
        )
    if own["base_chat_template"] != served["base_chat_template"]:
        raise UserError(
            f"adapter {name} was trained with another chat template than the served policy has: train it on the same "
            "base, with its chat template as it is, or serve it alone (policy=FOLDER)"
        )
