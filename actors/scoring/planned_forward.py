"""What a process that reads packs with a model, and writes nothing, will hold of its device: from shapes alone.

Arithmetic for plans. Knows neither Ray nor where the numbers are printed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from actors.modeling.model_memory import CPU_PROCESS, GPU_PROCESS, MAX_PARTS, forward_bytes, in_gib, listed
from actors.modeling.model_shape import ModelShape


@dataclass(frozen=True)
class RaterShape:
    """A further model that a process rates with."""

    shape: ModelShape
    longest: int
    """Tokens of the longest text that it rates."""


@dataclass(frozen=True)
class PlannedForward:
    """A predictor or a policy that is to read in a process, and the process."""

    what: str
    """In messages."""
    dtype: str
    dtype_setting: str
    tokens: int
    """Of a pack."""
    tokens_setting: str
    gpus: float
    """Set aside for the process; below 1 a share of one, 0 = it runs on the CPU. A model that is not split is on one
    of them."""
    device_bytes: float | None
    """Memory of a GPU, or of the CPU's what the process may use; None = unknown here."""
    others: Mapping[str, RaterShape | None] = field(default_factory=dict)
    """Raters that the process holds beside it, by name; None = not known. None of them is split."""
    num_parts: int = 1
    """Of the model, over as many GPUs, or processes on a CPU; what is counted is the first part."""
    split_setting: str = ""
    """Of that number; "" = nothing splits the model."""
    cannot_split: Callable[[int], str] = field(default=lambda num_parts: "")
    """Why a model of this kind cannot be split into so many parts; "" = it can, or the kind is not known."""

    def line(self, shape: ModelShape | None) -> str:
        """What it holds; `shape`: None = not known."""
        held = listed(self.parts(shape))
        if shape is None:
            memory = f"memory unknown{f', but {held} GiB' if held else ''}"
        else:
            split = f"split over {self.num_parts} {'GPUs' if self.gpus else 'processes'}, GiB in each"
            memory = f"{'GiB each' if self.num_parts == 1 else split}: {held}"
        return f"{memory}{self.unknown}"

    def parts(self, shape: ModelShape | None, own: str = "weights") -> dict[str, float]:
        """Bytes that it holds beside the process: all weights, and of the forwards, which do not overlap, the largest.

        `own`: a name for the weights of the model of this shape.
        """
        shapes = {own: shape, **{name: rater.shape for name, rater in self.others.items() if rater}}
        num_parts = {own: self.num_parts}
        weights = {name: self._weights(s, num_parts.get(name, 1)) for name, s in shapes.items() if s}
        forwards = self._forwards(shape)
        largest = max(forwards, key=forwards.__getitem__, default=None)
        return weights if largest is None else {**weights, largest: forwards[largest]}

    @property
    def unknown(self) -> str:
        """The end of a line: what raters hold that is not known."""
        names = {name: name if rater is None else f"a forward in {name}" for name, rater in self.others.items()}
        return "".join(f", {names[name]} unknown" for name, r in self.others.items() if not (r and r.shape.layers))

    def problem(self, shape: ModelShape) -> str:
        """Why it does not fit, and the settings that help; "" = it fits."""
        if not self._divides(shape):
            return self._indivisible(shape)
        if why := self.cannot_split(self.num_parts):
            return why
        if self._fits(shape):
            return ""
        parts = self._needed(shape)
        nothing = "nothing splits this model over several GPUs: take a GPU with more memory"
        if self.split_setting and self.gpus and len(self._possible(shape)) > 1:
            nothing = f"the GPUs of one node do not hold it (up to {MAX_PARTS} were tried): take GPUs with more memory"
        return (
            f"{self.what} needs {in_gib(sum(parts.values()))} GiB ({listed(parts)}), and has "
            f"{in_gib(self._limit or 0)}; what helps: {'; or '.join(self._remedies(shape)) or nothing}"
        )

    def _remedies(self, shape: ModelShape) -> Iterator[str]:
        """Each alone would do."""
        if self.dtype == "float32" and replace(self, dtype="bfloat16")._fits(shape):
            yield f"{self.dtype_setting}: bfloat16"
        if replace(self, tokens=1)._fits(shape):
            yield f"{self.tokens_setting} below {self.tokens}"
        for name, rater in self.others.items():
            if rater and replace(self, others={**self.others, name: replace(rater, longest=1)})._fits(shape):
                yield f"max_tokens of {name} below {rater.longest}"
        if more := self._more_parts(shape):
            yield f"{self.split_setting}: {more} with {self.what}.gpus_per_actor: {more}"

    def _more_parts(self, shape: ModelShape) -> int | None:
        """The smallest number that fits. On a CPU the parts share one memory, so more of them do not help."""
        if not (self.split_setting and self.gpus):
            return None
        tried = (replace(self, num_parts=n, gpus=float(n)) for n in range(self.num_parts + 1, MAX_PARTS + 1))
        return next((split.num_parts for split in tried if split._fits(shape) and split._splits(shape)), None)

    def _possible(self, shape: ModelShape) -> list[int]:
        """Numbers of parts."""
        return [n for n in range(1, MAX_PARTS + 1) if replace(self, num_parts=n)._splits(shape)]

    def _splits(self, shape: ModelShape) -> bool:
        return self._divides(shape) and not self.cannot_split(self.num_parts)

    def _divides(self, shape: ModelShape) -> bool:
        return not any(n % self.num_parts for n in (shape.query_heads, shape.key_heads, shape.feed_forward))

    def _indivisible(self, shape: ModelShape) -> str:
        allowed = ", ".join(map(str, self._possible(shape)))
        return (
            f"{self.split_setting} is {self.num_parts}, which does not divide the model's {shape.query_heads} "
            f"attention heads, {shape.key_heads} of keys and values, and the {shape.feed_forward} features of its "
            f"feed-forward; set it to one of {allowed}"
        )

    def _fits(self, shape: ModelShape) -> bool:
        return self._limit is None or sum(self._needed(shape).values()) <= self._limit

    def _needed(self, shape: ModelShape) -> dict[str, float]:
        """Of the device that holds most: the first GPU, or the CPU, whose memory all parts share."""
        needed = {**self.parts(shape), "process": float(self._process)}
        if self.num_parts > 1 and not self.gpus:
            other = sum(replace(self, others={}).parts(shape).values()) + self._process
            needed["other parts"] = (self.num_parts - 1) * other
        return needed

    def _weights(self, shape: ModelShape, num_parts: int) -> float:
        """Of a part; the embeddings are whole in each."""
        whole = shape.vocabulary * shape.width
        return (whole + (shape.num_parameters - whole) / num_parts) * self._width_bytes

    @property
    def _limit(self) -> float | None:
        return None if self.device_bytes is None else self.device_bytes * min(1.0, self.gpus or 1.0)

    @property
    def _process(self) -> int:
        return GPU_PROCESS if self.gpus else CPU_PROCESS

    def _forwards(self, shape: ModelShape | None) -> dict[str, float]:
        """Each with whose it is; none of a model of which only the size is known."""
        read = {"": RaterShape(shape, 0)} if shape else {}
        found = {}
        for name, rater in {**read, **self.others}.items():
            if rater and rater.shape.layers:
                # A batch is filled up to a pack's tokens; a rater reads a text that is longer alone.
                tokens = max(self.tokens, rater.longest)
                where = f" in {name}" if name else ""
                num_parts = 1 if name else self.num_parts
                size = forward_bytes(rater.shape, tokens, self._width_bytes, num_parts)
                found[f"a forward of {tokens:,} tokens{where}"] = size
        return found

    @property
    def _width_bytes(self) -> int:
        half = self.dtype in ("bfloat16", "float16") or (self.dtype == "auto" and self.gpus > 0)
        return 2 if half else 4
