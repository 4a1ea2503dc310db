"""A pretrained model out of one file: found in a package, converted to plain safetensors, steered by words."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from support.real_model import NOT_INSTALLED, PACKAGE
from transformers import AutoModelForCausalLM

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete
from actors.generation.settings import EngineSettings
from actors.modeling.gguf_file import gguf_file, is_gguf, license_of
from actors.modeling.gguf_model import convert
from actors.modeling.model_folder import fit_embeddings, new_format, save_model
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Message
from data.errors import UserError
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.preset import Preset

NO_READER = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="package gguf is not installed; `make setup-real` installs it"
)
QUESTIONS = (
    "Why is the sky blue?",
    "What is a good way to learn a language?",
    "Tell me about the city of Paris.",
    "How do I bake bread?",
    "What should I do on a rainy day?",
    "Who was Albert Einstein?",
)


def test_what_names_a_gguf_file(tmp_path: Path) -> None:
    assert is_gguf("model.GGUF")
    assert is_gguf(PACKAGE)
    assert not is_gguf("meta-llama/Llama-3.2-1B")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(str(tmp_path / "folder.gguf"))


def test_missing_reader_is_a_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package gguf, which reads it, is missing; run `make setup-real`"):
        gguf_file(PACKAGE)


@NO_READER
@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("package:no-such-package", r"not installed; run `make setup-real`"),
        ("package:numpy", r"holds 0 GGUF files, not one; set base.model to"),
        ("package:", r"not installed"),
        ("nowhere/model.gguf", r"no such file on this machine; set base.model to"),
    ],
)
def test_wrong_names_are_told_by_the_plan(model: str, told: str) -> None:
    preset = load(Preset, "jobs/presets/oasst.yaml", [f"base={{model: '{model}'}}"])
    with pytest.raises(UserError, match=told):
        refuse_what_is_not_there(preset)


@NO_READER
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"not a model" * 9])
def test_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as GGUF") as told:
        convert(str(tmp_path / "x.gguf"), str(tmp_path / "out"))
    assert len(str(told.value)) < 500
    assert not (tmp_path / "out").exists()


@NOT_INSTALLED
@pytest.mark.slow
def test_converted_model_is_a_plain_one(smollm2: str) -> None:
    config = json.loads((Path(smollm2) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 30, "float32")
    assert "quantization_config" not in config
    assert license_of(PACKAGE) == "Apache-2.0"
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@NOT_INSTALLED
@pytest.mark.slow
def test_words_steer_the_untrained_model(smollm2: str, tmp_path: Path) -> None:
    format = new_format(smollm2, shipped("steerlm"), "words")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    fit_embeddings(model, format)
    save_model(model, {f"model.{k}": v for k, v in model.state_dict().items()}, format, str(tmp_path), labels=True)
    text, engine = load_engine(EngineSettings(max_num_seqs=len(QUESTIONS)), str(tmp_path), "float32")
    sampling = Sampling(max_tokens=96, temperature=0)
    lengths = []
    for verbosity in (0, 4):
        prompts = [text.prompt("", [Message("user", q)], {"verbosity": verbosity}) for q in QUESTIONS]
        answers = complete(engine, [(ids, sampling) for ids in prompts])
        print(verbosity, [text.decode(ids) for ids, _ in answers])
        lengths.append(sum(len(ids) for ids, _ in answers))
    engine.close()
    assert lengths[1] >= 1.5 * lengths[0]
