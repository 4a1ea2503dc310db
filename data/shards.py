"""The unit of a pipeline: a slice of one Parquet file in, one *piece* file out; a file's pieces become a *part*.

Exactly once by construction: a piece is a function of its shard alone and appears whole, under its shard's name.
A shard that is done again puts the same file in the same place. Knows no Ray, no model and no column.

Ray Data's own checkpointing holds the ids of all committed rows in every filter actor and reads all input again on a
resume, and some of its settings silently lose or double rows (`from_items` sources, OVERWRITE). File names need no ids.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from data.counters import Counters, added, counters_of, with_counters
from data.lease import Fence, current_fence
from data.row_digest import CONTENT_KEY, RowDigest
from data.storage import Storage

FINGERPRINT_KEY = b"steerlm.stamp"
"""Where a part carries the fingerprint of its inputs: one with another is rebuilt. Stored, so the key stays."""
ROWS_PER_GROUP = 256
"""Rows of a Parquet row group: what a worker reads at least."""
FOOTERS_AT_ONCE = 16
"""Footers read at a time; an object store takes tens of milliseconds for each."""
FOOTERS_IN_TURN = 1024
"""Footers asked for before the first is used."""


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of the Parquet file at `uri`, whose output is the part called `part`."""

    uri: str
    part: str
    start: int
    stop: int

    @property
    def piece(self) -> str:
        """The name of its output."""
        return f"{self.part.removesuffix('.parquet')}.{self.start:09d}-{self.stop:09d}.parquet"


@dataclass(frozen=True)
class Input:
    """One Parquet file to read, and the name of its part."""

    uri: str
    part: str
    num_rows: int

    def shards(self, rows: int) -> list[Shard]:
        """Slices of at most `rows` rows."""
        return [
            Shard(self.uri, self.part, start, min(start + rows, self.num_rows))
            for start in range(0, self.num_rows, rows)
        ]


@dataclass(frozen=True)
class Output:
    """Where parts and pieces are. Pieces are in a folder that `fingerprint` names, so that two runs never mix."""

    uri: str
    fingerprint: str
    fence: Fence | None = field(default_factory=current_fence, compare=False)
    """Workers that outlive their driver write nothing once another has taken over."""
    variant: str = ""
    """Of the pieces: who cuts the same input in another way does not go on with them."""

    @property
    def parts(self) -> Storage:
        return Storage(self.uri)

    @property
    def all_pieces(self) -> Storage:
        return Storage(f"{self.uri}.pieces")

    @property
    def totals(self) -> Storage:
        """The sum of the counters of all parts, as JSON, written when all parts are there."""
        return Storage(f"{self.uri}.counters.json")

    @property
    def pieces(self) -> Storage:
        # Without a fingerprint nobody resumes, so each driver has a folder of its own.
        owner = self.fingerprint or (self.fence.token if self.fence else "unstamped")
        return self.all_pieces / f"{owner}{self.variant}"

    def require_owner(self) -> None:
        """Raise LeaseLost if another driver has taken over."""
        if self.fence:
            self.fence.require()

    def finished(self, inputs: Sequence[Input]) -> dict[str, Counters]:
        """The counters of the parts that are there and have this fingerprint, by name."""
        return {inputs[number].part: counters for number, counters in self.each_finished(inputs)}

    def each_finished(self, inputs: Sequence[Input]) -> Iterator[tuple[int, Counters]]:
        """The number in `inputs` and the counters of each of these parts, in order; no more is held than is read."""
        present = set(self.parts.names(".parquet"))
        found = [number for number, file in enumerate(inputs) if file.part in present]
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            for first in range(0, len(found), FOOTERS_IN_TURN):
                some = found[first : first + FOOTERS_IN_TURN]
                all_counters = pool.map(self._counters, [inputs[number].part for number in some])
                pairs = zip(some, all_counters, strict=True)
                yield from ((number, counters) for number, counters in pairs if counters is not None)

    def finished_part(self, part: str) -> Counters | None:
        """The counters of a part that is there and has this fingerprint, else None."""
        return self._counters(part) if (self.parts / part).exists() else None

    def _counters(self, part: str) -> Counters | None:
        file = self.parts / part
        schema = pq.read_schema(file.path, filesystem=file.arrow_fs)
        return counters_of(schema) if fingerprint_of(schema) == self.fingerprint else None

    def sweep(self) -> None:
        """Remove what dead writers left half-written among the parts."""
        self.parts.remove_files(self.parts.names(".tmp"))


