"""Layouts of reward models: what each output is, by plain transformers or by hand, padded and one by one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from actors.scoring.gated_reward import OBJECTIVES
from actors.scoring.hf_rater import HfRater
from data.attributes import shipped
from data.conversation import Message
from data.errors import UserError
from data.rater_settings import HfRaterSettings
from data.turns import Turn

TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
)
SIZES: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.5,
}  # fmt: skip
LONGER = (("user", "One?"), ("assistant", "Two."), ("user", "No"), ("assistant", "Yes!"))
TURNS = [
    Turn("", (Message("user", "Which river is long?"), Message("assistant", "The Nile."))),
    Turn("", (Message("user", "Hello"), Message("assistant", "Hello, how can I help you on this fine day?"))),
    Turn("", tuple(Message(role, text) for role, text in LONGER)),
]


def rater(model: Path, batch_tokens: int = 512, **settings: object) -> HfRater:
    given = HfRaterSettings.model_validate({"kind": "hf", "model": str(model), **settings})
    return HfRater(given, shipped("lab"), "float32", batch_tokens)


def values(found: HfRater, name: str) -> list[float]:
    return [rated.values[name] for rated in found(TURNS)]


@pytest.fixture
def tokenizer(tiny_base: str) -> PreTrainedTokenizerBase:
    """Llama 3's marks and template, on a vocabulary of the synthetic world."""
    found = AutoTokenizer.from_pretrained(tiny_base)
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n", "assistant"]
    found.add_special_tokens({"additional_special_tokens": marks[:3]})
    found.add_tokens(marks[3:])  # one token each, as in Llama 3
    found.chat_template = TEMPLATE
    return found


