"""All families of backbones: packed == one by one == plain transformers; fp32 heads; only valid labels carry loss."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbones import FAMILIES, draw_weights, save_backbone
from transformers import AutoModelForSequenceClassification, AutoTokenizer, T5Config, T5ForConditionalGeneration
from transformers.integrations import HfDeepSpeedConfig

from actors.modeling.backbone import ENCODERS
from actors.modeling.model_folder import new_format
from actors.modeling.regressor import PredictorTask
from actors.modeling.tokenizer import encoder
from actors.modeling.warmup import AnswerFeatures
from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from data.attributes import shipped
from data.conversation import Conversation
from data.examples import Example
from data.lab import Lab, LabSettings
from data.tokens import Segment, segments, tokenize

SCHEMA = shipped("lab")
NUM_POSITIONS = 256


@pytest.fixture(scope="session", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A predictor on a random backbone of each family, saved as training saves it."""
    base = save_backbone(request.param, str(tmp_path_factory.mktemp(request.param)))
    task = PredictorTask(base, SCHEMA, "steerlm")
    module, folder = task.build(), os.path.join(base, "predictor")
    draw_weights(module)
    task.save(module, module.state_dict(), folder)
    return folder


def _segments(predictor: Predictor, rows: list[Conversation]) -> list[Segment]:
    encode, template = encoder(predictor.format.tokenizer), predictor.format.template
    found = [
        s
        for row in rows
        for s in segments(tokenize(template.pieces(row.system, row.messages, ()), encode), predictor.reading)
    ]
    return [s for s in found if len(s) <= NUM_POSITIONS]


def _score(predictor: Predictor, parts: list[Segment]) -> list[np.ndarray]:
    return predictor.score([p.ids_T for p in parts], [p.reads_S for p in parts])


def test_packed_scores_equal_those_of_each_segment_alone(saved: str) -> None:
    predictor = Predictor.load(saved)
    parts = _segments(predictor, list(Lab(LabSettings(num_rows=16)).rows()))
    assert len(parts) >= 8
    assert max(map(len, parts)) > 40, "longer than the local attention of ModernBERT's window"
    together = _score(predictor, parts)
    alone = [_score(predictor, [part])[0] for part in parts]
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)
    assert np.concatenate(alone).std(0).max() > 1e-3, "scores that do not depend on the text would prove nothing"


def test_plain_transformers_gives_the_same_score_from_the_chat_template_alone(saved: str) -> None:
    predictor = Predictor.load(saved)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(saved).eval(),
        AutoTokenizer.from_pretrained(saved),
    )
    assert [model.config.id2label[i] for i in range(5)] == list(SCHEMA.names)
    single = [row for row in Lab(LabSettings(num_rows=30)).rows() if row.num_answers == 1][:3]
    ours = _score(predictor, _segments(predictor, single))
    for row, scores_SA in zip(single, ours, strict=True):
        chat = [{"role": m.role, "content": m.content} for m in row.messages]
        with torch.no_grad():
            theirs_A = (
                model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits[0].numpy()
            )
        np.testing.assert_allclose(scores_SA[0], theirs_A, atol=1e-5)


def test_heads_are_saved_and_run_in_fp32_on_a_bf16_backbone(saved: str) -> None:
    predictor = Predictor.load(saved, dtype="bfloat16")
    model = predictor.module.model
    assert {p.dtype for name in predictor.module.heads for p in model.get_submodule(name).parameters()} == {
        torch.float32
    }
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}
    parts = _segments(predictor, list(Lab(LabSettings(num_rows=3)).rows()))
    scores = np.concatenate(_score(predictor, parts))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.concatenate(_score(Predictor.load(saved), parts)), atol=0.5)


