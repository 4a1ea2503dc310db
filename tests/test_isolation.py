"""Conversations of a pack stay apart in every family of models, or the model is refused with one sentence."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbones import save_backbone
from support.tiny_families import EXACT, FAMILIES, MIXING, VOCABULARY, config_of, save_family, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.kernels.extra_arguments import Extras
from actors.kernels.varlen import VARLEN, alone, packed, varlen
from actors.modeling import isolation
from actors.modeling.isolation import attention_of, causal_lm_attention, require_isolated
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask, load_regressor
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from data.attributes import shipped
from data.errors import UserError
from data.examples import Example
from data.tokens import Tokens

SCHEMA = shipped("lab")
LENGTHS = (11, 21, 3)


@pytest.fixture(autouse=True)
def _nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_passed", set())


def _segments() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, VOCABULARY, length) for length in LENGTHS]


def _eager(family: str, segments: list[np.ndarray]) -> torch.Tensor:
    """Logits [T, V] of transformers' own plain attention, each segment alone."""
    model = tiny_model(family, "eager")
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0] for ids in segments])


@pytest.mark.parametrize("family", EXACT)
def test_packed_equals_one_by_one_with_transformers_own_attention(family: str) -> None:
    model, segments = tiny_model(family, VARLEN), _segments()
    with torch.no_grad():
        found = model(**packed(segments)).logits[0]
    torch.testing.assert_close(found, _eager(family, segments), rtol=2e-4, atol=2e-4)
    require_isolated(model, lambda ids: model(**packed(ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_by_one_equals_transformers_own_attention(family: str) -> None:
    cls = type(AutoModelForCausalLM.from_config(config_of(family)))
    model, segments = tiny_model(family, attention_of(cls, packing=False)), _segments()
    with torch.no_grad():
        found = torch.cat([model(**alone(ids)).logits[0] for ids in segments])
    torch.testing.assert_close(found, _eager(family, segments), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", MIXING)
def test_a_model_that_mixes_is_refused_by_name_with_the_way_out(family: str) -> None:
    sentence = rf"^a model of type {family} cannot run several conversations in one sequence: .*; set .* to off"
    with pytest.raises(UserError, match=sentence):
        _build_and_check(family)


def _build_and_check(family: str) -> None:
    model = tiny_model(family, causal_lm_attention(config_of(family), packing=True))
    require_isolated(model, lambda ids: model(**packed(ids)))


class _Leaky(torch.nn.Module):
    """Adds the running mean of what came before, as a state that is not reset would."""

    def forward(self, hidden_1TD: torch.Tensor) -> torch.Tensor:
        steps_T1 = torch.arange(1, hidden_1TD.shape[1] + 1, device=hidden_1TD.device)[:, None]
        return hidden_1TD + 0.5 * hidden_1TD.float().cumsum(1).div(steps_T1).to(hidden_1TD.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_leak_is_found_in_both_dtypes_and_a_right_model_passes(dtype: torch.dtype) -> None:
    model = tiny_model("llama", VARLEN).to(dtype)
    require_isolated(model, lambda ids: model(**packed(ids)))
    isolation._passed.clear()
    model.model.layers[1].post_attention_layernorm = torch.nn.Sequential(
        model.model.layers[1].post_attention_layernorm, _Leaky()
    )
    with pytest.raises(UserError, match=r"hidden states change by \d+\.\d+% if the tokens before it are others"):
        require_isolated(model, lambda ids: model(**packed(ids)))


def test_the_check_draws_nothing_and_leaves_nothing_behind() -> None:
    model = tiny_model("llama", VARLEN)
    model.config.attention_dropout = 0.5
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    require_isolated(model, lambda ids: (torch.rand(1), model(**packed(ids))))
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert not model.model.layers[0].training
    assert not model.model._forward_hooks


def test_it_asks_once_for_each_config() -> None:
    model, runs = tiny_model("llama", VARLEN), []
    for _ in range(2):
        require_isolated(model, lambda ids: runs.append(model(**packed(ids))))
    assert len(runs) == 3


def test_weights_that_are_not_finite_are_no_leak() -> None:
    """Divergence has a message of its own."""
    model = tiny_model("llama", VARLEN)
    torch.nn.init.constant_(model.model.embed_tokens.weight, torch.nan)
    require_isolated(model, lambda ids: model(**packed(ids)))


def test_arguments_of_attention_are_computed_or_harmless_or_refused_by_name() -> None:
    module = torch.nn.Identity()
    assert not Extras.of(module, {"position_ids": torch.zeros(1), "output_attentions": True, "position_bias": None})
    assert Extras.of(module, {"softcap": 30.0}).softcap == 30.0
    with pytest.raises(UserError, match="Identity passes indices, position_bias to its attention"):
        Extras.of(module, {"position_bias": torch.zeros(1), "indices": 3, "use_cache": False})


def test_a_pack_without_bounds_or_with_another_mask_is_not_computed() -> None:
    module, states = torch.nn.Identity(), torch.zeros(1, 2, 4, 8)
    with pytest.raises(UserError, match="Identity gets no bounds"):
        varlen(module, states, states, states, None)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(UserError, match="Identity gets a mask of the model's own"):
        varlen(module, states, states, states, states[:, :, :, :4], cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_caps_and_sinks_get_gradients(family: str) -> None:
    gradients = {}
    for attention in (VARLEN, "eager"):
        model, segments = tiny_model(family, attention), _segments()[:1]
        inputs = packed(segments) if attention == VARLEN else alone(segments[0])
        model(**inputs).logits.square().sum().backward()
        gradients[attention] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    scale = float(gradients["eager"].abs().max())
    torch.testing.assert_close(gradients[VARLEN] / scale, gradients["eager"] / scale, rtol=1e-3, atol=1e-5)


def _examples(vocabulary: int = VOCABULARY) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            rng.integers(4, vocabulary, n).astype(np.int32),
            np.arange(n) >= n // 2,
            np.array([n // 2, n - 1]),
            rng.normal(size=(2, 5)).astype(np.float32) + 2,
        )
        for n in LENGTHS
    ]


@pytest.mark.parametrize("kind", ["policy", "predictor"])
def test_loss_and_gradients_without_packing_are_those_of_a_pack(kind: str, tiny_base: str) -> None:
    task = (PolicyTask if kind == "policy" else PredictorTask)(tiny_base, SCHEMA, "steerlm")
    single = dataclasses.replace(task, packing=False)
    together, apart = task.build(), single.build()
    apart.load_state_dict(together.state_dict())
    together(**task.inputs(_examples(), "cpu")).backward()
    losses = [apart(**single.inputs([example], "cpu")) for example in _examples()]
    torch.stack(losses).sum().backward()
    for mine, packs in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, packs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2", "gpt2"])
def test_other_backbones_score_one_by_one_as_in_a_pack(family: str, tmp_path: Path) -> None:
    task = PredictorTask(save_backbone(family, str(tmp_path)), SCHEMA, "steerlm")
    single = dataclasses.replace(task, packing=False)
    together, apart = task.build().eval(), single.build().eval()
    apart.load_state_dict(together.state_dict())
    with torch.no_grad():
        loss = together(**task.inputs(_examples(), "cpu"))
        losses = [apart(**single.inputs([example], "cpu")) for example in _examples()]
    assert sum(one.item() for one in losses) == pytest.approx(loss.item(), rel=1e-4)


def test_a_policy_of_a_mixing_family_is_refused_and_runs_one_by_one(tiny_base: str, tmp_path: Path) -> None:
    base = save_family("falcon", str(tmp_path / "falcon"), tiny_base)
    task = PolicyTask(base, SCHEMA, "steerlm")
    with pytest.raises(UserError, match=r"a model of type falcon cannot .*FalconForCausalLM computes attention by its"):
        task.build()
    single = dataclasses.replace(task, packing=False)
    loss = single.build()(**single.inputs(_examples()[:1], "cpu"))
    assert loss.item() > 0


def test_a_predictor_that_mixes_is_refused_by_setting_and_scored_one_by_one(tiny_base: str, tmp_path: Path) -> None:
    base = save_family("nemotron", str(tmp_path / "nemotron"), tiny_base)
    task = PredictorTask(base, SCHEMA, "steerlm", packing=False)
    module, folder = task.build(), str(tmp_path / "predictor")
    task.save(module, module.state_dict(), folder)
    for setting in ("annotate.packing", "scorer.packing"):
        with pytest.raises(UserError, match=rf"a model of type nemotron cannot .*; set {setting} to off"):
            Predictor.load(folder, setting=setting)
    rater = Rater(Predictor.load(folder, packing=False), 64, 64)
    tokens = [Tokens(e.ids_T, e.trained_T, e.turn_ends_S) for e in _examples()]
    values, counters = rater.rate_tokens(tokens)
    model: PreTrainedModel = load_regressor(folder, task.format(), packing=False)
    for example, found_SA in zip(_examples(), values, strict=True):
        with torch.no_grad():
            hidden_TD = model.model(input_ids=torch.from_numpy(example.ids_T)[None].long()).last_hidden_state[0]
            np.testing.assert_allclose(found_SA, model.score(hidden_TD[example.turn_ends_S]), atol=1e-4)
    assert counters["budget_tokens"] == counters["filled_tokens"] == sum(LENGTHS)


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_a_family_without_regression_heads_is_one_sentence(family: str, tiny_base: str, tmp_path: Path) -> None:
    base = save_family(family, str(tmp_path), tiny_base)
    with pytest.raises(UserError, match=re.escape(f"a model of type '{family}' cannot carry the attribute heads")):
        PredictorTask(base, SCHEMA, "steerlm").build()
