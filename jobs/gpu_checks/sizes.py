"""Shapes of Llamas by their size in words: "10M", "1B". Arithmetic only."""

import math
import re
from dataclasses import dataclass

from actors.modeling.settings import SmallModel
from data.errors import UserError

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
HEAD = 64
"""Width of an attention head."""
ASPECT = 80
"""Width over layers, as Llamas have it: 128 at 1 B and 8 B, 64 at 100 M."""
SLACK = 0.05
"""A shape may miss its size by so much."""
MAX_TOKENS = 8192
"""Longest context."""


@dataclass(frozen=True)
class LlamaSize:
    """A shape and its name."""

    name: str
    shape: SmallModel
    tied: bool = True
    """Input and output share their embeddings, as in Llamas up to 3 B."""

    @property
    def embeddings(self) -> int:
        """Weights of one of the vocabulary's matrices."""
        return self.shape.vocab_size * self.shape.hidden_size

    @property
    def body(self) -> int:
        """Weights outside the vocabulary's matrices."""
        width, of_kv = self.shape.hidden_size, self.shape.num_kv_heads / self.shape.num_heads
        attention, feed_forward = width**2 * (2 + 2 * of_kv), 3 * width * self.shape.intermediate_size
        norms = 2 * width
        return round(self.shape.num_layers * (attention + feed_forward + norms)) + width

    @property
    def num_parameters(self) -> int:
        return self.body + self.embeddings * (1 if self.tied else 2)


KNOWN = {
    "1B": LlamaSize(  # Llama 3.2 1B
        "1B",
        SmallModel(
            hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=8, intermediate_size=8192, vocab_size=128256,
            max_tokens=MAX_TOKENS,
        ),
    ),
    "8B": LlamaSize(  # Llama 3.1 8B
        "8B",
        SmallModel(
            hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, intermediate_size=14336, vocab_size=128256,
            max_tokens=MAX_TOKENS,
        ),
        tied=False,
    ),
}  # fmt: skip


def size_of(word: str) -> LlamaSize:
    """The Llama of a size in words; raises UserError for another word, or a size without a shape."""
    word = word.strip().upper()
    if word in KNOWN:
        return KNOWN[word]
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", word)
    if not found:
        raise UserError(f"{word!r} is no size of a model; write a number and K, M or B, as in 10M or 1B")
    wanted = float(found[1]) * UNITS[found[2]]
    candidates = [LlamaSize(word, shape) for shape in _shapes(word, wanted)]
    fitting = [size for size in candidates if abs(size.num_parameters / wanted - 1) <= SLACK]
    if not fitting:
        raise UserError(f"no Llama here has {word} parameters; sizes from 1M to 20B have a shape")
    return min(fitting, key=lambda size: abs(math.log(size.shape.hidden_size / size.shape.num_layers / ASPECT)))


def _shapes(word: str, wanted: float) -> list[SmallModel]:
    """For each width the number of layers that comes nearest to `wanted` parameters."""
    vocab_size = 2048 if wanted < 5e7 else 32768
    found = []
    for heads in (*range(2, 8), *range(8, 97, 4)):  # by fours, so that keys and values are shared in groups of four
        width = heads * HEAD
        one, two = (LlamaSize(word, _llama(width, heads, n, vocab_size)).num_parameters for n in (1, 2))
        layers = 1 + round((wanted - one) / (two - one))
        if 1 < layers <= 160:
            found.append(_llama(width, heads, layers, vocab_size))
    return found


def _llama(width: int, heads: int, layers: int, vocab_size: int) -> SmallModel:
    groups = next(g for g in (4, 3, 2, 1) if heads % g == 0)
    return SmallModel(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // groups,
        intermediate_size=width * 8 // 3 // HEAD * HEAD,
        vocab_size=vocab_size,
        max_tokens=MAX_TOKENS,
    )