def test_training_on_packed_rows_has_the_gradients_of_separate_ones(saved: str) -> None:
    task = PredictorTask(os.path.dirname(saved), SCHEMA, "steerlm")
    module = task.build().eval()
    rng = np.random.default_rng(0)
    examples = [
        Example(
            rng.integers(5, 300, n).astype(np.int32), np.zeros(n, bool), np.array([0]), np.full((1, 5), 2, np.float32)
        )
        for n in (9, 70, 31)
    ]

    def gradients(packs: list[list[Example]]) -> torch.Tensor:
        module.zero_grad()
        sum(module(**task.inputs(pack, "cpu")) for pack in packs).backward()  # type: ignore[union-attr]
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    packed, separate = gradients([examples]), gradients([[e] for e in examples])
    assert (packed - separate).norm() < 1e-4 * separate.norm()


def test_all_supported_encoders_are_tried_here() -> None:
    assert ENCODERS.keys() <= FAMILIES.keys()


def test_a_segment_longer_than_the_encoder_reads_is_refused(tmp_path: Path) -> None:
    task = PredictorTask(save_backbone("roberta", str(tmp_path / "base")), SCHEMA, "steerlm")
    module = task.build()
    task.save(module, module.state_dict(), str(tmp_path / "predictor"))
    predictor = Predictor.load(str(tmp_path / "predictor"))
    assert predictor.max_tokens == NUM_POSITIONS
    longest = np.full(NUM_POSITIONS, 9, np.int32)
    assert predictor.score([longest], [np.zeros(1, np.int32)])[0].shape == (1, 5)
    with pytest.raises(
        ValueError, match=r"segments of 257 tokens .* reads at most 256; set annotate.max_tokens to at most 256"
    ):
        predictor.score([np.append(longest, 9)], [np.zeros(1, np.int32)])
    with pytest.raises(ValueError, match=r"segments of 1024 tokens"):
        Annotator(
            str(tmp_path / "predictor"), SCHEMA, "", pack_tokens=1024, max_tokens=1024, dtype="float32", num_threads=1
        )


def test_a_backbone_that_reads_one_segment_a_forward_is_refused_where_workers_would_wait_for_each_other(
    tmp_path: Path,
) -> None:
    task = PredictorTask(save_backbone("deberta-v2", str(tmp_path)), SCHEMA, "steerlm")
    sharded = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match=r"a deberta-v2 backbone .* set predictor.learner.zero_stage to 2 or less"):
        task.build()
    del sharded
    task.build()


