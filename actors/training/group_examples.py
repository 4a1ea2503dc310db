"""From groups of answers to examples of SteerLM 2.0: one for each prompt, its answers one after the other.

An answer is rendered as the policy was asked for it, behind its prompt; only its own tokens are trained. Loads no
weights.
"""

import numpy as np
import pyarrow as pa

from actors.modeling.model_folder import new_format, text_folder
from actors.modeling.tokenizer import encoder
from actors.training.examples import NO_VALUES, REFUSED, ExampleRow, ExampleSpec
from data.conversation import Message
from data.counters import with_counters
from data.examples import EXAMPLE_SCHEMA, Origin, counted, example_row
from data.response_groups import ResponseGroup, groups_from
from data.template import Unrenderable
from data.tokens import OverLong, Tokens, answer_tokens

TOO_LARGE = "over_pack"
"""The reason of a group whose answers do not fit into one pack together."""


class GroupExamples:
    """A table of groups in, one of EXAMPLE_SCHEMA out; `values` are log w' and log Q' of each answer."""

    ROW_FOR_ROW = True

    def __init__(self, spec: ExampleSpec, pack_tokens: int):
        """`pack_tokens`: a group of more tokens is rejected."""
        self.spec, self.pack_tokens = spec, pack_tokens
        self.format = new_format(text_folder(spec.base), spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = pa.Table.from_pylist([self._example(group) for group in groups_from(batch)], schema=EXAMPLE_SCHEMA)
        return with_counters(table, counted(table))

    def _example(self, group: ResponseGroup) -> ExampleRow:
        origin = Origin(group.id, group.group, group.source)
        try:
            answers = [self._tokens(group, response.text) for response in group.responses]
        except OverLong:
            return example_row(origin, None, NO_VALUES, reason="over_long")
        except Unrenderable:
            return example_row(origin, None, NO_VALUES, reason=REFUSED)
        if sum(map(len, answers)) > self.pack_tokens:
            return example_row(origin, None, NO_VALUES, reason=TOO_LARGE)
        before = [response.log_policy for response in group.responses]
        return example_row(origin, _joined(answers), np.stack([group.log_target, before], 1).astype(np.float32))

    def _tokens(self, group: ResponseGroup, answer: str) -> Tokens:
        messages, labels = (*group.messages, Message("assistant", answer)), (*group.earlier_labels, group.requested)
        return answer_tokens(self.format.template, self.encode, group.system, messages, labels, self.spec.max_tokens)


def _joined(answers: list[Tokens]) -> Tokens:
    return Tokens(
        np.concatenate([answer.ids_T for answer in answers]),
        np.concatenate([answer.trained_T for answer in answers]),
        (np.cumsum([len(answer) for answer in answers]) - 1).astype(np.int32),
        max(answer.num_dropped_turns for answer in answers),
    )
