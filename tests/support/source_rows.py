"""Records of the public formats, sound ones, and what the tests ask of the rows read from them.

Real rows lie in the folder named by STEERLM_REAL_DATA (default `../shared/data` beside the repository).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Rejected
from data.lines import Row
from data.sources import read

SCHEMA = shipped("steerlm")
HELPSTEER = shipped("helpsteer")
RATED = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}
REAL = Path(os.environ.get("STEERLM_REAL_DATA") or Path(__file__).parents[2] / "../shared/data")


def write(path: Path, *records: Any) -> str:
    """A JSONL file of `records`; bytes and strings go in as they stand."""
    encoded = [
        r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else json.dumps(r).encode() for r in records
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return str(path)


def rows(tmp_path: Path, format: str, *records: Any, schema: AttributeSchema = SCHEMA) -> list[Row]:
    return list(read(write(tmp_path / "rows.jsonl", *records), format, schema))


def good(found: list[Row]) -> list[Conversation]:
    rejected = [r for r in found if isinstance(r, Rejected)]
    assert not rejected
    return [r for r in found if isinstance(r, Conversation)]


def reasons(found: list[Row]) -> list[tuple[int, str]]:
    return [(r.line, r.reason) for r in found if isinstance(r, Rejected)]


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


def helpsteer(prompt: Any = "Why?", response: Any = "Because.", **ratings: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, **RATED, **ratings}


def oasst(
    id: str, parent: str | None, text: str, tree: str = "t", deleted: bool = False, **labels: float | None
) -> dict[str, Any]:
    """A message of a message list; prompters and assistants take turns in `text`: "u..." is the prompter's."""
    names = list(labels)
    return {
        "message_id": id,
        "parent_id": parent,
        "message_tree_id": tree,
        "text": text,
        "role": "prompter" if text.startswith("u") else "assistant",
        "deleted": deleted,
        "labels": {"name": names, "value": [labels[n] for n in names], "count": [3] * len(names)} if labels else None,
    }


def as_trees(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, a tree a line, as in the other OASST files; messages without their parent are left out."""
    nodes = {}
    for message in messages:
        labels = message["labels"] and {
            n: {"value": v, "count": c}
            for n, v, c in zip(*(message["labels"][k] for k in ("name", "value", "count")), strict=True)
        }
        nodes[message["message_id"]] = message | {"labels": labels, "replies": []}
    for node in nodes.values():
        if node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
    return [{"message_tree_id": n["message_tree_id"], "prompt": n} for n in nodes.values() if n["parent_id"] is None]


def real(name: str) -> str:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real rows at {REAL / name}; set STEERLM_REAL_DATA to their folder")
    return str(REAL / name)
