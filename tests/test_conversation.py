import pyarrow.parquet as pq
import pytest

from data.attributes import shipped
from data.conversation import Conversation, Message, arrow_schema, from_table, problem, schema_of, to_table

SCHEMA = shipped("lab")
TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))


def test_rows_survive_arrow_with_unrated_values(tmp_path: object) -> None:
    row = Conversation(
        "s",
        "sys",
        TURNS,
        human=({"humor": 2.25}, {}),
        predicted=({}, {"humor": 1.5, "toxicity": 0.0}),
        tokens=7,
        truncated=True,
    )
    path = f"{tmp_path}/rows.parquet"
    pq.write_table(to_table([row], SCHEMA), path)
    table = pq.read_table(path)
    assert schema_of(table.schema, path) == SCHEMA
    (back,) = from_table(table)
    assert back == Conversation(**{**vars(row), "requested": ({}, {})})


def test_ids_come_from_content_and_nothing_else() -> None:
    row = Conversation("s", "", TURNS)
    assert row.id == Conversation("s", "", TURNS, human=({"humor": 1}, {})).id
    assert row.id != Conversation("other", "", TURNS).id
    assert row.group == row.id


def test_a_file_without_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.parquet carries no attribute schema"):
        schema_of(arrow_schema(SCHEMA).remove_metadata(), "x.parquet")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((), "no_messages"),
        ((Message("user", "a"),), "no_answer"),
        ((Message("assistant", "a"),), "roles_do_not_alternate"),
        ((Message("user", "a"), Message("tool", "b")), "unknown_role"),
        ((Message("user", "a"), Message("assistant", " \n")), "empty_message"),
        (TURNS, ""),
    ],
)
def test_problem(turns: tuple[Message, ...], reason: str) -> None:
    assert problem(turns) == reason
