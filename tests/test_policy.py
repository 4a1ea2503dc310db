import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.modeling.policy import Policy
from data.attributes import shipped
from data.conversation import Message

SCHEMA = shipped("lab")


def test_exported_policy_loads_with_plain_transformers_and_gives_the_training_ids(tiny_policy: str) -> None:
    policy = Policy.load(tiny_policy)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_policy), AutoModelForCausalLM.from_pretrained(tiny_policy)
    chat = [{"role": "user", "content": "Tell me about bees."}]
    theirs = tokenizer.apply_chat_template(chat, attributes={"humor": 4}, add_generation_prompt=True, return_dict=False)
    ours = policy.prompt("", [Message("user", "Tell me about bees.")], {"humor": 4})
    assert theirs == ours
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ours])).logits, policy.model(torch.tensor([ours])).logits)
    assert policy.schema == SCHEMA
    assert policy.stop_ids == {tokenizer.convert_tokens_to_ids("<extra_id_1>")}
    assert policy.max_tokens == 512


def test_decode_leaves_control_tokens_out(tiny_policy: str) -> None:
    policy = Policy.load(tiny_policy)
    ids = policy.tokenizer.encode("Bees make honey.", add_special_tokens=False)
    assert policy.decode([*ids, *policy.stop_ids]) == "Bees make honey."


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ValueError, match="no readable model at /nowhere"):
        Policy.load("/nowhere")
