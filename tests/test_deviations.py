"""How much the answers differ that a policy learned from, by their labels and by their texts."""

from pathlib import Path

import numpy as np
import pytest
from support.annotated_run import PRESETS

from cluster.settings.load import load
from data.conversation import Conversation, Message, to_table
from jobs.evaluation.deviations import label_deviations, text_deviation
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset
from jobs.runner.stage import Run


def annotated(storage: Path, *words: str) -> Run:
    """Predictions of quality crowd between 2 and 2.5; people's ratings, of every other answer, are 1 or 3."""
    run = Run(load(Preset, str(PRESETS / "oasst.yaml"), [f"storage={storage}", *words]))
    rows = []
    for n in range(400):
        turns = (Message("user", f"q{n}"), Message("assistant", "word " * (1 + n % 5)))
        human = {"quality": 1.0 if n % 4 else 3.0} if n % 2 == 0 else {}
        rows.append(Conversation("s", "", turns, human=(human,), predicted=({"quality": 2 + n / 800},), group=f"g{n}"))
    write_table(to_table(rows, run.schema), run.folder("annotated") / "rows")
    return run


def test_labels_by_rank_have_the_spread_of_the_scale(tmp_path: Path) -> None:
    found = label_deviations(annotated(tmp_path, "policy.spread_labels=true"))
    assert list(found) == ["quality"], "nobody rated the others"
    assert found["quality"] == pytest.approx(np.sqrt(2), abs=0.1), "0 to 4, each as common as the other"


def test_other_labels_are_as_wide_as_they_are_measured(tmp_path: Path) -> None:
    raw = label_deviations(annotated(tmp_path / "raw"))
    assert raw["quality"] == pytest.approx(0.5 / np.sqrt(12), abs=0.01)
    human = label_deviations(annotated(tmp_path / "human", "policy.labels=human"))
    assert human["quality"] == pytest.approx(1.0, abs=0.01)


def test_texts_have_one_too_and_without_rows_there_is_none(tmp_path: Path) -> None:
    run = annotated(tmp_path)

    def num_words(texts: list[str]) -> list[float]:
        return [float(len(text.split())) for text in texts]

    assert text_deviation(run, num_words) == pytest.approx(np.sqrt(2), abs=0.1)
    nothing = Run(load(Preset, str(PRESETS / "oasst.yaml"), [f"storage={tmp_path}/empty"]))
    assert label_deviations(nothing) == {}
    assert text_deviation(nothing, num_words) is None
