"""Settings of models: a small one's shape, a predictor's heads, low-rank adapters, the kind of template.

They know no torch: whoever reads a preset, a Ray task among them, would wait for it.
"""

from typing import Any, Literal

from pydantic import model_validator

from data.bounds import Positive, ShareBelowOne, Size, Times, TokenBudget, Vocabulary, Width
from data.errors import UserError
from data.record import Record

TemplateKind = Literal["steerlm", "chat", "words"]
LossKind = Literal["squared", "absolute"]
Reading = Literal["end", "mean"]


class SmallModel(Record):
    """The shape of a small Llama."""

    hidden_size: Width = 128
    """Width."""
    num_layers: Times = 4
    """Decoder layers."""
    num_heads: Width = 4
    """Attention heads."""
    num_kv_heads: Width = 2
    """Key and value heads."""
    intermediate_size: Width = 344
    """Width of the feed-forward part."""
    vocab_size: Vocabulary = 1024
    """Entries of the byte-level BPE tokenizer trained on the texts; a small corpus may need fewer."""
    max_tokens: TokenBudget = 1024
    """Longest context."""

    @model_validator(mode="after")
    def _heads(self) -> "SmallModel":
        width = self.hidden_size // self.num_heads
        if self.hidden_size % self.num_heads or width % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} does not give each of num_heads {self.num_heads} an even width "
                "(rotary positions turn pairs of numbers); set hidden_size to a multiple of 2 x num_heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}: heads share keys and "
                "values in groups of one size; set num_kv_heads to a divisor of num_heads"
            )
        return self


class HeadsSettings(Record):
    """Heads on several layers and readings of the backbone, fitted to it in closed form."""

    layers: Literal["auto"] | tuple[Size, ...] = "auto"
    """Decoder layers that the heads read, counted from 1, e.g. [10, 15, 20]; those above the highest are cut off. auto
    = six layers at equal distances are tried, and each attribute keeps those that rate unseen answers best."""
    readings: Literal["auto"] | tuple[Reading, ...] = "auto"
    """What is read of a layer: end = the hidden state at the answer's end, mean = the mean over the answer's tokens.
    auto = both are tried, as with layers."""
    max_answers: Size = 50_000
    """Most rated answers that the heads are fitted to; of more, so many are drawn at random by learner.seed. Fewer
    where their features would be more than 200 million numbers (.8 GB) in the memory of the first worker."""

    def model_post_init(self, _: Any) -> None:
        for name, values in (("layers", self.layers), ("readings", self.readings)):
            if not values:
                raise UserError(f"heads.{name} is empty, so nothing is read; name some, or set it to auto")
            if values != "auto" and len(set(values)) < len(values):
                raise UserError(f"heads.{name} has {', '.join(map(str, values))}; name each one once")

    @property
    def chooses(self) -> bool:
        """Is anything left to choose?"""
        return "auto" in (self.layers, self.readings)


class LoraSettings(Record):
    """Low-rank adapters instead of full training.

    Heads are trained in full; everything else keeps the base model's weights. The embeddings of new control tokens keep
    their random values too: train all weights where their meaning matters.
    """

    rank: Width = 16
    """Rank of each adapter."""
    alpha: Positive = 32
    """An adapter's product is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on an adapter's input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names (or their ends) of the linear modules that get an adapter, e.g. [q_proj, v_proj]; all-linear = every one
    outside heads and vocabulary."""

    def adapts(self, name: str) -> bool:
        """Does a linear module outside heads and vocabulary get an adapter?"""
        targets = self.target_modules
        return targets == "all-linear" or any(name == t or name.endswith(f".{t}") for t in targets)