def inputs_of(sources: Sequence[Storage]) -> list[Input]:
    """The non-empty Parquet files of the folders, in order; with several folders, parts begin with its number."""
    files = [
        (source / name, name.replace("/", "-") if len(sources) == 1 else f"{number:02d}-{name.replace('/', '-')}")
        for number, source in enumerate(sources)
        for name in source.names(".parquet")
    ]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        counts = list(pool.map(lambda f: int(pq.read_metadata(f[0].path, filesystem=f[0].arrow_fs).num_rows), files))
    return [Input(file.uri, part, rows) for (file, part), rows in zip(files, counts, strict=True) if rows]


def fingerprint_of(schema: pa.Schema) -> str:
    """The fingerprint of the file's inputs; "" if it has none."""
    return (schema.metadata or {}).get(FINGERPRINT_KEY, b"").decode()


def read(shard: Shard) -> pa.Table:
    """The shard's rows; only the row groups they lie in are read."""
    tables = list(row_groups(shard.uri, shard.start, shard.stop))
    assert tables, f"{shard} lies outside its file: the input changed while it was read"
    return pa.concat_tables(tables).combine_chunks()


def row_groups(uri: str, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows [start, stop) of a Parquet file, all columns or some: a table of each row group that they lie in."""
    file = Storage(uri)
    with file.arrow_fs.open_input_file(file.path) as stream, pq.ParquetFile(stream, pre_buffer=True) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if first < stop and start < end:
                table = parquet.read_row_group(group, columns and list(columns))
                yield table.slice(max(start - first, 0), min(stop, end) - max(start, first))
            first = end


def packed(table: pa.Table) -> bytes:
    """A table, metadata and all, as one value that nobody can split."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpacked(payload: bytes | pa.Buffer) -> pa.Table:
    """The inverse of `packed`; no copy of a buffer."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def write(tables: Iterable[pa.Table], schema: pa.Schema, file: Storage) -> None:
    """One Parquet file, whole or not at all, with the metadata of `schema`; `tables` are taken one at a time.

    Its footer also has the digest of its rows (`data.row_digest`).
    """
    # The digest of another file's rows, which came with them, would be there twice.
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != CONTENT_KEY}
    sink, digest = pa.BufferOutputStream(), RowDigest(schema)
    with pq.ParquetWriter(sink, schema.with_metadata(metadata), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(metadata), row_group_size=ROWS_PER_GROUP)
            digest.update(table)
        writer.add_key_value_metadata({CONTENT_KEY: digest.hexdigest()})
    file.write_bytes(sink.getvalue().to_pybytes())


def write_piece(table: pa.Table, shard: Shard, output: Output) -> None:
    """The shard's output, in its place."""
    output.require_owner()
    write([table], table.schema, output.pieces / shard.piece)


def merge(part: str, pieces: Sequence[str], output: Output) -> Counters:
    """The part from its `pieces`, in their order, which are then removed; returns its counters.

    May be done again at any point: a part that is there stays, and only what is left of the pieces goes.
    """
    counters = output.finished_part(part)
    if counters is None:
        schemas = [pq.read_schema((output.pieces / name).path, filesystem=output.pieces.arrow_fs) for name in pieces]
        counters = added(map(counters_of, schemas))
        schema = with_counters(schemas[0].empty_table(), counters).schema
        write_part(part, _tables(pieces, output.pieces), schema, output)
    output.pieces.remove_files(pieces)
    return counters


def write_part(part: str, tables: Iterable[pa.Table], schema: pa.Schema, output: Output) -> None:
    """A part that carries the fingerprint of its inputs, in its place."""
    metadata = (schema.metadata or {}) | {FINGERPRINT_KEY: output.fingerprint.encode()}
    output.require_owner()
    write(tables, schema.with_metadata(metadata), output.parts / part)


def _tables(names: Iterable[str], folder: Storage) -> Iterator[pa.Table]:
    fs, path = folder.arrow_fs, folder.path
    for name in names:
        yield pq.read_table(posixpath.join(path, name), filesystem=fs)
