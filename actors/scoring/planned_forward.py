"""What a process that reads packs with a model, and writes nothing, will hold of its device: from a shape alone.

Arithmetic for plans. Knows neither Ray nor where the numbers are printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.modeling.model_memory import CPU_PROCESS, GPU_PROCESS, forward_bytes, in_gib
from actors.modeling.model_shape import ModelShape


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
    """Set aside for the process; below 1 a share of one, 0 = it runs on the CPU. The model is on one of them."""
    device_bytes: float | None
    """Memory of a GPU, or of the CPU's what the process may use; None = unknown here."""
    others: Mapping[str, int | None] = field(default_factory=dict)
    """Models that the process holds beside it: name -> parameters, None = not known."""

    def line(self, shape: ModelShape) -> str:
        """What it holds."""
        parts = {"weights": self._weights(shape), **self._beside}
        if shape.layers:
            parts[f"a forward of {self.tokens:,} tokens"] = self._forward(shape)
        return f"GiB each: {_listed(parts)}{self._unknown}"

    def line_without(self) -> str:
        """What it holds, where the model's shape is not known."""
        beside = f", but {_listed(self._beside)} GiB" if self._beside else ""
        return f"memory unknown{beside}{self._unknown}"

    def problem(self, shape: ModelShape) -> str:
        """Why it does not fit, and the settings that help; "" = it fits."""
        if self._fits(shape):
            return ""
        parts = {"weights": self._weights(shape), **self._beside, "process": self._process}
        parts["a forward"] = self._forward(shape)
        helps = []
        if self.dtype == "float32" and replace(self, dtype="bfloat16")._fits(shape):
            helps.append(f"{self.dtype_setting}: bfloat16")
        if shape.layers and replace(self, tokens=1)._fits(shape):
            helps.append(f"{self.tokens_setting} below {self.tokens}")
        nothing = "nothing splits this model over several GPUs: take a GPU with more memory"
        return (
            f"{self.what} needs {in_gib(sum(parts.values()))} GiB ({_listed(parts)}), and has "
            f"{in_gib(self._limit or 0)}; what helps: {'; or '.join(helps) or nothing}"
        )

    def _fits(self, shape: ModelShape) -> bool:
        limit = self._limit
        held = self._weights(shape) + sum(self._beside.values()) + self._process + self._forward(shape)
        return limit is None or held <= limit

    @property
    def _beside(self) -> dict[str, float]:
        return {name: float(size * self._width_bytes) for name, size in self.others.items() if size}

    @property
    def _unknown(self) -> str:
        return "".join(f", {name} unknown" for name, size in self.others.items() if not size)

    @property
    def _limit(self) -> float | None:
        return None if self.device_bytes is None else self.device_bytes * min(1.0, self.gpus or 1.0)

    @property
    def _process(self) -> int:
        return GPU_PROCESS if self.gpus else CPU_PROCESS

    def _weights(self, shape: ModelShape) -> float:
        return float(shape.num_parameters * self._width_bytes)

    def _forward(self, shape: ModelShape) -> float:
        return forward_bytes(shape, self.tokens, self._width_bytes) if shape.layers else 0.0

    @property
    def _width_bytes(self) -> int:
        half = self.dtype in ("bfloat16", "float16") or (self.dtype == "auto" and self.gpus > 0)
        return 2 if half else 4


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items())
