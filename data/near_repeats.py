"""Rows that say nearly what an earlier row of their source says: MinHash with locality-sensitive hashing, in buckets.

Two rows meet where a band of their MinHash signatures is equal (Broder 1997; Leskovec, Mining of Massive Datasets,
chapter 3). A row goes if its estimated Jaccard similarity, over groups of three words, to the first row it meets is the
threshold or more, even where that one went for a still earlier one. So it takes no order of decisions, and no step
holds more than one bucket of one band. Knows no Ray.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.diversity import shingles
from data.raters import RepeatCounts
from data.repeats import Changes, RowSlice, first_places, in_buckets, write_changes
from data.shards import Output, row_groups

PERMUTATIONS = 128
"""The similarity is estimated within .044 (one standard error at .5)."""
LOW_BITS = 256
"""Values that the lowest byte of a hash has: it is enough to compare two (Li and Koenig, b-bit minwise hashing)."""


def bands_of(threshold: float) -> tuple[int, int]:
    """How many bands, and how many hashes each has, find pairs of this similarity best."""
    from datasketch import MinHashLSH  # it imports scipy's integrals: a third of a second, which other steps do without

    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=PERMUTATIONS)  # above it finds no two bands
    return int(index.b), int(index.r)


def signatures_name(group: int) -> str:
    return f"signatures-{group:06d}.arrow"


def write_signatures(
    group: int, slices: Sequence[RowSlice], removed: Sequence[str], thresholds: Mapping[int, float], output: Output
) -> int:
    """A file with the signature of each row that stays so far, of sources with a threshold; how many there are."""
    changes = Changes(group, removed, output)
    found: dict[str, list[Any]] = {"position": [], "origin": [], "signature": []}
    for slice in slices:
        position = slice.position
        for table in row_groups(slice.uri, slice.start, slice.stop, ["messages"]) if slice.source in thresholds else ():
            stays = changes.staying(position, len(table))
            for place in np.flatnonzero(stays).tolist():
                found["position"].append(position + place)
                found["origin"].append(slice.source)
                found["signature"].append(_signature(table.column("messages")[place].as_py()))
            position += len(table)
    schema = pa.schema([("position", pa.int64()), ("origin", pa.int32()), ("signature", pa.binary(PERMUTATIONS * 4))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(found, schema=schema))
    output.require_owner()
    (output.pieces / signatures_name(group)).write_bytes(sink.getvalue().to_pybytes())
    return len(found["position"])


def _signature(messages: Sequence[Mapping[str, str]]) -> bytes:
    from datasketch import MinHash

    text = "\n".join(message["content"] for message in messages)
    hashes = MinHash(num_perm=PERMUTATIONS)
    hashes.update_batch([shingle.encode() for shingle in sorted(shingles(text))])
    return bytes(hashes.hashvalues.astype("<u4").tobytes())


def band_keys(
    group: int, band: int, thresholds: Mapping[int, float], num_buckets: int, output: Output
) -> pa.Table | tuple[pa.Table, ...]:
    """Columns key (of the band), position, origin and low (the lowest bytes) of the rows, a table for each bucket."""
    file = output.pieces / signatures_name(group)
    with file.arrow_fs.open_input_file(file.path) as stream, pa.ipc.open_file(stream) as reader:
        table = reader.read_all()
    sizes = {source: bands_of(threshold) for source, threshold in thresholds.items()}
    keys = []
    for origin, signature in zip(*(table.column(name).to_pylist() for name in ("origin", "signature")), strict=True):
        bands, rows = sizes[origin]
        part = signature[band * rows * 4 : (band + 1) * rows * 4] if band < bands else b""
        keys.append(hashlib.blake2b(b"%d %d " % (origin, band) + part, digest_size=16).digest() if part else None)
    hashes = np.frombuffer(b"".join(table.column("signature").to_pylist()), "<u4").reshape(-1, PERMUTATIONS)
    low = (hashes % LOW_BITS).astype(np.uint8)
    table = pa.table(
        {
            "key": pa.array(keys, pa.binary(16)),
            "position": table.column("position"),
            "origin": table.column("origin"),
            "low": pa.array([row.tobytes() for row in low], pa.binary(PERMUTATIONS)),
        }
    )
    table = table.filter(table.column("key").is_valid()).combine_chunks()
    buckets = in_buckets(table, table.column("key").to_pylist(), num_buckets)
    return tuple(buckets) if num_buckets > 1 else buckets[0]


def find_near(
    name: str,
    thresholds: Mapping[int, float],
    starts: Sequence[int],
    human: pa.Field,
    output: Output,
    *tables: pa.Table,
) -> None:
    """Write the file `name` of rows that go from a bucket of a band, as `data.repeats` writes its own."""
    table = pa.concat_tables(tables).combine_chunks()
    codes, first = first_places(table.column("key"))
    low = np.frombuffer(b"".join(table.column("low").to_pylist()), np.uint8).reshape(-1, PERMUTATIONS)
    later = np.setdiff1d(np.arange(len(table)), first)
    by_chance = 1 / LOW_BITS
    alike = (low[later] == low[first[codes[later]]]).mean(axis=1) if len(later) else np.zeros(0)
    similarity = (alike - by_chance) / (1 - by_chance)
    least = np.array([thresholds[origin] for origin in table.column("origin").take(later).to_pylist()])
    positions = table.column("position").take(later[similarity >= least]).to_pylist()
    write_changes(name, [(position, None) for position in positions], human, starts, output)


def count_near(
    group: int, slices: Sequence[RowSlice], removed: Sequence[str], near: Sequence[str], output: Output
) -> dict[int, RepeatCounts]:
    """What goes from the group by the files `near` alone, by source."""
    before, after = Changes(group, removed, output), Changes(group, near, output)
    counts: defaultdict[int, RepeatCounts] = defaultdict(RepeatCounts)
    for slice in slices:
        position = slice.position
        for table in row_groups(slice.uri, slice.start, slice.stop, ["human"]):
            goes = before.staying(position, len(table)) & ~after.staying(position, len(table))
            rated = before.with_ratings(table, position)
            position += len(table)
            for human in rated.column("human").take(np.flatnonzero(goes)).to_pylist():
                count = counts[slice.source]
                count.rows += 1
                count.near_duplicates += 1
                count.answers += len(human)
                count.rated_answers += sum(any(value == value for value in values.values()) for values in human)
    return dict(counts)
