"""The Ray Data worker that measures how likely a policy finds answers: conversations in, log P of each last answer out.

Many answers run in one packed forward. The text is tokenized as in training, so that the numbers are those of the very
tokens that a training on the answers sees: an answer's own and its turn's end, summed, at temperature 1.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from actors.kernels.devices import own_device
from actors.kernels.onednn import use_onednn
from actors.kernels.precision import usable_dtype
from actors.modeling.isolation import causal_lm_attention, require_isolated
from actors.modeling.model_folder import load_config, load_format, local_folder
from actors.modeling.policy import PolicyTask, load_causal_lm
from actors.modeling.tokenizer import encoder
from actors.modeling.vocabulary_loss import VocabularyLoss
from data.attributes import AttributeSchema
from data.conversation import Conversation, from_table
from data.counters import with_counters
from data.examples import Example
from data.packing import best_fit
from data.template import Unrenderable
from data.tokens import OverLong, Tokens, answer_tokens

LIKELIHOODS = pa.schema([("id", pa.string()), ("log_likelihood", pa.float64()), ("tokens", pa.int32())])
"""`log_likelihood` in nats, null for an answer that does not fit; `tokens` of the answer."""


class LogLikelihood:
    """A policy that reads answers."""

    def __init__(
        self,
        policy: str,
        schema: AttributeSchema,
        labels: bool,
        pack_tokens: int,
        max_tokens: int,
        dtype: str,
        num_threads: int,
    ):
        """`labels`: the policy is asked for what each answer was (`requested`); else for nothing.

        Raises UserError if there is no policy, or if it takes no packs, and SchemaMismatch if it has another schema.
        """
        torch.set_num_threads(num_threads)
        dtype, self.device = usable_dtype(dtype, own_device(), "sampling.pool.dtype"), own_device()
        folder = local_folder(policy)
        self.format = load_format(folder)
        schema.require_same(self.format.schema, "the run", f"the policy at {folder}")
        attention = causal_lm_attention(load_config(folder), packing=True)
        model = load_causal_lm(folder, self.format, attention, getattr(torch, dtype)).to(self.device).eval()
        use_onednn(model)
        self.task, self.loss = PolicyTask(folder, schema, self.format.kind), VocabularyLoss(model)
        self.labels, self.pack_tokens, self.max_tokens = labels, pack_tokens, max_tokens
        require_isolated(model, lambda ids: self._nats([_all_trained(ids_T) for ids_T in ids]))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = list(from_table(batch))
        tokens = [self._tokens(row) for row in rows]
        fitting = [i for i, found in enumerate(tokens) if found is not None]
        found: list[float | None] = [None] * len(rows)
        read = [t for t in tokens if t is not None]
        for place, log_likelihood in self._measured(read):
            found[fitting[place]] = log_likelihood
        counts = [0 if t is None else int(t.trained_T.sum()) for t in tokens]
        columns = {"id": [row.id for row in rows], "log_likelihood": found, "tokens": counts}
        return with_counters(
            pa.table(columns, schema=LIKELIHOODS),
            {"tokens": sum(map(len, read)), "unread": len(rows) - len(read)},
        )

    def _tokens(self, row: Conversation) -> Tokens | None:
        """None if it does not fit, or if the template refuses it."""
        encode, labels = encoder(self.format.tokenizer), row.requested if self.labels else ()
        try:
            return answer_tokens(self.format.template, encode, row.system, row.messages, labels, self.max_tokens)
        except (OverLong, Unrenderable):
            return None

    def _measured(self, tokens: Sequence[Tokens]) -> Iterator[tuple[int, float]]:
        """The place of each, and log P of its last answer."""
        for pack in best_fit([len(t) for t in tokens], self.pack_tokens):
            members = [tokens[i] for i in pack]
            nats_N = self._nats([Example(t.ids_T, t.trained_T, t.turn_ends_S, _NOTHING) for t in members])
            bounds = np.cumsum([int(t.trained_T.sum()) for t in members])[:-1]
            parts = np.split(nats_N, bounds)
            yield from ((i, -float(part.sum())) for i, part in zip(pack, parts, strict=True))

    @torch.no_grad()
    def _nats(self, examples: Sequence[Example]) -> np.ndarray:
        """What each trained token of a pack costs, float64."""
        kept: list[torch.Tensor] = []

        def keep(nats_N: torch.Tensor) -> torch.Tensor:
            kept.append(nats_N)
            return nats_N

        inputs = self.task.inputs(examples, self.device)
        self.loss(inputs["pack"], inputs["positions_N"], inputs["targets_N"], keep)
        num_targets = sum(int(e.trained_T.sum()) for e in examples)
        found: np.ndarray = kept[-1][:num_targets].double().cpu().numpy()
        return found


_NOTHING = np.zeros((0, 0), np.float32)


def _all_trained(ids_T: np.ndarray) -> Example:
    return Example(ids_T, np.arange(len(ids_T)) > 0, np.zeros(0, np.int32), _NOTHING)
