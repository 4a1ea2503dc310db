"""A randomly initialized Llama of a wanted size as a policy folder, made on the device: for checks and benches.

Speed and memory do not depend on what weights say, so that a machine without the hub can measure a model of any size.
"""

from collections.abc import Iterable

import torch
from transformers import AutoModelForCausalLM

from actors.modeling.model_folder import new_format, save_model
from actors.modeling.settings import SmallModel
from actors.modeling.tiny_llama import small_config
from actors.modeling.tokenizer import train_tokenizer
from data.attributes import AttributeSchema

LEARNED_ENTRIES = 4096
"""Most entries of the tokenizer: texts of a synthetic world hold no more. The model may have a larger vocabulary."""


def make_random_policy(
    shape: SmallModel,
    tied: bool,
    texts: Iterable[str],
    schema: AttributeSchema,
    dtype: str,
    device: str,
    folder: str,
) -> int:
    """Save a Llama of `shape` with random weights in `dtype` to `folder`; returns its number of parameters.

    `tied`: do input and output share their embeddings? Weights are drawn on `device`: 8 B takes minutes on a CPU.
    The tokenizer is trained on `texts` and has fewer entries than the model's vocabulary.
    """
    tokenizer = train_tokenizer(texts, min(shape.vocab_size, LEARNED_ENTRIES))
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = max(shape.vocab_size, len(tokenizer))
    config = small_config(shape, vocab_size=size, tie_word_embeddings=tied, **ends)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=getattr(torch, dtype))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_model(model, state, new_format(folder, schema, "steerlm"), folder, labels=True)
    return int(model.num_parameters())
