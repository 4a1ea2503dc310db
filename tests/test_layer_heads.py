"""Heads on several layers: read as by hand, packed as alone, cut as whole, saved as loaded, refused with a sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbones import draw_weights, save_backbone
from support.tiny_families import save_family
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from actors.kernels.varlen import packed
from actors.modeling.layer_heads import Block, LayerHeads
from actors.modeling.model_folder import load_config, load_format
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import HeadsSettings
from actors.modeling.tokenizer import encoder
from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.conversation import Conversation, Message
from data.lab import Lab, LabSettings
from data.tokens import Tokens, segments, tokenize
from jobs.runner.predictor_settings import PredictorSettings
from jobs.runner.stage import _plain
from serve.request import GenerationRequest
from serve.scorer import rate_answers

SCHEMA = shipped("lab")
FAMILIES = ("llama", "gemma3_text", "smollm3", "gpt2")
"""Four layers each. Gemma's and SmolLM's configs list something for every layer."""


def save_predictor(base: str, folder: str, **settings: object) -> str:
    """A predictor with heads on several layers and weights that tell texts apart, saved as training saves it."""
    task = PredictorTask(base, SCHEMA, "steerlm", layer_heads=HeadsSettings.model_validate(settings))
    module = task.build()
    draw_weights(module)
    task.save(module, module.state_dict(), folder)
    return folder


@pytest.fixture(scope="module")
def layered(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_predictor(tiny_base, str(tmp_path_factory.mktemp("layered")), layers=(1, 2))


def read(predictor: Predictor, rows: list[Conversation]) -> list[Tokens]:
    encode, template = encoder(predictor.format.tokenizer), predictor.format.template
    return [tokenize(template.pieces(row.system, row.messages, ()), encode) for row in rows]


def score(predictor: Predictor, tokens: list[Tokens]) -> np.ndarray:
    found = [s for t in tokens for s in segments(t, predictor.reading)]
    return np.concatenate(
        predictor.score([s.ids_T for s in found], [s.reads_S for s in found], [s.starts_S for s in found])
    )


def rows(num: int) -> list[Conversation]:
    return list(Lab(LabSettings(num_rows=num)).rows())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_hidden_states_of_plain_transformers(family: str, tiny_base: str, tmp_path: Path) -> None:
    base = save_family(family, str(tmp_path / "base"), tiny_base)
    predictor = Predictor.load(save_predictor(base, str(tmp_path / "p"), layers=(1, 2, 3, 4)))
    found = read(predictor, [row for row in rows(60) if row.num_answers > 1])
    tokens = min(found, key=len)  # GPT-2 here has 256 positions
    assert len(tokens.turn_ends_S) > 1
    whole = AutoModel.from_pretrained(base).eval()
    whole.resize_token_embeddings(len(predictor.format.tokenizer))
    body = getattr(predictor.module.model, predictor.module.model.base_model_prefix)
    whole.load_state_dict(body.state_dict())
    with torch.no_grad():
        ids = torch.from_numpy(tokens.ids_T.astype(np.int64))[None]
        states = whole(ids, output_hidden_states=True).hidden_states
        expected = []
        for start, end in zip(tokens.turn_starts_S, tokens.turn_ends_S, strict=True):
            blocks = [part for h in states[1:] for part in (h[0, end], h[0, start : end + 1].mean(0))]
            expected.append(torch.cat([*blocks, torch.ones(1)]))
        reads, starts = (torch.from_numpy(a.astype(np.int64)) for a in (tokens.turn_ends_S, tokens.turn_starts_S))
        found = predictor.module.read(predictor.pack([tokens.ids_T]), reads, starts)
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_backbone_reads_what_the_whole_one_does(family: str, tiny_base: str, tmp_path: Path) -> None:
    base = save_family(family, str(tmp_path / "base"), tiny_base)
    whole = PredictorTask(base, SCHEMA, "steerlm", layer_heads=HeadsSettings(layers=(3, 4))).build().eval()
    cut = PredictorTask(base, SCHEMA, "steerlm", layer_heads=HeadsSettings(layers=(3,))).build().eval()
    assert sum(p.numel() for p in cut.model.parameters()) < sum(p.numel() for p in whole.model.parameters())
    assert cut.model.config.num_hidden_layers == 3
    ends, starts = torch.tensor([8, 19]), torch.tensor([5, 14])
    pack = packed([np.arange(5, 25)])
    cut.model.load_state_dict(whole.model.state_dict() | {"score.weight": cut.model.score.weight}, strict=False)
    with torch.no_grad():
        first = whole.read(pack, ends, starts)[:, : 2 * whole.model.config.get_text_config().hidden_size]
        torch.testing.assert_close(cut.read(pack, ends, starts)[:, :-1], first)


def test_packed_scores_equal_those_of_each_conversation_alone(layered: str) -> None:
    predictor = Predictor.load(layered)
    tokens = read(predictor, rows(6))
    alone = np.concatenate([score(predictor, [t]) for t in tokens])
    np.testing.assert_allclose(score(predictor, tokens), alone, atol=1e-5)
    assert alone.std(0).max() > 1e-3, "scores that do not depend on the text would prove nothing"
    plain = Predictor.load(layered, packing=False)
    np.testing.assert_allclose(np.concatenate([score(plain, [t]) for t in tokens]), alone, atol=1e-5)


@pytest.mark.parametrize("readings", [("end",), ("mean",), ("end", "mean")])
def test_every_answer_is_rated_as_if_it_were_the_last(
    readings: tuple[str, ...], tiny_base: str, tmp_path: Path
) -> None:
    predictor = Predictor.load(save_predictor(tiny_base, str(tmp_path), layers=(1, 2), readings=readings))
    for row in [row for row in rows(60) if row.num_answers == 3][:2]:
        whole = score(predictor, read(predictor, [row]))
        for turn in range(3):
            prefix = Conversation("t", "", row.messages[: 2 * turn + 2])
            np.testing.assert_allclose(whole[turn], score(predictor, read(predictor, [prefix]))[-1], atol=1e-5)


def test_saved_and_loaded_heads_give_the_same_scores(tiny_base: str, tmp_path: Path) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", layer_heads=HeadsSettings(layers=(1, 2)))
    module = task.build().eval()
    draw_weights(module)
    task.save(module, module.state_dict(), str(tmp_path))
    loaded = Predictor.load(str(tmp_path))
    live = Predictor(module, load_format(str(tmp_path)))
    tokens = read(loaded, rows(5))
    np.testing.assert_allclose(score(live, tokens), score(loaded, tokens), atol=1e-6)


def test_plain_transformers_refuses_the_folder_and_loads_its_backbone(layered: str) -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(layered)
    config = load_config(layered)
    assert config.architectures == ["LlamaModel"]
    assert config.problem_type is None
    assert set(config.id2label.values()).isdisjoint(SCHEMA.names), "num_labels would be a promise"
    assert AutoModel.from_pretrained(layered).config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(layered)) > 0


def test_other_heads_cut_the_model_and_keep_its_scores(tiny_base: str, tmp_path: Path) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", layer_heads=HeadsSettings(layers="auto"))
    module = task.build().eval()
    draw_weights(module)
    width = module.model.config.hidden_size
    weights_AF = torch.zeros(5, 4 * width + 1)
    weights_AF[:, :width], weights_AF[:, -1] = torch.randn(5, width), 2.0
    pack, ends = packed([np.arange(5, 25)]), torch.tensor([19])
    module.model.score.weight.data.copy_(weights_AF)
    with torch.no_grad():
        before = module.scores(pack, ends, ends - 4)
        heads = LayerHeads((Block(1, "end"),), 2)
        module.set_heads(heads, weights_AF[:, [*range(width), -1]])
        torch.testing.assert_close(module.scores(pack, ends, ends - 4), before)
    task.save(module, module.state_dict(), str(tmp_path))
    loaded = Predictor.load(str(tmp_path))
    assert loaded.module.model.config.num_hidden_layers == 1
    assert loaded.module.reader is not None
    assert loaded.module.reader.heads == heads
    with torch.no_grad():
        torch.testing.assert_close(loaded.module.scores(pack, ends, ends - 4), before)


def test_annotation_and_the_endpoint_rate_with_such_a_folder(layered: str) -> None:
    turns = ("Tell me about bees.", "Bees make honey in a hive.", "And owls?", "Owls hunt at night.")
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns))
    arguments = {"pack_tokens": 512, "max_tokens": 512, "dtype": "float32", "num_threads": 1}
    annotator = Annotator(layered, SCHEMA, "f", **arguments)  # type: ignore[arg-type]
    row = Conversation("t", "", messages)
    annotated = [list(p.values()) for p in annotator.annotated([row])[0].predicted]
    predictor = Predictor.load(layered)
    np.testing.assert_allclose(annotated, score(predictor, read(predictor, [row])), atol=1e-5)
    request = GenerationRequest("", messages[:3], (), {})
    [served] = rate_answers(Rater(predictor, 512, 512), [(request, messages[3].content)])
    np.testing.assert_allclose([served[name] for name in SCHEMA.names], annotated[1], atol=1e-4)


def test_an_answer_whose_front_was_cut_is_read_as_far_as_it_is_there(layered: str) -> None:
    arguments = {"pack_tokens": 32, "max_tokens": 32, "dtype": "float32", "num_threads": 1}
    annotator = Annotator(layered, SCHEMA, "f", **arguments)  # type: ignore[arg-type]
    [row] = annotator.annotated(
        [Conversation("t", "", (Message("user", "Bees?"), Message("assistant", "Bees hum. " * 40)))]
    )
    assert row.truncated
    assert np.isfinite(list(row.predicted[0].values())).all()


def test_heads_on_a_bf16_backbone_run_in_fp32(layered: str) -> None:
    predictor = Predictor.load(layered, dtype="bfloat16")
    assert predictor.module.model.score.weight.dtype == torch.float32
    tokens = read(predictor, rows(3))
    assert score(predictor, tokens).dtype == np.float32
    np.testing.assert_allclose(score(predictor, tokens), score(Predictor.load(layered), tokens), atol=0.5)


def test_bad_settings_are_one_sentence(tiny_base: str, layered: str, tmp_path: Path) -> None:
    def build(base: str, **settings: object) -> None:
        PredictorTask(base, SCHEMA, "steerlm", layer_heads=HeadsSettings.model_validate(settings)).build()

    with pytest.raises(
        ValueError, match=r"layers has 31, and this llama backbone has 2 layers; name layers from 1 to 2"
    ):
        build(tiny_base, layers=(31,))
    with pytest.raises(ValueError, match=r"heads\.readings is empty, so nothing is read"):
        build(tiny_base, readings=())
    with pytest.raises(ValueError, match=r"heads\.layers has 1, 1; name each one once"):
        build(tiny_base, layers=(1, 1))
    with pytest.raises(ValueError, match=r"this bert backbone is an encoder; set predictor\.heads to null"):
        build(save_backbone("bert", str(tmp_path / "bert")))
    with pytest.raises(ValueError, match=r"is a predictor that was cut after layer 2 of 2"):
        build(layered)


def test_a_folder_without_its_heads_is_refused(layered: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in os.listdir(layered):
        if not name.endswith(".safetensors"):
            (tmp_path / name).write_bytes((Path(layered) / name).read_bytes())
    weights = load_file(os.path.join(layered, "model.safetensors"))
    save_file(
        {k: v for k, v in weights.items() if k != "score.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"has no heads \(score\.weight\)"):
        Predictor.load(str(tmp_path))


def test_the_fingerprint_of_a_run_without_such_heads_is_as_before() -> None:
    plain = PredictorSettings(learner=LearnerSettings())
    assert "heads" not in _plain(plain)
    layered = plain.model_copy(update={"heads": HeadsSettings(layers=(1,))})
    assert _plain(layered)["heads"] == {"layers": [1], "readings": "auto", "max_answers": 50_000}
    assert {k: v for k, v in _plain(layered).items() if k != "heads"} == _plain(plain)