def saved(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(tokenizer: PreTrainedTokenizerBase, turn: Turn) -> torch.Tensor:
    chat = [{"role": m.role, "content": m.content} for m in turn.messages]
    return torch.tensor([tokenizer.apply_chat_template(chat, return_dict=False)])


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_a_bradley_terry_model_with_one_output_is_read_as_it_is(
    config: type, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = config(**SIZES, vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id)
    saved(AutoModelForSequenceClassification.from_config(shape, trust_remote_code=False), tokenizer, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = [float(plain(ids_of(tokenizer, turn)).logits[0, 0]) for turn in TURNS]
    assert len({round(value, 3) for value in wanted}) == 3
    assert values(rater(tmp_path, attributes={"quality": 0}), "quality") == pytest.approx(wanted, abs=1e-5)
    assert values(rater(tmp_path, 1, attributes={"quality": 0}), "quality") == pytest.approx(wanted, abs=1e-5)


@pytest.fixture
def language_model(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    # Its config names no padding, as those of chat models often do.
    shape = LlamaConfig(**SIZES, vocab_size=len(tokenizer), tie_word_embeddings=False)
    return saved(AutoModelForCausalLM.from_config(shape, trust_remote_code=False), tokenizer, tmp_path / "causal")


def test_a_reward_that_is_a_logit_is_that_of_the_next_token(
    language_model: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(language_model).eval()
    wanted = []
    for turn in TURNS:  # as the card of Llama-3.1-Nemotron-70B-Reward-HF reads it
        ids = ids_of(tokenizer, turn)
        made = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        wanted.append(made["scores"][0][0])
    word = tokenizer.convert_ids_to_tokens(7)
    for batch_tokens in (512, 1):
        found = rater(language_model, batch_tokens, head="token_logit", attributes={"quality": 0, "humor": word})
        assert values(found, "quality") == pytest.approx([float(s[0]) for s in wanted], abs=1e-5)
        assert values(found, "humor") == pytest.approx([float(s[7]) for s in wanted], abs=1e-5)


@pytest.fixture
def armorm(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A folder as ArmoRM's: weights by the checkpoint's names, and a file of code that must not run."""
    torch.manual_seed(2)
    shape = LlamaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    folder = saved(AutoModel.from_config(shape, trust_remote_code=False), tokenizer, tmp_path / "armorm")
    weights = AutoModel.from_pretrained(folder).state_dict()
    num, hidden = len(OBJECTIVES), 24
    heads = {
        "regression_layer.weight": torch.randn(num, 32),
        "reward_transform_matrix": torch.eye(num) - 0.3 * torch.rand(num, num),
        "gating.logit_scale": torch.tensor([1.7]),
    }
    for layer, (before, after) in enumerate([(32, hidden), (hidden, hidden), (hidden, num)]):
        heads |= {f"gating.layers.{layer}.weight": torch.randn(after, before)}
        heads |= {f"gating.layers.{layer}.bias": torch.randn(after)}
    save_file({f"model.{k}": v for k, v in weights.items()} | heads, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForRewardModelWithGating"], "num_objectives": num, "gating_temperature": 3,
        "gating_hidden_dim": hidden, "gating_n_hidden": 2,
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_custom.py").write_text("raise SystemExit('it ran')")
    torch.save(heads, folder.parent / "heads")
    return folder


def by_hand(armorm: Path, tokenizer: PreTrainedTokenizerBase, turn: Turn) -> tuple[torch.Tensor, float]:
    """The paper's computation: objectives at the last token, weights of the gate where the prompt ends."""
    heads = torch.load(armorm.parent / "heads")
    shape = AutoConfig.from_pretrained(armorm)
    assert shape.model_type == "llama"
    ids = ids_of(tokenizer, turn)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(armorm).eval()(ids).last_hidden_state[0]
    rewards = heads["regression_layer.weight"] @ hidden[-1]
    # The last <|eot_id|> but one ends the prompt.
    prompt = hidden[(ids[0] == tokenizer.convert_tokens_to_ids("<|eot_id|>")).nonzero()[-2, 0]]
    for layer in range(3):
        prompt = heads[f"gating.layers.{layer}.weight"] @ prompt + heads[f"gating.layers.{layer}.bias"]
        prompt = prompt.relu() if layer < 2 else prompt
    gates = (prompt / 3).softmax(0) * 1.7
    return rewards, float(gates @ (rewards @ heads["reward_transform_matrix"]))


@pytest.mark.parametrize("batch_tokens", [512, 1])
def test_the_objectives_of_armorm_are_outputs_by_their_names(
    armorm: Path, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    names = {"helpfulness": "helpsteer-helpfulness", "humor": "code-readability", "toxicity": 10, "quality": "score"}
    found = rater(armorm, batch_tokens, attributes=names)
    wanted = [by_hand(armorm, tokenizer, turn) for turn in TURNS]
    assert values(found, "helpfulness") == pytest.approx([float(r[0]) for r, _ in wanted], abs=1e-5)
    assert values(found, "humor") == pytest.approx([float(r[18]) for r, _ in wanted], abs=1e-5)
    assert values(found, "toxicity") == pytest.approx([float(r[10]) for r, _ in wanted], abs=1e-5)
    assert values(found, "quality") == pytest.approx([score for _, score in wanted], abs=1e-5)


def test_without_the_end_of_a_prompt_only_the_gated_score_has_no_value(armorm: Path) -> None:
    found = rater(armorm, attributes={"quality": "score", "humor": 1}, reads="answer")(TURNS)
    assert [dict(rated.failed) for rated in found] == [{"quality": "no number"}] * 3
    assert all(set(rated.values) == {"humor"} for rated in found)


def test_layouts_that_do_not_fit_are_one_sentence(language_model: Path, armorm: Path) -> None:
    for model, settings, told in (
        (language_model, {"attributes": {"quality": 0}}, "no weights of score.weight.*set `head: token_logit`"),
        (armorm, {"attributes": {"quality": 0}, "head": "token_logit"}, "needs code of its own"),
        (armorm, {"attributes": {"quality": "helpful"}}, "has no output 'helpful'; it has 0 to 19, called helpsteer-"),
        (language_model, {"attributes": {"quality": "no such"}, "head": "token_logit"}, "has no output 'no such'"),
    ):
        with pytest.raises(UserError, match=told):
            rater(model, **settings)


def test_another_layout_of_its_own_code_is_refused_by_its_name(armorm: Path, tiny_predictor: str) -> None:
    config = json.loads((armorm / "config.json").read_text())
    config["architectures"] = ["LlamaForRewardModelWithGating31"]  # QRM's, with quantiles in place of objectives
    (armorm / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"needs code of its own .LlamaForRewardModelWithGating31 .* never run"):
        rater(armorm, attributes={"quality": "score"})
    with pytest.raises(UserError, match=r"is no causal language model .LlamaForSequenceClassification in its"):
        rater(Path(tiny_predictor), attributes={"quality": 0}, head="token_logit")


def test_armorm_without_its_gate_is_refused_by_name(armorm: Path) -> None:
    weights = AutoModel.from_pretrained(armorm).state_dict()
    save_file({f"model.{k}": v for k, v in weights.items()}, armorm / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="has no weights of gating"):
        rater(armorm, attributes={"quality": "score"})
