"""Labels by rank, from a sample of annotated rows."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.chat_templates import chat_folder
from transformers import AutoModelForCausalLM

from actors.modeling.model_folder import fit_embeddings, load_config, load_format
from actors.modeling.policy import PolicyTask
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import Conversation, Message, to_table
from data.errors import UserError
from data.label_spread import MAX_FILES, label_spread
from data.storage import Storage
from data.text_rater import TextRater
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")


def annotated(folder: Storage, part: int, values: list[float]) -> None:
    rows = [
        Conversation(
            "x", "", (Message("user", f"{part}-{i}"), Message("assistant", "a")), predicted=({"humor": value},)
        )
        for i, value in enumerate(values)
    ]
    write_table(to_table(rows, SCHEMA), folder, f"part-{part:05d}.parquet")


def test_values_of_all_files_are_ranked_together(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    for part in range(5):
        annotated(folder, part, [0.1 * part + 0.001 * i for i in range(40)])
    spread = label_spread(folder, SCHEMA)
    assert [SCHEMA["humor"].rounded(spread({"humor": 0.1 * part + 0.02})["humor"]) for part in range(5)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert spread.points.keys() == {"humor"}


def test_many_files_are_sampled_evenly(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    for part in range(3 * MAX_FILES):
        annotated(folder, part, [float(part)])
    points = label_spread(folder, SCHEMA).points["humor"]
    assert points[0][0] == 0
    assert points[-1][0] == 3 * MAX_FILES - 1


def test_rows_that_nobody_annotated_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy.spread_labels needs annotated answers.*run stage annotated first"):
        label_spread(Storage(str(tmp_path)), SCHEMA)


def test_policy_folder_keeps_its_labels_for_the_endpoint(tmp_path: Path) -> None:
    by_rank = Calibration(points={"humor": ((0.1, 0.0), (0.4, 4.0))})
    rater = TextRater(measures={"verbosity": "words"}, scale=by_rank)
    base = chat_folder("chatml", tmp_path / "base")
    for calibration in (by_rank, Calibration()):
        kept = rater if calibration.points else TextRater()
        task = PolicyTask(base, SCHEMA, "steerlm", calibration, text_rater=kept)
        model = AutoModelForCausalLM.from_config(load_config(base))
        fit_embeddings(model, task.format())
        folder = str(tmp_path / f"policy-{bool(calibration.points)}")
        task.save(SimpleNamespace(model=model), {f"model.{k}": v for k, v in model.state_dict().items()}, folder)
        loaded = load_format(folder)
        assert (loaded.calibration, loaded.text_rater) == (calibration, kept)
