"""Pairs through the real predictor: read, scored by Ray Data, counted."""

import json
from pathlib import Path

import pytest

from cluster.settings.load import load
from data.pairs import pair_weights
from data.run_layout import as_json
from data.storage import Storage
from jobs.evaluation.predictor_pairs import StoredPairs, judge_pairs, store_pairs
from jobs.pipelines.annotation import annotator
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError
from jobs.train_predictor import STAGE

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def _run(tmp_path: Path, pairs: Path | str, *more: str) -> Run:
    return Run(
        load(Preset, DEMO, [f"storage={tmp_path / 'runs'}", f"predictor.pairs=[{{name: hh, uri: {pairs}}}]", *more])
    )


def _file(tmp_path: Path, *answers: tuple[str, str], broken: int = 0) -> Path:
    file = tmp_path / "pairs.jsonl"
    records = [
        json.dumps({"prompt": "Tell me about owls.", "chosen": chosen, "rejected": rejected})
        for chosen, rejected in answers
    ]
    file.write_text("".join(r + "\n" for r in [*records, *["{"] * broken]))
    return file


@pytest.mark.ray
def test_pairs_are_scored_and_counted(tmp_path: Path, tiny_predictor: str, ray_cluster: object) -> None:
    file = _file(
        tmp_path,
        ("Owls fly at night.", "No."),
        ("Owls fly.", "Owls fly at night, and hunt mice."),
        ("Yes.", "Nay."),
        broken=1,
    )
    run = _run(tmp_path, file, "rows.max_rejected=0.5", "rows.rows_per_file=2")
    folder = Storage(str(tmp_path / "pairs"))
    stored = store_pairs(run, folder, run.preset.predictor.pairs)
    assert stored == {"hh": StoredPairs(3, {"broken_json": 1})}
    assert len((folder / "hh" / "rows").files(".parquet")) == 2
    assert json.loads((tmp_path / "pairs" / "hh" / "rejected.jsonl").read_text())["line"] == 4
    arguments = annotator(run, folder) | {"predictor": tiny_predictor}
    (metrics,) = judge_pairs(run, stored, folder, arguments, pair_weights(run.schema, {})).values()
    assert (metrics.pairs, metrics.unscored, metrics.predictor.n) == (3, 0, 3)
    length = metrics.length.model_dump() | {"low": 0, "high": 0}
    assert length == {"n": 3, "ties": 1, "accuracy": 0.5, "low": 0, "high": 0}
    assert metrics.weights == {"helpfulness": 0.5, "creativity": 0, "humor": 0, "toxicity": -0.5, "verbosity": 0}
    json.dumps(as_json(metrics), allow_nan=False)


def test_too_many_broken_pairs_stop_the_stage_before_training(tmp_path: Path) -> None:
    run = _run(tmp_path, _file(tmp_path, ("Yes.", "No."), broken=1))
    with pytest.raises(
        StageError,
        match=r"predictor.pairs 'hh': 1 pairs and 1 broken ones .* rows.max_rejected allows 1.0%: "
        r".* line 2: broken_json",
    ):
        store_pairs(run, Storage(str(tmp_path / "pairs")), run.preset.predictor.pairs)
    empty = _run(tmp_path, _file(tmp_path))
    with pytest.raises(StageError, match=r"0 pairs .* the file is empty"):
        store_pairs(empty, Storage(str(tmp_path / "pairs")), empty.preset.predictor.pairs)


def test_a_missing_pair_file_is_missed_at_once_and_a_changed_one_runs_the_stage_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        STAGE.inputs(_run(tmp_path, tmp_path / "nowhere.jsonl"))
    before = STAGE.inputs(_run(tmp_path, _file(tmp_path, ("Yes.", "No."))))
    after = STAGE.inputs(_run(tmp_path, _file(tmp_path, ("Yes.", "No."), ("Yes!", "No."))))
    assert before.keys() == after.keys()
    assert before != after


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("predictor.pair_weights={humour: 1}", "did you mean 'humor'"),
        ("predictor.pair_weights={humor: 0}", "all pairs would tie"),
        (
            "predictor.pairs=[{name: a, uri: x}, {name: a, uri: y}]",
            "predictor.pairs has the names a, a; give each set a different name",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(tmp_path: Path, setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _run(tmp_path, "pairs.jsonl", setting)
