"""Ray Data workers that turn rows into tokenized examples: a policy's, a predictor's, a language model's.

The prompt is `data.template`'s, the ids are `data.tokens`'s; a row that cannot become an example gets a reason. Workers
with one example per row (`ROW_FOR_ROW`) can be trained on while they run. Knows no weights.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from actors.modeling.backbone import max_positions
from actors.modeling.model_folder import load_config, new_format, text_folder
from actors.modeling.regressor import in_range
from actors.modeling.settings import TemplateKind
from actors.modeling.tokenizer import encoder
from actors.training.chosen_labels import chosen
from actors.training.settings import LabelSource
from data.attributes import AttributeSchema, Values
from data.calibration import Calibration
from data.conversation import Conversation, from_table
from data.counters import counters_of, with_counters
from data.errors import UserError
from data.examples import EXAMPLE_SCHEMA, LABEL, Origin, counted, example_row
from data.template import Unrenderable
from data.tokens import ConversationTokens, OverLong, Tokens, segments

ExampleRow = dict[str, object]
NO_VALUES = np.zeros(0)
REFUSED = "chat_template_refuses"
"""The reason of a row that the model's own chat template cannot render."""


@dataclass(frozen=True)
class ExampleSpec:
    """The model whose tokenizer is used, and the format of the prompt; travels to the workers."""

    base: str
    schema: AttributeSchema
    template: TemplateKind
    max_tokens: int


class _ExampleMaker:
    """What all makers know: the base model's tokenizer and its format."""

    def __init__(self, spec: ExampleSpec):
        self.spec = spec
        self.format = new_format(text_folder(spec.base), spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)


class _ConversationMaker(_ExampleMaker, ABC):
    """Conversations in, one example for each out; a subclass defines the example."""

    ROW_FOR_ROW = True

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _table(self._example(row) for row in from_table(batch))

    def _example(self, row: Conversation) -> ExampleRow:
        return _or_reason(row, lambda: self._fitted(row))

    @abstractmethod
    def _fitted(self, row: Conversation) -> ExampleRow:
        """The row's example. Raises OverLong if it fits into no pack, Unrenderable if the template refuses it."""

    def _tokens(self, row: Conversation, labels: Iterable[Values] = ()) -> ConversationTokens:
        return ConversationTokens(self.format.template, self.encode, row.system, row.messages, tuple(labels))


def _or_reason(row: Conversation, make: Callable[[], ExampleRow]) -> ExampleRow:
    """What is made of a row, or why it cannot be made."""
    try:
        return make()
    except OverLong:
        return example_row(_origin(row), None, NO_VALUES, reason="over_long")
    except Unrenderable:
        return example_row(_origin(row), None, NO_VALUES, reason=REFUSED)


