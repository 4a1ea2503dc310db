"""Exports of a run: whole or not at all, counted; plain transformers and datasets load them with the same result."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import ModelCard
from support.exported_run import export_to, put_model
from support.manifests import finish

from actors.generation.protocol import Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy
from actors.scoring.annotator import Annotator
from cluster.settings.errors import SettingsError
from data.attributes import shipped
from data.conversation import Conversation, Message, from_table, to_table
from data.response_groups import Response, groups_table, read_steerlm2, response_group
from data.sources import read
from data.stage_metrics import RowsMetrics, StageMetrics
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
TURNS = (Message("user", "Tell me about owls."), Message("assistant", "Owls hunt at night."))


def _row(
    number: int, human: dict[str, float], predicted: dict[str, float], answer: str = "Owls hunt at night."
) -> Conversation:
    turns = (Message("user", f"Question {number}: <extra_id_1>\r\n"), Message("assistant", answer))
    return Conversation("lab", "Be kind.", turns, human=(human,), predicted=(predicted,), predictor="p", tokens=9)


ROWS = [
    _row(0, {"humor": 1.0}, {"humor": 0.5, "toxicity": -0.25}),
    _row(1, {}, {"humor": 4.5, "toxicity": 2.0}),
    _row(2, {}, {}),
    _row(3, {"humor": 2.0}, {"humor": 2.0}, " "),
]


@pytest.fixture
def storage(tmp_path: Path, tiny_policy: str, tiny_predictor: str) -> Path:
    """A finished run: rows, annotated rows, a round's samples, and both models."""
    root = tmp_path / "runs" / "demo"
    metrics = {"rows": RowsMetrics(counts={}, rows=len(ROWS))}
    for stage in ("rows", "annotated", "bootstrap-1/selected"):
        write_table(to_table(ROWS[:2], SCHEMA), Storage(str(root / stage / "rows")))
        write_table(to_table(ROWS[2:], SCHEMA), Storage(str(root / stage / "rows")), "part-00001.parquet")
        finish(Storage(str(root)), stage, metrics.get(stage, StageMetrics()))
    for kind, folder in (("policy", tiny_policy), ("predictor", tiny_predictor)):
        put_model(root, kind, folder)
    return tmp_path / "runs"


