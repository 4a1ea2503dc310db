"""Model folders that others made: no code of theirs runs, and only safetensors are read."""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.modeling.model_folder import load_config, load_tokenizer, load_weights
from data.errors import UserError

ACTORS = Path(__file__).resolve().parent.parent / "actors"
LOADERS = {"from_pretrained", "from_config", "pipeline", "EngineArgs"}
NO_CODE = {"GenerationConfig.from_pretrained"}
"""Calls that read a record and have no such argument."""


def calls() -> Iterator[tuple[str, dict[str, str]]]:
    """Where a model of others is read, and the arguments."""
    for path in sorted(ACTORS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS:
                called = ast.unparse(node.func)
                arguments = {word.arg or "**": ast.unparse(word.value) for word in node.keywords}
                yield f"{path.relative_to(ACTORS)}:{node.lineno} {called}", arguments


@pytest.mark.case("B13: trust_remote_code is passed, never left open")
def test_every_call_says_that_no_code_runs() -> None:
    found = [(where, arguments) for where, arguments in calls() if where.split()[1] not in NO_CODE]
    assert len(found) >= 8
    assert [where for where, arguments in found if arguments.get("trust_remote_code") != "False"] == []
    # Shapes are built from a config alone, and a GGUF file holds numbers.
    weights = [(where, a) for where, a in found if "AutoModel" in where or "auto." in where]
    weights = [(where, a) for where, a in weights if "from_config" not in where and "gguf_model" not in where]
    assert len(weights) >= 3
    assert [where for where, arguments in weights if arguments.get("use_safetensors") != "True"] == []


@pytest.fixture
def folder(tiny_base: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_weights(AutoModelForCausalLM, str(folder), "causal language model")
    assert len(str(error.value).replace(str(folder), "")) < 400
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.case("B13: safetensors only")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_a_sentence_with_the_way_out(folder: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / name)
    said = refused(folder)
    assert f"has its weights in {name}" in said
    assert "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)" in said


def test_the_way_out_is_one(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False).save_pretrained(folder)
    loaded = load_weights(AutoModelForCausalLM, str(folder), "causal language model")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_folder_without_weights_and_a_damaged_file_are_sentences(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert "no readable causal language model" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert "no readable causal language model" in refused(folder)


@pytest.mark.case("B13: code in a model's folder")
@pytest.mark.parametrize("auto", ["AutoConfig", "AutoTokenizer"])
def test_code_in_the_folder_is_never_run(folder: Path, auto: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Not even asked for: on a terminal, transformers would ask."""
    (folder / "theirs.py").write_text("print('RAN')\nraise SystemExit('RAN')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoTokenizer": "theirs.Tokenizer"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": [None, "theirs.Tokenizer"]}})
    )
    load = {"AutoConfig": load_config, "AutoTokenizer": load_tokenizer}[auto]
    with pytest.raises(UserError, match="needs code of its own") as error:
        load(str(folder))
    assert "trust_remote_code" not in str(error.value)
    assert "RAN" not in "".join(capfd.readouterr())