class PredictorExamples(_ConversationMaker):
    """Conversations without label lines; targets are the human ratings, read where the backbone reads an answer.

    A decoder's example is a conversation, an encoder's a rated answer with what came before it. Values stay as given.
    """

    ROW_FOR_ROW = False

    def __init__(self, spec: ExampleSpec):
        """Raises UserError if the backbone has fewer positions than `max_tokens`."""
        super().__init__(spec)
        limit = max_positions(load_config(text_folder(spec.base)))
        if limit is not None and spec.max_tokens > limit:
            raise UserError(
                f"max_tokens is {spec.max_tokens}, but {spec.base} reads at most {limit} tokens; "
                f"set predictor.learner.max_tokens to at most {limit}"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = _table(example for row in from_table(batch) for example in self._examples(row))
        labels = label_counts([table], self.spec.schema)
        counted = {f"{LABEL}{name}/{kind}": n for name, kinds in labels.items() for kind, n in kinds.items()}
        return with_counters(table, counters_of(table.schema) | counted)

    def _examples(self, row: Conversation) -> Iterator[ExampleRow]:
        if not any(row.human):
            yield example_row(_origin(row), None, NO_VALUES, reason="unrated")
        elif self.format.reading.causal:
            yield self._example(row)
        else:
            yield from self._one_by_one(row)

    def _one_by_one(self, row: Conversation) -> Iterator[ExampleRow]:
        try:
            rendered = self._tokens(row)
        except Unrenderable:
            yield example_row(_origin(row), None, NO_VALUES, reason=REFUSED)
            return
        for turn, values in enumerate(row.human):
            if values:
                yield _or_reason(row, partial(self._upto, row, rendered, turn)) | {"id": f"{row.id}-{turn}"}

    def _fitted(self, row: Conversation) -> ExampleRow:
        return self._upto(row, self._tokens(row), row.num_answers - 1)

    def _upto(self, row: Conversation, rendered: ConversationTokens, turn: int) -> ExampleRow:
        """A decoder's example, which reads every answer up to `turn`, or an encoder's, which reads this one."""
        reading, names = self.format.reading, self.spec.schema.names
        tokens = rendered.fitted(self.spec.max_tokens - len(reading.before) - len(reading.after), turn + 1)
        kept = row.human[tokens.num_dropped_turns : turn + 1]
        if not reading.causal:
            kept, last = (*({},) * (len(kept) - 1), kept[-1]), tokens.turn_ends_S[-1:]
            tokens = replace(tokens, turn_ends_S=last)
        if not any(kept):
            return example_row(_origin(row), None, NO_VALUES, reason="rated_turns_cut")
        values_SA = np.array([[v.get(n, np.nan) for n in names] for v in kept], np.float32)
        if not in_range(values_SA, self.spec.schema).any():
            rejected = example_row(_origin(row), None, NO_VALUES, reason="no_label_in_range")
            return rejected | {"values": values_SA.ravel()}
        (segment,) = segments(tokens, reading)
        answers_T = tokens.trained_T if reading.causal else np.zeros(len(segment), np.bool_)
        tokens = Tokens(segment.ids_T, answers_T, segment.reads_S, tokens.num_dropped_turns)
        return example_row(_origin(row), tokens, values_SA[-len(segment.reads_S) :])


def label_counts(tables: Iterable[pa.Table], schema: AttributeSchema) -> dict[str, dict[str, int]]:
    """Valid, missing and out-of-range labels of each attribute in the rated rows of `tables`, one table at a time."""
    counts = {name: {"valid": 0, "missing": 0, "out_of_range": 0} for name in schema.names}
    for table in tables:
        values = table.column("values").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        values_SA = values.reshape(-1, len(schema.names))
        valid_A, missing_A = in_range(values_SA, schema).sum(0), np.isnan(values_SA).sum(0)
        for i, name in enumerate(schema.names):
            counts[name]["valid"] += int(valid_A[i])
            counts[name]["missing"] += int(missing_A[i])
            counts[name]["out_of_range"] += int(len(values_SA) - valid_A[i] - missing_A[i])
    return counts


class PolicyExamples(_ConversationMaker):
    """Conversations with a label line before each answer; loss on the answers."""

    def __init__(
        self, spec: ExampleSpec, labels: LabelSource, calibration: Calibration, attribute_dropout: float, seed: int
    ):
        super().__init__(spec)
        self.labels, self.calibration, self.dropout, self.seed = labels, calibration, attribute_dropout, seed

    def _fitted(self, row: Conversation) -> ExampleRow:
        values = chosen(row, self.labels, self.calibration)
        labels = [self._shown(row.id, turn, own) for turn, own in enumerate(values)]
        if not any(labels) and self.dropout == 0 and self.labels != "none":
            return example_row(_origin(row), None, NO_VALUES, reason="unlabelled")
        return example_row(_origin(row), self.tokens(row, labels), NO_VALUES)

    def tokens(self, row: Conversation, labels: Iterable[Values]) -> Tokens:
        """The row with these labels. Raises OverLong and Unrenderable."""
        return self._tokens(row, labels).fitted(self.spec.max_tokens)

    def _shown(self, id: str, turn: int, values: Values) -> Values:
        """Attribute dropout: hides one to all labels of a share of the answers, the same ones in every run.

        The number is drawn first, so that a lone label is as common as any other number; if each label were drawn by
        itself, one line in forty would have a lone label at a rate of .3 and five attributes.
        """
        rng = random.Random(f"{self.seed}/{id}/{turn}")
        if not values or rng.random() >= self.dropout:
            return values
        kept = rng.sample(sorted(values), rng.randrange(len(values)))
        return {name: value for name, value in values.items() if name in kept}


class ConversationExamples(_ConversationMaker):
    """Conversations without label lines for language modeling: trains all tokens but the first, or the answers only."""

    def __init__(self, spec: ExampleSpec, answers_only: bool = False):
        super().__init__(spec)
        self.answers_only = answers_only

    def _fitted(self, row: Conversation) -> ExampleRow:
        tokens = self._tokens(row).fitted(self.spec.max_tokens)
        trained_T = tokens.trained_T if self.answers_only else np.arange(len(tokens)) > 0
        return example_row(_origin(row), replace(tokens, trained_T=trained_T), NO_VALUES)


class TextExamples(_ExampleMaker):
    """Plain texts for language-model pre-training: trains all tokens but the first; long texts are cut into windows."""

    ROW_FOR_ROW = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)
        return _table(example for id, text in texts for example in self._windows(id, text))

    def _windows(self, id: str, text: str) -> Iterator[ExampleRow]:
        ids = [*self.encode(text), self.format.tokenizer.eos_token_id]
        for start in range(0, len(ids), self.spec.max_tokens):
            window = np.array(ids[start : start + self.spec.max_tokens], np.int32)
            if len(window) > 1:  # a lone token predicts nothing
                tokens = Tokens(window, np.arange(len(window)) > 0, np.zeros(0, np.int32))
                yield example_row(Origin(f"{id}-{start}", id), tokens, NO_VALUES)


def _origin(row: Conversation) -> Origin:
    return Origin(row.id, row.group, row.source)


def _table(examples: Iterable[ExampleRow]) -> pa.Table:
    table = pa.Table.from_pylist(list(examples), schema=EXAMPLE_SCHEMA)
    return with_counters(table, counted(table))
