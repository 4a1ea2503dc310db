"""What is saved as a model, and what is tried before a training because it would fail after it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.training.save_model import require_savable
from data.attributes import shipped
from data.errors import UserError
from data.storage import Storage

SCHEMA = shipped("lab")


def _engine(task: PolicyTask, rank: int = 0) -> Any:
    return SimpleNamespace(rank=rank, module=task.build())


def _changed(base: str, folder: Path, name: str, **fields: object) -> str:
    """A copy of the model, with other fields in one of its JSON files."""
    shutil.copytree(base, folder)
    file = folder / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | fields))
    return str(folder)


SAMPLING: dict[str, dict[str, object]] = {
    "llama 2": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "no do_sample": {"top_k": 10},
    "min_p": {"do_sample": False, "min_p": 0.1},
}


@pytest.mark.case("01-generation-config")
@pytest.mark.parametrize("fields", SAMPLING.values(), ids=SAMPLING)
def test_sampling_settings_without_do_sample_are_saved_with_it(
    fields: dict[str, object], tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers refuses to save them: every training was lost at its end."""
    task = PolicyTask(_changed(tiny_base, tmp_path / "m", "generation_config.json", **fields), SCHEMA, "steerlm")
    engine = _engine(task)
    require_savable(task, engine, Storage(str(tmp_path / "out")))
    task.save(engine.module, engine.module.state_dict(), str(tmp_path / "saved"))
    found = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert found["do_sample"] is True
    assert {name: found[name] for name in fields if name != "do_sample"} == {
        name: value for name, value in fields.items() if name != "do_sample"
    }
    assert capsys.readouterr().out.count("the new model has do_sample: true") == 1


@pytest.mark.case("A7: a generation config beyond repair")
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"do_sample": False, "length_penalty": 2.0, "temperature": 0.5}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
    ],
)
def test_a_generation_config_that_cannot_be_saved_is_refused_before_the_training(
    fields: dict[str, object], names: str, tiny_base: str, tmp_path: Path
) -> None:
    task = PolicyTask(_changed(tiny_base, tmp_path / "m", "generation_config.json", **fields), SCHEMA, "steerlm")
    with pytest.raises(UserError, match=rf"^generation_config.json of .*/m cannot be saved again: .*{names}") as caught:
        require_savable(task, _engine(task), Storage(str(tmp_path / "out")))
    assert len(str(caught.value)) <= 400


@pytest.mark.case("A7: a target that cannot be written")
def test_a_target_that_cannot_be_written_is_refused_before_the_training(tiny_base: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    task = PolicyTask(tiny_base, SCHEMA, "steerlm")
    with pytest.raises(UserError, match=r"^cannot write .*/file/out/write-test: Not a directory; free space or get"):
        require_savable(task, _engine(task), Storage(str(tmp_path / "file" / "out")))


@pytest.mark.case("A7: a dry save changes nothing")
def test_a_dry_save_leaves_model_and_target_as_they_were(tiny_base: str, tmp_path: Path) -> None:
    for task in (PolicyTask(tiny_base, SCHEMA, "steerlm"), PredictorTask(tiny_base, SCHEMA, "steerlm")):
        engine, output = _engine(task), Storage(str(tmp_path / "out"))
        before = {name: getattr(engine.module.model.config, name) for name in ("use_cache", "dtype", "pad_token_id")}
        weights = {name: value.clone() for name, value in engine.module.state_dict().items()}
        require_savable(task, engine, output)
        assert before == {name: getattr(engine.module.model.config, name) for name in before}
        assert all(torch.equal(value, weights[name]) for name, value in engine.module.state_dict().items())
        assert output.names() == []
