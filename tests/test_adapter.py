"""A policy and its predictor as a small difference from their base: written, put together, the same again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from support.chat_base import chat_base
from support.exported_run import export_to, put_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.modeling.adapter import put_together, write_adapter
from actors.modeling.policy import Policy, PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import HeadsSettings
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from cluster.settings.errors import SettingsError
from data.adapter_layout import ADAPTER, HEADS, LORA, AdapterRecord
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import Conversation, Message
from data.errors import UserError
from data.storage import Storage
from jobs.runner.stage import StageError
from serve.locate import locate
from serve.ready import WHOLE

SCHEMA = shipped("lab")
RANK = 4
ASKED = [Message("user", "Tell me about bees.")]
TALK = Conversation("x", "", (*ASKED, Message("assistant", "Bees make honey, and they dance.")), id="a")
CALIBRATION = Calibration(scale={"humor": 2.0}, shift={"humor": -1.0})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_base(str(tmp_path_factory.mktemp("base")))


def trained(base: str, folder: Path, rank: int = RANK, more: str = "") -> str:
    """A policy whose linear modules differ from the base by matrices of `rank`, and the parameter `more` at will."""
    task = PolicyTask(base, SCHEMA, "words", calibration=CALIBRATION)
    module = task.build()
    state = dict(module.state_dict())
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if "_proj.weight" in name:
            b, a = (torch.randn(n, rank, generator=generator) for n in tensor.shape)
            state[name] = tensor + 0.02 * b @ a.T
        if more and more in name:
            state[name] = tensor + 0.1
    task.save(module, state, str(folder))
    return str(folder)


def rated(base: str, folder: Path, tuned: bool = False) -> str:
    task = PredictorTask(base, SCHEMA, "words", layer_heads=HeadsSettings(layers=(1, 2)))
    module = task.build()
    with torch.no_grad():
        module.model.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        if tuned:
            module.model.model.layers[0].mlp.up_proj.weight.add_(0.1)
    task.save(module, module.state_dict(), str(folder))
    return str(folder)


def written(base: str, policy: str, predictor: str | None, folder: Path, rank: int = RANK) -> AdapterRecord:
    folder.mkdir()
    return write_adapter(base, base, policy, predictor, rank, str(folder))


def logits(folder: str) -> torch.Tensor:
    policy = Policy.load(folder)
    ids = policy.prompt("", ASKED, {"humor": 4, "verbosity": 0})
    with torch.inference_mode():
        found: torch.Tensor = policy.model(input_ids=torch.tensor([ids])).logits
    return found


def scores(folder: str) -> np.ndarray:
    [values_SA] = Rater(Predictor.load(folder), 256, 256).rate([TALK])
    return values_SA


def test_what_is_put_together_is_what_was_trained(base: str, tmp_path: Path) -> None:
    policy, predictor = trained(base, tmp_path / "policy"), rated(base, tmp_path / "predictor")
    record = written(base, policy, predictor, tmp_path / "adapter")
    assert record.kept > 0.9999
    put_together(str(tmp_path / "adapter"), str(tmp_path / "again"))
    again = str(tmp_path / "again" / "policy")
    assert torch.allclose(logits(policy), logits(again), atol=2e-2)
    assert np.abs(scores(predictor) - scores(str(tmp_path / "again" / "predictor"))).max() < 1e-5
    one, two = Policy.load(policy), Policy.load(again)
    assert one.format.schema == two.format.schema
    assert two.format.calibration == CALIBRATION
    requested = {"humor": 4, "verbosity": 1}
    assert one.prompt("", ASKED, requested) == two.prompt("", ASKED, requested)
    assert AutoTokenizer.from_pretrained(policy).chat_template == AutoTokenizer.from_pretrained(again).chat_template


def test_the_folder_is_as_small_as_its_rank_says(base: str, tmp_path: Path) -> None:
    policy = trained(base, tmp_path / "policy", rank=8)
    whole = written(base, policy, None, tmp_path / "whole", rank=8)
    half = written(base, policy, None, tmp_path / "half", rank=4)
    assert whole.kept > 0.9999 > half.kept > 0.4, "the strongest directions are kept"
    sizes = [os.path.getsize(tmp_path / name / LORA) for name in ("whole", "half")]
    assert 1.7 < sizes[0] / sizes[1] < 2.1
    with safe_open(str(tmp_path / "half" / LORA), "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    with safe_open(str(tmp_path / "half" / HEADS), "pt") as file:
        rows = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert all(len(tensor) == 1 for tensor in rows), "the one token that the base does not have"


def test_plain_peft_loads_the_adapters(base: str, tmp_path: Path) -> None:
    import peft

    policy = trained(base, tmp_path / "policy")
    written(base, policy, None, tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    whole = Policy.load(policy).model
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)("Bees make honey.").input_ids])
    with torch.inference_mode():
        theirs, ours = plain(input_ids=ids).logits, whole(input_ids=ids).logits[..., : plain.config.vocab_size]
    assert torch.allclose(theirs, ours, atol=2e-2)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits, ours, atol=2e-2)


def test_models_that_are_more_than_a_difference_are_refused(base: str, tmp_path: Path) -> None:
    whole = trained(base, tmp_path / "whole", more="norm")
    with pytest.raises(UserError, match=r"training changed model\..*norm.*trained in full; set policy.learner.lora"):
        written(base, whole, None, tmp_path / "a")
    policy = trained(base, tmp_path / "policy")
    with pytest.raises(UserError, match=r"trained beyond its heads.*heads=false"):
        written(base, policy, rated(base, tmp_path / "tuned", tuned=True), tmp_path / "b")
    task = PredictorTask(base, SCHEMA, "words")
    module = task.build()
    task.save(module, module.state_dict(), str(tmp_path / "last"))
    with pytest.raises(UserError, match=r"heads alone are not the predictor; set predictor.heads"):
        written(base, policy, str(tmp_path / "last"), tmp_path / "c")
    same = PolicyTask(base, SCHEMA, "words")
    module_ = same.build()
    same.save(module_, module_.state_dict(), str(tmp_path / "same"))
    with pytest.raises(UserError, match="has the weights of its base"):
        written(base, str(tmp_path / "same"), None, tmp_path / "d")


def test_the_endpoint_finds_both_and_puts_them_together_once(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, predictor = trained(base, tmp_path / "policy"), rated(base, tmp_path / "predictor")
    written(base, policy, predictor, tmp_path / "bees")
    found = locate(str(tmp_path / "bees"), str(tmp_path / "runs"))
    assert found.name == "bees"
    assert found.predictor
    assert np.abs(scores(found.predictor) - scores(predictor)).max() < 1e-5
    assert Policy.load(found.uri).format.schema == SCHEMA
    assert "putting bees together, once" in capsys.readouterr().out
    assert locate(str(tmp_path / "bees"), str(tmp_path / "runs")) == found
    assert capsys.readouterr().out == ""
    # As a copy to an object store that was killed leaves it: the first files of a model, and no mark.
    (Path(found.uri).parent / WHOLE).unlink()
    (Path(found.uri) / "model.safetensors").unlink()
    assert locate(str(tmp_path / "bees"), str(tmp_path / "runs")) == found
    assert (Path(found.uri) / "model.safetensors").exists()


def test_an_adapter_of_another_base_is_refused(base: str, tmp_path: Path) -> None:
    written(base, trained(base, tmp_path / "policy"), None, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER
    record = json.loads(file.read_text()) | {"base": "package:no-such-package"}
    file.write_text(json.dumps(record | {"base_digest": "0" * 16}))
    with pytest.raises(UserError, match=r"^policy is adapter: .*no-such-package.*make setup-real"):
        locate(str(tmp_path / "adapter"), str(tmp_path / "runs"))
    assert not Storage(str(tmp_path / "runs")).exists()


def test_the_command_writes_the_folder_with_a_card(base: str, tmp_path: Path) -> None:
    root = tmp_path / "runs" / "demo"
    put_model(root, "policy", trained(base, tmp_path / "policy"))
    put_model(root, "predictor", rated(base, tmp_path / "predictor"))
    words = ["what=adapter", "round=0", "rank=4", "template=words", "base.pretrain=null", f"base.model={base}"]
    found = export_to(tmp_path / "runs", tmp_path / "small", *words, "license=apache-2.0")
    assert (found["stage"], found["rank"]) == ("policy", 4)
    assert found["kept"] > 0.9999
    names = sorted(os.listdir(tmp_path / "small"))
    assert names == ["README.md", "adapter_config.json", LORA, "export.json", HEADS, ADAPTER]
    sizes = sum(os.path.getsize(tmp_path / "small" / name) for name in (LORA, HEADS))
    assert found["weights_bytes"] == sizes
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "peft")
    assert "python -m serve policy=" in card.text
    assert "## Limits" in card.text
    again = export_to(tmp_path / "runs", tmp_path / "small", *words, "heads=false")
    assert again["weights_bytes"] < found["weights_bytes"]
    with pytest.raises(StageError, match=r"base.model is not set.*export what=policy"):
        export_to(tmp_path / "runs", tmp_path / "other", "what=adapter", "round=0")
    for wrong, told in {"rank=4": "rank would be ignored", "heads=false": "heads would be ignored"}.items():
        with pytest.raises(SettingsError, match=told):
            export_to(tmp_path / "runs", tmp_path / "other", "what=policy", wrong)
