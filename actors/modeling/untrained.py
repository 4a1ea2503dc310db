"""A pretrained model as a policy, without any training: `template: words` asks it in words that it already follows.

Knows no run and no endpoint.
"""

import tempfile

from actors.modeling.gguf_model import convert
from actors.modeling.model_folder import local_folder, new_format, save_model, text_folder
from actors.modeling.policy import load_causal_lm
from actors.modeling.settings import TemplateKind
from data.attributes import AttributeSchema


def save_untrained(model: str, schema: AttributeSchema, folder: str) -> int:
    """Write `model`, a GGUF file or package:NAME, into `folder` as a policy that is asked in words.

    Returns the number of parameters. Raises UserError if the model is not there, and as `save_as_policy`.
    """
    with tempfile.TemporaryDirectory() as base:
        num_parameters = convert(model, base)
        save_as_policy(base, schema, folder, "words")
    return num_parameters


def save_as_policy(base: str, schema: AttributeSchema, folder: str, kind: TemplateKind) -> None:
    """Write the model at `base` (a folder, URI or name of the hub) into `folder` as a policy of prompt format `kind`.

    Raises UserError if it has no chat template, or if an attribute of `schema` has no words (`data.words_template`).
    """
    local = local_folder(base)
    format = new_format(text_folder(base), schema, kind)
    loaded = load_causal_lm(local, format, "sdpa")
    state = {f"model.{name}": tensor for name, tensor in loaded.state_dict().items()}
    save_model(loaded, state, format, folder, labels=True)
