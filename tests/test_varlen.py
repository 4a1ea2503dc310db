"""Packed == separate, in scores, loss and gradients: it silently is not if segments of a pack see each other."""

import numpy as np
import pytest
import torch

from actors.kernels.segment_attention import per_segment
from actors.kernels.varlen import VARLEN, packed
from actors.modeling.model_folder import load_format
from actors.modeling.policy import PolicyLoss, PolicyTask, load_causal_lm
from actors.modeling.regressor import PredictorTask, load_regressor
from data.attributes import shipped
from data.examples import Example

SCHEMA = shipped("lab")


def _examples(seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    lengths = [7, 61, 2, 130, 33]
    return [
        Example(
            rng.integers(4, 300, n).astype(np.int32),
            np.arange(n) >= max(1, n // 2),
            np.array([n // 2, n - 1]),
            rng.normal(size=(2, 5)).astype(np.float32),
        )
        for n in lengths
    ]


def test_packed_micro_example() -> None:
    pack = packed([np.array([5, 6, 7]), np.array([8, 9])])
    assert pack["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert pack["cu_seq_lens_q"].tolist() == pack["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert pack["max_length_q"] == 3
    assert (pack["attention_mask"], pack["use_cache"]) == (None, False)
    filled = packed([np.array([5, 6, 7]), np.array([8, 9])], multiple=4)
    assert filled["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert filled["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]


@pytest.mark.parametrize("model", ["policy", "predictor"])
def test_packed_equals_separate_in_loss_and_gradients(model: str, tiny_base: str) -> None:
    task = (PolicyTask if model == "policy" else PredictorTask)(tiny_base, SCHEMA, "steerlm")
    module, examples = task.build(), _examples()

    def run(packs: list[list[Example]]) -> tuple[float, torch.Tensor]:
        module.zero_grad()
        losses = [module(**task.inputs(pack, "cpu")) for pack in packs]
        torch.stack(losses).sum().backward()
        return sum(loss.item() for loss in losses), torch.cat([p.grad.flatten() for p in module.parameters()])

    loss_packed, gradients_packed = run([examples])
    loss_separate, gradients_separate = run([[e] for e in examples])
    assert loss_packed == pytest.approx(loss_separate, rel=1e-5)
    torch.testing.assert_close(gradients_packed, gradients_separate, rtol=1e-4, atol=1e-4)


def test_packed_scores_equal_separate_and_do_not_depend_on_neighbours(tiny_predictor: str) -> None:
    from actors.scoring.predictor import Predictor

    predictor = Predictor.load(tiny_predictor)
    examples = _examples()
    together = predictor.score([e.ids_T for e in examples], [e.turn_ends_S for e in examples])
    for example, scores_SA in zip(examples, together, strict=True):
        (alone_SA,) = predictor.score([example.ids_T], [example.turn_ends_S])
        np.testing.assert_allclose(scores_SA, alone_SA, atol=1e-5)


def test_varlen_equals_the_librarys_own_attention(tiny_policy: str) -> None:
    """The reference is a plain forward of each conversation alone with transformers' sdpa attention."""
    format = load_format(tiny_policy)
    ours, theirs = (load_causal_lm(tiny_policy, format, attention) for attention in (VARLEN, "sdpa"))
    examples = _examples()
    with torch.no_grad():
        logits_1TV = ours(**packed([e.ids_T for e in examples])).logits
        expected = [theirs(input_ids=torch.from_numpy(e.ids_T.astype(np.int64))[None]).logits[0] for e in examples]
    torch.testing.assert_close(logits_1TV[0], torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert isinstance(PolicyLoss(ours), torch.nn.Module)
    assert load_regressor(tiny_policy, format).config.num_labels == len(SCHEMA.names)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_a_segment_attends_as_a_dense_mask_says(causal: bool, window: int | None) -> None:
    """The reference is one softmax over the whole pack with a dense mask; key and value have half the heads."""
    torch.manual_seed(0)
    bounds = [0, 7, 68, 69, 132]
    q, k, v = (torch.randn(1, heads, 132, 16) for heads in (4, 2, 2))
    at = torch.arange(132)
    segment = torch.bucketize(at, torch.tensor(bounds[1:]), right=True)
    distance = at[:, None] - at
    sees = (segment[:, None] == segment) & ((distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool))
    if window:
        sees &= distance.abs() < window
    scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) / 4).masked_fill(~sees, -torch.inf)
    dense = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    found = per_segment(q, k, v, bounds, causal, None, window, 0.0)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
