"""Readers against broken files: every ending is a row, a counted rejection or one sentence; nothing else, and soon.

Real files of every format and packing are made here, then bytes are flipped, cut, inserted and doubled. How many inputs
the slow test reads: STEERLM_FUZZ_INPUTS.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.source_rows import SCHEMA, as_trees, helpsteer, oasst

from data.benchmarks import read_answers, read_questions
from data.conversation import Conversation, Message, Rejected, to_table
from data.errors import UserError
from data.judged import read_judged
from data.pairs import read_pairs
from data.sources import FORMATS, read, read_texts
from data.verdicts import read_verdicts

QUICK_INPUTS = 300
SLOW_INPUTS = int(os.environ.get("STEERLM_FUZZ_INPUTS", 20_000))
LIMIT_S = 5.0
"""Seconds of the process that no small file may exceed; others on the machine do not count."""
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: A. é 👩\n\nHuman: So?\n\nAssistant: B."
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes? é", "attributes": {"humor": 1, "quality": 3.5}, "weight": 1},
]
TREE = [
    oasst("1", None, "u1"),
    oasst("2", "1", "a2", humor=0.5, quality=1),
    oasst("3", "2", "u3"),
    oasst("4", "1", "a4"),
]
NEMO = {
    "system": "S",
    "mask": "User",
    "conversations": [
        {"from": "User", "value": "Hi", "label": None},
        {"from": "Assistant", "value": "A", "label": "quality:4,humor:0"},
    ],
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "helpsteer": [helpsteer(), helpsteer("Hi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?")],
    "helpsteer_preference": [{"prompt": "Hi", "response_1": "A.", "response_2": "B.", "preference_strength": 2}],
    "helpsteer3": [{"context": CHAT[1:2], "response1": "A.", "response2": "B."}],
    "oasst_messages": TREE,
    "oasst_trees": as_trees(TREE),
    "hh_rlhf": [{"chosen": DIALOGUE, "rejected": DIALOGUE.replace("B.", "C.")}],
    "messages": [{"messages": CHAT}, {"prompt": "Hi", "response": "A", "attributes": {"humor": 2}}],
    "prompt_output": [{"prompt": "Hi", "output": "A</s>"}],
    "nemo": [NEMO],
    "pairs": [{"chosen": DIALOGUE, "rejected": DIALOGUE.replace("B.", "C."), "subset": "x"}],
    "judged": [{"messages": CHAT, "score": 3}],
    "texts": [{"text": "once"}],
    "questions": [{"question_id": 1, "category": "x", "turns": ["Hi", "So?"]}],
    "answers": [{"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": ["A", "B"]}]}],
    "verdicts": [{"question_id": 1, "model": "m", "judge": ["j", "single-v1"], "turn": 1, "score": 3, "judgment": "x"}],
}
OTHERS: dict[str, Callable[[str], Any]] = {
    "pairs": lambda uri: read_pairs(uri, SCHEMA, "s"),
    "judged": lambda uri: read_judged(uri, SCHEMA, "s"),
    "texts": read_texts,
    "questions": read_questions,
    "answers": lambda uri: [read_answers(uri)],
    "verdicts": lambda uri: read_verdicts(uri, {}),
}


def _zip(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jsonl", content)
    return packed.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.bz2": bz2.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zip": _zip,
    ".jsonl.zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _whole_files() -> list[tuple[str, str, bytes]]:
    """Format, suffix and content of a sound file of every kind."""
    files = []
    for format, records in RECORDS.items():
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records * 2).encode()
        # A packed file breaks in its packing, so plain ones, whose records break, come more often.
        files += [(format, suffix, pack(content)) for suffix, pack in PACKERS.items()]
        files += [(format, ".jsonl", content)] * 6
        files.append(
            (format, ".parquet", _parquet(pa.Table.from_pylist(records[: 1 if format == "messages" else None])))
        )
    own = Conversation(
        "s", "S", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": 1.0},), predicted=({},)
    )
    return [*files, *[("steerlm", ".parquet", _parquet(to_table([own], SCHEMA)))] * 9]


PIECES = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
    ),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"9" * 5000, b'"\\ud83d"', b"\\u0000", b"{}", b"[]"),
    *(b'"weight": 0,', b'"humor": 3,', b'"HUMOR": 3,', b'"attributes": {"quality": 2},', b"[" * 3000, b'"a": ' * 3),
    *(b'"role": "tool",', b'"messages": 1,', b"\x1b]0;x\x07", b"PK\x03\x04", b"\x1f\x8b", b"PAR1"),
]


def _mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four faults."""
    broken = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(broken) + 1)
        end = min(len(broken), place + draw.choice([1, 2, 8, 64, 1000]))
        match draw.randrange(6):
            case 0 if broken:
                broken[place % len(broken)] ^= 1 << draw.randrange(8)
            case 1:
                del broken[place:end]
            case 2:
                del broken[place:]
            case 3:
                broken[place:place] = draw.choice(PIECES)
            case 4:
                broken[place:place] = broken[place:end] * draw.choice([1, 2, 50])
            case _:
                broken[place:end] = draw.randbytes(end - place)
    return bytes(broken)


