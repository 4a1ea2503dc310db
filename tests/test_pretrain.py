"""Stage `base`: what the small model's tokenizer learns from."""

from pathlib import Path

import pytest

from actors.modeling.tokenizer import train_tokenizer
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Conversation, Message, to_table
from data.lab import Lab, LabSettings
from data.template import label_line
from jobs.pipelines.map_rows import write_table
from jobs.pretrain import prompt_words, texts
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).parents[1] / "jobs" / "presets" / "demo.yaml")
LAB = shipped("lab")


def _run(folder: Path, rows: list[Conversation]) -> Run:
    run = Run(load(Preset, DEMO, [f"storage={folder}"]))
    write_table(to_table(rows, LAB), run.folder("rows") / "rows")
    return run


def test_the_tokenizer_learns_roles_and_the_labels_that_people_gave(tmp_path: Path) -> None:
    rated = Conversation(
        id="a",
        source="s",
        group="a",
        system="",
        messages=[Message("user", "an owl"), Message("assistant", "a mole")],
        human=[{"helpfulness": 3.0, "humor": 0.0}],
    )
    found = list(prompt_words(_run(tmp_path, [rated])))
    assert found == ["System\n\n", "User\n\n", "Assistant\n", "helpfulness:3,humor:0\n\n"]


@pytest.mark.parametrize("value", [0, 4])
def test_a_label_line_is_a_few_tokens_long(tmp_path: Path, value: int) -> None:
    run = _run(tmp_path, list(Lab(LabSettings(num_rows=600)).rows()))
    line = label_line(LAB, dict.fromkeys(LAB.names, value))
    plain, knowing = (train_tokenizer(read, 1024) for read in (texts(run), [*texts(run), *prompt_words(run)]))
    # The marker, for each of five attributes its name, a colon and a value, four commas and the line's end.
    assert len(knowing.encode(line)) == 21
    assert len(plain.encode(line)) > 35