def test_a_model_that_cannot_carry_the_heads_is_refused_with_what_can(tiny_base: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path)
    T5ForConditionalGeneration(
        T5Config(vocab_size=600, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"'t5' cannot carry the attribute heads: a decoder .* bert, roberta, .*; set predictor.backbone",
    ):
        PredictorTask(str(tmp_path), SCHEMA, "steerlm").build()


def _example(values: list[float]) -> Example:
    return Example(np.arange(4, 24, dtype=np.int32), np.zeros(20, bool), np.array([19]), np.array([values], np.float32))


def test_labels_that_are_missing_or_out_of_range_carry_no_loss(tiny_base: str) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm")
    module = task.build()
    nan, inf = float("nan"), float("inf")
    nothing, one = _example([nan, -1, 4.01, inf, -inf]), _example([nan, 2, -3, 1e30, nan])
    assert (task.target_weight(nothing), task.target_weight(one)) == (0, 1)
    assert module(**task.inputs([nothing], "cpu")).item() == 0.0
    score = module.scores(task.inputs([one], "cpu")["pack"], torch.tensor([19]))[0, 1]
    loss = module(**task.inputs([one], "cpu"))
    assert loss.item() == pytest.approx((score - 2).item() ** 2, rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_attribute_weights_weigh_the_mean_over_valid_labels(tiny_base: str) -> None:
    plain, weighted = (
        PredictorTask(tiny_base, SCHEMA, "steerlm"),
        PredictorTask(tiny_base, SCHEMA, "steerlm", {"humor": 3.0, "toxicity": 0.5}),
    )
    module = plain.build()
    example = _example([1, float("nan"), 4, 0, 2])  # helpfulness, creativity, humor, toxicity, verbosity
    scores_A = module.scores(plain.inputs([example], "cpu")["pack"], torch.tensor([19]))[0].detach().numpy()
    weights = {"helpfulness": 1.0, "humor": 3.0, "toxicity": 0.5, "verbosity": 1.0}
    by_hand = sum(
        w * (scores_A[SCHEMA.names.index(n)] - example.values_SA[0, SCHEMA.names.index(n)]) ** 2
        for n, w in weights.items()
    )
    assert weighted.target_weight(example) == sum(weights.values())
    assert plain.target_weight(example) == 4
    assert module(**weighted.inputs([example], "cpu")).item() == pytest.approx(by_hand, rel=1e-5)


def test_absolute_errors_are_those_of_the_scores(tiny_base: str) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", loss="absolute")
    module, example = task.build(), _example([1, 2, 3, 4, float("nan")])
    scores_A = module.scores(task.inputs([example], "cpu")["pack"], torch.tensor([19]))[0].detach().numpy()
    assert module(**task.inputs([example], "cpu")).item() == pytest.approx(
        np.abs(scores_A[:4] - [1, 2, 3, 4]).sum(), rel=1e-5
    )


def test_heads_fitted_before_training_are_better_than_random_ones_and_than_none(tiny_base: str) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", ridge_init=1.0)
    module, generator = task.build(), np.random.default_rng(0)
    examples = [
        Example(
            generator.integers(4, 400, 20).astype(np.int32),
            np.zeros(20, bool),
            np.array([19]),
            np.array([[1, 3, 2, 0, v]], np.float32),
        )
        for v in generator.integers(0, 5, 40)
    ]
    inputs = task.inputs(examples, "cpu")
    with torch.no_grad():
        random_heads = module(**inputs).item()
        assert "closed form" in task.start(module, [inputs])
        fitted = module(**inputs).item()
    # These random features have no constant direction to carry a mean with, as trained ones have.
    assert fitted < 0.5 * min(random_heads, inputs["values_SA"].square().sum().item())


def test_a_predictor_may_stay_a_language_model_and_is_saved_without_what_that_took(
    tiny_base: str, tmp_path: Path
) -> None:
    plain = PredictorTask(tiny_base, SCHEMA, "steerlm")
    answers = np.arange(20) > 9
    example = Example(
        np.arange(4, 24, dtype=np.int32), answers, np.array([19]), np.array([[1, 2, 3, 4, 0]], np.float32)
    )
    features = AnswerFeatures.of(new_format(tiny_base, SCHEMA, "steerlm").tokenizer, [example])
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", token_weight=0.1, answer_features=features)
    module = task.build()
    with torch.no_grad():
        alone = plain.build()
        alone.model.load_state_dict(module.model.state_dict())
        more = module(**task.inputs([example], "cpu")) - alone(**plain.inputs([example], "cpu"))
        pack = task.inputs([example], "cpu")["pack"]
        logits = torch.nn.functional.linear(module._hidden(pack), module.model.get_input_embeddings().weight)
        nats = torch.nn.functional.cross_entropy(logits[9:19], pack["input_ids"][0, 10:20], reduction="sum")
    assert more.item() > 0.1 * nats.item(), "the language model's loss is in it, and more"
    assert task.target_weight(example) == plain.target_weight(example)
    task.save(module, module.state_dict(), str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert not [name for name, _ in saved.named_parameters() if "warmup_heads" in name]


def test_staying_a_language_model_needs_tied_embeddings(tmp_path: Path) -> None:
    base = save_backbone("bert", str(tmp_path))
    with pytest.raises(ValueError, match=r"set predictor\.lm_loss_weight to 0"):
        PredictorTask(base, SCHEMA, "steerlm", token_weight=0.1).build()