def test_annotated_rows_for_nemo_are_labelled_as_the_policy_is_and_counted(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "nemo"
    metrics = export_to(storage, to, "what=annotated", "format=nemo", "only_rated=true")
    assert (metrics["rows"], metrics["parts"], metrics["left_out"]) == (2, 1, {"unrated": 1, "empty_message": 1})
    # Calibrated: 2 * 0.5 - 0.5 = 0.5, rounded to even; 2 * 4.5 - 0.5 is above the scale; toxicity is not calibrated.
    assert metrics["lost"] == {"values_clipped": 2, "values_rounded": 1}
    found = list(read(str(to / "part-00000.jsonl"), "nemo", SCHEMA, source="lab"))
    assert [row.human for row in found if isinstance(row, Conversation)] == [
        ({"humor": 0.0, "toxicity": 0.0},),
        ({"humor": 4.0, "toxicity": 2.0},),
    ]
    assert sorted(os.listdir(to)) == ["README.md", "export.json", "part-00000.jsonl"]
    assert json.loads((to / "export.json").read_text())["finished"] is True


@pytest.mark.parametrize(
    ("what", "values", "humor"), [("rows", "human", [1.0, None, None]), ("selected", "predicted", [0.5, 4.0, None])]
)
def test_rows_as_messages_load_with_datasets_and_with_our_own_reader(
    storage: Path, tmp_path: Path, what: str, values: str, humor: list[float | None]
) -> None:
    to = tmp_path / "messages"
    metrics = export_to(storage, to, f"what={what}", f"values={values}")
    assert (metrics["format"], metrics["rows"], metrics["left_out"]) == ("messages", 3, {"empty_message": 1})
    loaded = datasets.load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    answers = [row["messages"][-1]["attributes"] for row in loaded]
    assert [a and a["humor"] for a in answers] == humor
    ours = [row for row in read(str(to), "messages", SCHEMA, source="lab") if isinstance(row, Conversation)]
    assert [(row.id, row.messages, row.system) for row in ours] == [
        (row.id, row.messages, row.system) for row in ROWS[:3]
    ]


def test_parquet_has_all_columns_and_loads_with_datasets(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "parquet"
    assert export_to(storage, to, "what=annotated", "format=parquet")["rows"] == 4
    for loaded in (
        datasets.load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache")),
        datasets.load_dataset(
            "parquet", data_files=f"{to}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
        ),
    ):
        assert list(from_table(loaded.with_format("arrow")[:])) == list(from_table(to_table(ROWS, SCHEMA)))
    assert list(read(str(to), "steerlm", SCHEMA))[:3] == list(from_table(to_table(ROWS[:3], SCHEMA)))


def test_a_rounds_weighed_answers_are_written_as_nemo_aligner_reads_them(storage: Path, tmp_path: Path) -> None:
    responses = [Response(f"Owls hunt, {n}.", -0.5 - n, -9.0, -8.0) for n in range(3)]
    group = response_group("s", "g", "", TURNS[:1], {"humor": 4.0}, responses)
    with pytest.raises(StageError, match="bootstrap-1/selected has no weights of answers"):
        export_to(storage, tmp_path / "none", "what=selected", "format=steerlm2")
    write_table(groups_table([group]), Storage(str(storage / "demo/bootstrap-1/selected/groups")))
    metrics = export_to(storage, tmp_path / "to", "what=selected", "format=steerlm2")
    assert (metrics["prompts"], metrics["responses"], metrics["parts"]) == (1, 3, 1)
    [found] = read_steerlm2(str(tmp_path / "to"), SCHEMA, "s")
    assert (found.responses, found.requested, found.messages) == (group.responses, group.requested, group.messages)
    assert sorted(os.listdir(tmp_path / "to")) == ["README.md", "export.json", "part-00000.jsonl"]
    loaded = datasets.load_dataset(str(tmp_path / "to"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["responses"][1]["log(Q(y|a,x))"] == -8.0
    for word, said in (("what=annotated", "set it to selected"), ("only_rated=true", "only_rated would be ignored")):
        words = {"what": "what=selected", word.split("=")[0]: word}
        with pytest.raises(SettingsError, match=said):
            export_to(storage, tmp_path / "wrong", "format=steerlm2", *words.values())


def _snippet(folder: Path) -> dict[str, Any]:
    """What the card's example leaves behind when it is run as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_cards_example_answers_greedily_what_our_engine_does(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "policy"
    export_to(storage, to, "what=policy", "license=apache-2.0", "datasets=[nvidia/HelpSteer2]", "round=0")
    card = ModelCard.load(to / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == (
        "apache-2.0",
        "text-generation",
        "transformers",
    )
    assert (card.data.datasets, card.data.tags) == (["nvidia/HelpSteer2"], ["steerlm"])
    names = _snippet(to)
    policy = Policy.load(str(to))
    assert names["model"].generation_config.eos_token_id == sorted(policy.stop_ids)
    prompt = policy.prompt("", [Message("user", "Tell me about owls.")], names["requested"])
    assert prompt == names["prompt"]["input_ids"][0].tolist()
    engine = TransformersEngine(policy, max_num_seqs=1)
    ((ours, _),) = complete(engine, [(prompt, Sampling(max_tokens=128, temperature=0.0))])
    engine.close()
    theirs = [i for i in names["answer"].tolist() if i not in policy.stop_ids]
    assert theirs == ours
    assert len(theirs) > 1


def test_the_predictors_example_scores_as_ours_do(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "predictor"
    export_to(storage, to, "what=predictor")
    assert ModelCard.load(to / "README.md").data.pipeline_tag == "text-classification"
    theirs = {score["label"]: score["score"] for score in _snippet(to)["scores"]}
    annotator = Annotator(str(to), SCHEMA, "f", pack_tokens=512, max_tokens=512, dtype="float32", num_threads=1)
    (ours,) = annotator.annotated([Conversation("t", "", TURNS)])
    assert ours.predicted[0].keys() == theirs.keys()
    np.testing.assert_allclose(
        [ours.predicted[0][name] for name in SCHEMA.names], [theirs[name] for name in SCHEMA.names], atol=1e-4
    )


def test_an_export_is_replaced_and_nothing_else_ever_is(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    export_to(storage, to, "what=rows")
    export_to(storage, to, "what=predictor")
    assert not list(to.glob("*.jsonl"))
    (to / "mine.txt").write_text("keep me")
    with pytest.raises(StageError, match=r"mine\.txt is no part of an earlier export"):
        export_to(storage, to, "what=rows")
    with pytest.raises(StageError, match="is no part of an earlier export"):
        export_to(storage, storage / "demo" / "policy", "what=rows")
    assert (to / "model.safetensors").exists()


@pytest.mark.case("A2: an export's folder")
@pytest.mark.parametrize(
    "manifest", ["{}", "[]", '{"names": ["mine.txt", "export.json"]}', '{"finished": "yes"}', "no JSON", "null"]
)
def test_an_export_json_of_somebody_else_gives_no_right_to_a_folder(
    storage: Path, tmp_path: Path, manifest: str
) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "export.json").write_text(manifest)
    (to / "mine.txt").write_text("mine")
    with pytest.raises(StageError, match=r"export\.json is no part of an earlier export"):
        export_to(storage, to, "what=rows")
    assert (to / "mine.txt").read_text() == "mine"


@pytest.mark.case("A2: an export's folder")
def test_a_killed_export_is_replaced_and_what_lies_beside_it_is_not(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "export.json").write_text('{"finished": false}')
    for name in ("part-00000.jsonl", "model-00001-of-00002.safetensors", "tokenizer.json", "README.md"):
        (to / name).write_text("half")
    (to / "part-a.jsonl").write_text("mine")
    with pytest.raises(StageError, match=r"part-a\.jsonl is no part of an earlier export"):
        export_to(storage, to, "what=rows")
    (to / "part-a.jsonl").unlink()
    export_to(storage, to, "what=rows")
    assert not (to / "tokenizer.json").exists()


@pytest.mark.case("A2: links")
def test_an_export_does_not_replace_what_a_link_names(storage: Path, tmp_path: Path) -> None:
    export_to(storage, tmp_path / "out", "what=rows")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(StageError, match="a symbolic link"):
        export_to(storage, tmp_path / "link", "what=rows")
    assert (tmp_path / "out" / "export.json").exists()


def test_a_failed_export_leaves_what_was_there(storage: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    export_to(storage, to, "what=rows")
    before = sorted(os.listdir(to))
    shutil.rmtree(storage / "demo" / "rows" / "rows")
    write_table(to_table(ROWS[3:], SCHEMA), Storage(str(storage / "demo" / "rows" / "rows")))
    with pytest.raises(StageError, match=r"none of the 1 rows .* was left \({'empty_message': 1}\)"):
        export_to(storage, to, "what=rows")
    assert sorted(os.listdir(to)) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "runs"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["what=policy", "format=nemo"], "format would be ignored: what is policy"),
        (["what=rows", "format=parquet", "values=human"], "values would be ignored: format is parquet"),
        (["what=rows", "round=1"], "round would be ignored"),
        (["what=selected", "round=0"], "round is 0"),
        (["what=policies"], "what"),
        (["what=policy", "license=Apache 2"], "license"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(
    storage: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        export_to(storage, tmp_path / "out", *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["what=selected", "round=7"], "bootstrap-7/selected is not finished"),
        (["what=policy", "round=1"], "bootstrap-1/policy is not finished"),
        (["what=rows", "values=labels"], "set what=annotated, or values=human"),
        (["what=policy", "push=me/model"], "HF_TOKEN is not set in the environment"),
        (["what=policy", "push=no//name"], "no name of a repository"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(StageError, match=re.escape(sentence)):
        export_to(storage, tmp_path / "out", *words)
    assert os.listdir(tmp_path) == ["runs"]
