"""The files of a model's weights, written by all workers at the same time. No worker ever holds the model whole.

    {model}.partial/model-00001-of-00030.safetensors.json   a mark beside each file that is whole, until the end
    {model}.partial/model-00001-of-00030.safetensors        on a disk; an object store cannot rename: there in {model}/

Each file has an owner, who gets its values from the others and writes it. A killed export is gone on with: files that
are whole and hold the very weights of this export are kept. Knows no configuration and no tokenizer.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from actors.training.collectives import agree_all, gathered, meet
from actors.training.export_form import Unit, converted, units
from actors.training.export_marks import fingerprints, is_whole, write_mark
from actors.training.export_plan import Group, file_name, owners
from actors.training.shard_layout import ShardLayout
from actors.training.shard_writer import ShardWriter
from actors.training.weight_parts import WeightParts
from data.storage import Storage

INDEX = "model.safetensors.index.json"


class Incomplete(Exception):
    """A file is not what was written."""


@dataclass(frozen=True)
class Export:
    """One worker's part of it."""

    parts: WeightParts
    target: Storage
    files: Sequence[Sequence[Group]]
    """The same on every worker (see `actors.training.export_plan`)."""
    allowed: Callable[[], None]
    """Raises if this process must not publish anything more."""

    @property
    def marks(self) -> Storage:
        return Storage(f"{self.target.uri.rstrip('/')}.partial")

    @property
    def folder(self) -> Storage:
        """Where the files are written."""
        return self.marks if self.target.is_local else self.target

    @cached_property
    def units(self) -> list[list[Unit]]:
        """Of each file."""
        return [[unit for group in file for unit in units(self.parts.engine, group)] for file in self.files]

    @cached_property
    def layouts(self) -> list[ShardLayout]:
        return [ShardLayout({k: v for unit in file for k, v in unit.saved.items()}) for file in self.units]

    @cached_property
    def fingerprints(self) -> list[str]:
        return fingerprints(self.parts, self.units)

    def write(self) -> None:
        """Write the files that are not whole already, with all workers; raises on each of them if one cannot."""
        missing = [number for number, whole in enumerate(self._whole()) if not whole]
        agree_all(self._sweep(missing) if self.parts.engine.rank == 0 else None)
        sizes = [self.layouts[number].file_bytes for number in missing]
        of_workers: list[list[int]] = [[] for _ in range(self.parts.engine.world)]
        for number, owner in zip(missing, owners(sizes, len(of_workers)), strict=True):
            of_workers[owner].append(number)
        for batch in itertools.zip_longest(*of_workers):
            self._write_together({owner: number for owner, number in enumerate(batch) if number is not None})

    def publish(self) -> None:
        """Write the index, last of all, and let the folder take its place; for the first worker."""
        for number, layout in enumerate(self.layouts):
            self._require_size(number, layout.file_bytes)
        if len(self.files) > 1:
            of_files = {
                name: self._name(number) for number, layout in enumerate(self.layouts) for name in layout.tensors
            }
            total = sum(layout.data_bytes for layout in self.layouts)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(of_files.items()))}
            (self.folder / INDEX).write_json(index)
        self.allowed()
        self.marks.remove_files([f"{self._name(number)}.json" for number in range(len(self.files))])
        if self.target.is_local:
            self.target.take(self.folder)

    def _name(self, number: int) -> str:
        return file_name(number, len(self.files))

    def _places(self, number: int) -> tuple[Storage, Storage]:
        """Of the mark, and of the file."""
        name = self._name(number)
        return self.marks / f"{name}.json", self.folder / name

    def _require_size(self, number: int, num_bytes: int) -> None:
        _, file = self._places(number)
        if (found := file.size()) != num_bytes:
            raise Incomplete(f"{file.uri} has {found:,} bytes of {num_bytes:,}")

    def _whole(self) -> list[bool]:
        """Of each file: is it there from an earlier try? Each worker looks at its share of them."""
        rank, world = self.parts.engine.rank, self.parts.engine.world
        expected = self.fingerprints  # by all workers together, also by one that has no file to look at
        checked = {
            number: is_whole(*self._places(number), expected[number], layout.file_bytes)
            for number, layout in enumerate(self.layouts)
            if number % world == rank
        }
        meet()  # some have more to read than others
        found = {number: whole for part in gathered(checked) for number, whole in part.items()}
        if rank == 0 and any(found.values()):
            kept = f"{sum(found.values())} of {len(found)} files"
            print(f"export: {kept} are whole already and are not written again", flush=True)
        return [found[number] for number in range(len(found))]

    def _sweep(self, missing: Sequence[int]) -> Exception | None:
        """Remove all but the whole files of this export, or say why that is not possible."""
        kept = {self._name(number) for number in range(len(self.files)) if number not in missing}
        kept |= {f"{name}.json" for name in kept}
        try:
            self.allowed()
            for folder in (self.marks, self.folder):
                folder.remove_files(sorted(set(folder.names()) - kept))
        except Exception as error:  # for all workers
            return error
        return None

    def _write_together(self, batch: dict[int, int]) -> None:
        """Write one file of each owner."""
        rank, writer = self.parts.engine.rank, None
        if rank in batch:
            _, file = self._places(batch[rank])
            writer = ShardWriter(file, self.layouts[batch[rank]], self.allowed)
        try:
            turns = [self._turns(number, owner, writer) for owner, number in batch.items()]
            while turns:
                turns = [one for one in turns if next(one, True) is None]
        except BaseException:
            if writer:
                writer.abort()
            raise
        agree_all(self._closed(writer, batch[rank]) if writer else None)

    def _closed(self, writer: ShardWriter, number: int) -> Exception | None:
        """Wait until the file is whole, and mark it; or say why it is not."""
        if error := writer.close():
            return error
        try:
            self._require_size(number, self.layouts[number].file_bytes)
            write_mark(*self._places(number), self.fingerprints[number])
        except Exception as error:  # for all workers
            return error
        return None

    def _turns(self, number: int, owner: int, writer: ShardWriter | None) -> Iterator[None]:
        """Bring a file's values to its owner, who writes them; every worker takes each turn at the same time."""
        for unit in self.units[number]:
            if unit.streams:
                (weight,), ((name, saved),) = unit.weights, unit.saved.items()
                for found in self.parts.turns(weight, owner, weight.dtype, saved.numel()):
                    if writer and found:
                        writer.add([(name, first, values_N) for first, values_N in found])
                    yield
            else:
                whole = dict[str, torch.Tensor]()
                yield from self._gather(unit, owner, whole)
                if writer and whole:
                    state = converted(self.parts.engine, unit.weights, whole)
                    writer.add([(name, 0, tensor.flatten()) for name, tensor in state.items()])

    def _gather(self, unit: Unit, owner: int, whole: dict[str, torch.Tensor]) -> Iterator[None]:
        """Fill `whole` with weights that are converted together, on their owner."""
        lora = self.parts.engine.settings.lora
        for weight in unit.weights:
            dtype = weight.tensor.dtype if lora else weight.dtype  # adapters are merged in the training's precision
            for found in self.parts.turns(weight, owner, dtype, weight.shape.numel()):
                if found and weight.name not in whole:
                    whole[weight.name] = torch.empty(weight.shape, dtype=dtype)
                for first, values_N in found:
                    whole[weight.name].view(-1)[first : first + len(values_N)] = values_N
                yield