def _ending(format: str, uri: str) -> str:
    """How reading the file ended: in words to count by. Anything but rows, rejections and a sentence is raised."""
    started = time.process_time()
    rejected, sentence = 0, ""
    try:
        rows: Iterator[Any] = iter(OTHERS[format](uri) if format in OTHERS else read(uri, format, SCHEMA))
        for row in rows:
            if isinstance(row, Rejected):
                rejected += 1
                assert row.reason.isidentifier(), row
                assert row.detail, row
                assert len(row.detail) <= 400, row
                assert row.detail.isprintable(), row
            elif isinstance(row, Conversation):
                to_table([row], SCHEMA)
    except UserError as error:
        sentence = str(error)
    assert time.process_time() - started < LIMIT_S
    assert len(sentence) <= 400, sentence
    assert sentence.isprintable(), sentence
    return "sentence" if sentence else "rejections" if rejected else "rows"


def _fuzz(folder: Path, inputs: int, seed: int) -> Counter[str]:
    draw, files, endings = random.Random(seed), _whole_files(), Counter[str]()
    for _ in range(inputs):
        format, suffix, content = draw.choice(files)
        file = folder / f"x{suffix}"
        file.write_bytes(_mutated(content, draw))
        try:
            endings[_ending(format, str(file))] += 1
        except Exception as error:
            (folder / f"failed{suffix}").write_bytes(file.read_bytes())
            raise AssertionError(f"{format} {folder}/failed{suffix}") from error
    return endings


def test_sound_files_are_read_whole(tmp_path: Path) -> None:
    for format, suffix, content in _whole_files():
        file = tmp_path / f"x{suffix}"
        file.write_bytes(content)
        twice = format in ("oasst_messages", "questions", "answers") and suffix != ".parquet"
        expected = {"questions": "sentence", "answers": "sentence"}.get(format, "rejections") if twice else "rows"
        assert _ending(format, str(file)) == expected, (format, suffix)
    assert {format for format, _, _ in _whole_files()} == {*FORMATS, *OTHERS}


@pytest.mark.case("readers: a fuzz")
def test_broken_files_end_in_rejections_or_one_sentence(tmp_path: Path) -> None:
    endings = _fuzz(tmp_path, QUICK_INPUTS, seed=1)
    assert set(endings) == {"rows", "rejections", "sentence"}


@pytest.mark.slow
@pytest.mark.case("readers: a fuzz")
def test_many_broken_files_end_in_rejections_or_one_sentence(tmp_path: Path) -> None:
    started = time.monotonic()
    endings = _fuzz(tmp_path, SLOW_INPUTS, seed=2)
    print(f"{SLOW_INPUTS:,} inputs in {time.monotonic() - started:.0f} s: {dict(endings)}")
    assert endings.total() == SLOW_INPUTS
    assert min(endings.values()) > SLOW_INPUTS / 50


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(RECORDS)), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_column_ends_in_a_rejection_or_one_sentence(
    tmp_path: Path, format: str, data: st.DataObject
) -> None:
    record = json.loads(json.dumps(data.draw(st.sampled_from(RECORDS[format]))))
    at = record
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at)) if isinstance(at, dict) else st.integers(0, len(at) - 1))
        if not isinstance(at[key], dict | list) or data.draw(st.booleans()):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    _ending(format, str(tmp_path / "x.jsonl"))
