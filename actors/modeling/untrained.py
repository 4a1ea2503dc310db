"""A pretrained model as a policy, without any training: `template: words` asks it in words that it already follows.

Knows no run and no endpoint.
"""

import tempfile

from actors.modeling.gguf_model import convert
from actors.modeling.model_folder import new_format, save_model
from actors.modeling.policy import load_causal_lm
from data.attributes import AttributeSchema


def save_untrained(model: str, schema: AttributeSchema, folder: str) -> int:
    """Write `model`, a GGUF file or package:NAME, into `folder` as a policy that is asked in words.

    Returns the number of parameters. Raises UserError if the model is not there, or if an attribute of `schema` has no
    words (`data.words_template`).
    """
    with tempfile.TemporaryDirectory() as base:
        num_parameters = convert(model, base)
        format = new_format(base, schema, "words")
        loaded = load_causal_lm(base, format, "sdpa")
        state = {f"model.{name}": tensor for name, tensor in loaded.state_dict().items()}
        save_model(loaded, state, format, folder, labels=True)
    return num_parameters
