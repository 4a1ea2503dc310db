"""Tokenizing during the training changes nothing in it, and an error names the side that failed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.modeling.policy import PolicyTask
from actors.training.examples import ConversationExamples, ExampleSpec
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.conversation import to_table
from data.examples import Split
from data.lab import Lab, LabSettings
from data.loader import SHARD_ROWS, Corpus, DataLoader, counts
from data.shard_list import ShardList
from data.shards import Input, Output
from data.storage import Storage
from jobs.pipelines import tokenize
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.tokenize import POOL, Tokenizing, _first_epoch
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
SETTINGS = LearnerSettings(
    precision="fp32", pack_tokens=256, max_tokens=256, packs_per_step=4, learning_rate=3e-3, validate_every=0.5
)


@pytest.fixture
def rows(tmp_path: Path) -> Storage:
    found = list(Lab(LabSettings(num_rows=120)).rows())
    folder = Storage(str(tmp_path)) / "rows"
    for part in range(3):
        write_table(to_table(found[part::3], SCHEMA), folder, f"part-{part}.parquet")
    return folder


def tokenizing(rows: Storage, base: str, target: Storage, maker: type[Any] = ConversationExamples) -> Tokenizing:
    return Tokenizing("test", [rows], maker, {"spec": ExampleSpec(base, SCHEMA, "steerlm", 256)}, target, "fingerprint")


@pytest.mark.slow
@pytest.mark.ray
def test_meanwhile_trains_as_before(
    ray_cluster: object, tiny_base: str, rows: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, folder = PolicyTask(tiny_base, SCHEMA, "steerlm"), Storage(str(tmp_path))
    tokenizing(rows, tiny_base, folder / "first").all()
    expected = fit("test", task, SETTINGS, Corpus.of(folder / "first"), folder / "one", Split(8))
    with tokenizing(rows, tiny_base, folder / "meanwhile").meanwhile(SETTINGS) as examples:
        assert examples.streaming
        found = fit("test", task, SETTINGS, examples, folder / "other", Split(8))
    assert "tokenizing while it trains" in capsys.readouterr().out
    assert found.losses == expected.losses
    assert found.validation_loss == expected.validation_loss
    cut = sum(turns > 0 for table in (folder / "first").tables() for turns in table.column("cut_turns").to_pylist())
    assert counts(folder / "meanwhile") == counts(folder / "first") == {"examples": 120, "cut": cut}
    # All is there now: nothing is made again.
    with tokenizing(rows, tiny_base, folder / "meanwhile").meanwhile(SETTINGS) as examples:
        assert examples.streaming is None


@pytest.mark.parametrize(("most", "actors"), [(120, 1), (119, 2)])
def test_few_rows_have_one_actor(
    most: int, actors: int, rows: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would take the CPU from the training that starts beside it."""
    pools: list[WorkerPool] = []
    monkeypatch.setattr(tokenize, "ROWS_OF_ONE", most)
    monkeypatch.setattr(tokenize, "map_rows", lambda *arguments, **_: pools.append(arguments[4]))
    tokenizing(rows, "base", Storage(str(tmp_path / "out"))).all()
    assert [pool.num_actors for pool in pools] == [actors]


def test_rows_are_tokenized_in_the_order_in_which_the_first_epoch_reads_them(tmp_path: Path) -> None:
    sizes = {"b.parquet": 9000, "a.parquet": 700, "c.parquet": 2048, "d.parquet": 30_001}
    inputs = [Input(f"/rows/{part}", part, rows) for part, rows in sizes.items()]
    corpus = Corpus.from_inputs(inputs, Output(str(tmp_path / "out"), "f"), POOL.batch_rows)
    shards = ShardList.of(inputs, POOL.batch_rows)
    found = _first_epoch(corpus, SETTINGS)(shards)
    loader = DataLoader(corpus, Split(), SETTINGS.pack_tokens, SETTINGS.packs_per_step, seed=SETTINGS.seed)
    read = [corpus.shards[number] for window in loader.windows(0) for number in window]
    place = {(shard.part, shard.start): number for number, shard in enumerate(read)}

    def place_of(number: int) -> tuple[int, int]:
        piece = shards[number]
        return place[piece.part, piece.start // SHARD_ROWS * SHARD_ROWS], piece.start

    assert found.tolist() == sorted(range(len(shards)), key=place_of)
    assert found.tolist() != sorted(found.tolist())


@pytest.mark.ray
def test_without_spare_cpus_all_are_tokenized_first(
    ray_cluster: object, tiny_base: str, rows: Storage, tmp_path: Path
) -> None:
    with tokenizing(rows, tiny_base, Storage(str(tmp_path / "out"))).meanwhile(
        SETTINGS.model_copy(update={"cpus_per_worker": 5.0})
    ) as examples:
        assert examples.streaming is None
        assert examples.num_rows == 120


@pytest.mark.ray
@pytest.mark.slow
def test_a_user_error_in_the_rows_ends_both(ray_cluster: object, tiny_base: str, rows: Storage, tmp_path: Path) -> None:
    class Refusing(ConversationExamples):  # in a function, so that it travels by value
        def __call__(self, batch: pa.Table) -> pa.Table:
            raise OSError("row 7 is upside down")

    folder = Storage(str(tmp_path))
    with (
        pytest.raises(StageError, match="row 7 is upside down"),
        tokenizing(rows, tiny_base, folder / "examples", Refusing).meanwhile(SETTINGS) as examples,
    ):
        fit("test", PolicyTask(tiny_base, SCHEMA, "steerlm"), SETTINGS, examples, folder / "out", Split(8))


@pytest.mark.ray
@pytest.mark.slow
def test_a_user_error_in_training_ends_both(ray_cluster: object, tiny_base: str, rows: Storage, tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    picky = SETTINGS.model_copy(update={"validate_every": 1.0})
    with (
        pytest.raises(StageError, match="no example is held out"),
        tokenizing(rows, tiny_base, folder / "examples").meanwhile(picky) as examples,
    ):
        fit("test", PolicyTask(tiny_base, SCHEMA, "steerlm"), picky, examples, folder / "out", Split(10**6, 1))
