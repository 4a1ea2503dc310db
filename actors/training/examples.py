"""Ray Data workers that turn rows into tokenised examples: a policy's, a predictor's, a language model's.

The prompt is `data.template`'s, the ids `data.tokens`'s; what cannot become an example says why. Those that give a row for each row
(`ROW_FOR_ROW`) can be trained on while they work. Knows no weights.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from actors.modeling.backbone import max_positions
from actors.modeling.model_folder import load_config, local_folder, new_format
from actors.modeling.regressor import in_range
from actors.modeling.tokenizer import TemplateKind, encoder
from data.attributes import AttributeSchema, Values
from data.calibration import Calibration
from data.conversation import Conversation, from_table
from data.errors import UserError
from data.examples import EXAMPLE_SCHEMA, Origin, example_row
from data.tokens import OverLong, Tokens, fitted, segments

LabelSource = Literal["predicted", "human", "human_else_predicted", "none"]


@dataclass(frozen=True)
class ExampleSpec:
    """What an example maker needs; travels to the workers."""

    base: str
    schema: AttributeSchema
    template: TemplateKind
    max_tokens: int


class PredictorExamples:
    """Conversations without label lines; targets are the human ratings, read where the backbone reads an answer.

    A decoder's example is a conversation, an encoder's a rated answer with what came before it. Values stay as people gave them.
    """

    ROW_FOR_ROW = False

    def __init__(self, spec: ExampleSpec):
        """Raises UserError if the backbone has fewer positions than `max_tokens`."""
        self.spec = spec
        folder = local_folder(spec.base)
        self.format = new_format(folder, spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)
        limit = max_positions(load_config(folder))
        if limit is not None and spec.max_tokens > limit:
            raise UserError(
                f"max_tokens is {spec.max_tokens}, but {spec.base} reads at most {limit} tokens; set predictor.learner.max_tokens to at most {limit}"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [example for row in from_table(batch) for example in self._examples(row)]
        return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)

    def _examples(self, row: Conversation) -> Iterator[dict[str, object]]:
        if not any(row.human):
            yield example_row(Origin(row.id, row.group, row.source), None, np.zeros(0), reason="unrated")
        elif self.format.reading.causal:
            yield self._example(row, row.id)
        else:
            for turn, values in enumerate(row.human):
                if values:
                    before = turn * 2 + 2
                    yield self._example(
                        replace(row, messages=row.messages[:before], human=(*({},) * turn, values)), f"{row.id}-{turn}"
                    )

    def _example(self, row: Conversation, id: str) -> dict[str, object]:
        reading = self.format.reading
        room = self.spec.max_tokens - len(reading.before) - len(reading.after)
        try:
            tokens = fitted(self.format.template, self.encode, row.system, row.messages, (), room)
        except OverLong:
            return example_row(Origin(id, row.group, row.source), None, np.zeros(0), reason="over_long")
        kept = row.human[tokens.num_dropped_turns :]
        if not any(kept):
            return example_row(Origin(id, row.group, row.source), None, np.zeros(0), reason="rated_turns_cut")
        values_SA = np.array([[v.get(n, np.nan) for n in self.spec.schema.names] for v in kept], np.float32)
        if not in_range(values_SA, self.spec.schema).any():
            return example_row(Origin(id, row.group, row.source), None, np.zeros(0), reason="no_label_in_range") | {
                "values": values_SA.ravel()
            }
        # The last segment is a decoder's only one; of an encoder's, the one that reads the rated answer.
        segment = segments(tokens, reading)[-1]
        answers_T = tokens.trained_T if reading.causal else np.zeros(len(segment), np.bool_)
        return example_row(
            Origin(id, row.group, row.source),
            Tokens(segment.ids_T, answers_T, segment.reads_S, tokens.num_dropped_turns),
            values_SA[-len(segment.reads_S) :],
        )


def label_counts(tables: Iterable[pa.Table], schema: AttributeSchema) -> dict[str, dict[str, int]]:
    """Of the rated rows in `tables` that could be read, one table at a time: labels that count, that nobody gave, and that lie outside the scale."""
    counts = {name: {"valid": 0, "missing": 0, "out_of_range": 0} for name in schema.names}
    for table in tables:
        values_SA = (
            table.column("values")
            .combine_chunks()
            .flatten()
            .to_numpy(zero_copy_only=False)
            .reshape(-1, len(schema.names))
        )
        valid_A, missing_A = in_range(values_SA, schema).sum(0), np.isnan(values_SA).sum(0)
        for i, name in enumerate(schema.names):
            counts[name]["valid"] += int(valid_A[i])
            counts[name]["missing"] += int(missing_A[i])
            counts[name]["out_of_range"] += int(len(values_SA) - valid_A[i] - missing_A[i])
    return counts


class PolicyExamples:
    """Conversations with a label line before each answer; loss on the answers."""

    ROW_FOR_ROW = True

    def __init__(
        self, spec: ExampleSpec, labels: LabelSource, calibration: Calibration, attribute_dropout: float, seed: int
    ):
        self.spec, self.labels, self.calibration, self.dropout, self.seed = (
            spec,
            labels,
            calibration,
            attribute_dropout,
            seed,
        )
        self.format = new_format(local_folder(spec.base), spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _table(batch, self._row)

    def _row(self, row: Conversation) -> dict[str, object]:
        labels = [
            self._shown(row.id, turn, values) for turn, values in enumerate(chosen(row, self.labels, self.calibration))
        ]
        if not any(labels) and self.dropout == 0 and self.labels != "none":
            return example_row(Origin(row.id, row.group, row.source), None, np.zeros(0), reason="unlabelled")
        tokens = fitted(self.format.template, self.encode, row.system, row.messages, labels, self.spec.max_tokens)
        return example_row(Origin(row.id, row.group, row.source), tokens, np.zeros(0))

    def _shown(self, id: str, turn: int, values: Values) -> Values:
        """Attribute dropout: of a share of the answers some labels are hidden, from one to all, the same way in every run.

        How many is drawn first, so that a lone label is as common as a full line but one; drawn for each label by itself, it would be one line in
        forty at a rate of .3 and five attributes.
        """
        rng = random.Random(f"{self.seed}/{id}/{turn}")
        if not values or rng.random() >= self.dropout:
            return values
        kept = rng.sample(sorted(values), rng.randrange(len(values)))
        return {name: value for name, value in values.items() if name in kept}


def chosen(row: Conversation, labels: LabelSource, calibration: Calibration) -> tuple[Values, ...]:
    """The values each answer is conditioned on, by policy; per attribute where both sources may count. Only predicted ones are calibrated.

    "none" = plain fine-tuning, no label lines. Of what a policy sampled there are predicted values only, and they count whatever `labels` says.
    """
    if labels == "none":
        return ({},) * row.num_answers
    human = row.human or ({},) * row.num_answers
    predicted = tuple(calibration(v) for v in row.predicted or ({},) * row.num_answers)
    if labels == "human_else_predicted":
        return tuple({**p, **h} for p, h in zip(predicted, human, strict=True))
    return tuple(human if labels == "human" and not any(row.requested) else predicted)


class ConversationExamples:
    """Conversations without label lines for language-model training: every token but the first is trained, or those of the answers only."""

    ROW_FOR_ROW = True

    def __init__(self, spec: ExampleSpec, answers_only: bool = False):
        self.spec, self.answers_only = spec, answers_only
        self.format = new_format(local_folder(spec.base), spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _table(batch, self._row)

    def _row(self, row: Conversation) -> dict[str, object]:
        tokens = fitted(self.format.template, self.encode, row.system, row.messages, (), self.spec.max_tokens)
        trained_T = tokens.trained_T if self.answers_only else np.arange(len(tokens)) > 0
        return example_row(Origin(row.id, row.group, row.source), replace(tokens, trained_T=trained_T), np.zeros(0))


class TextExamples:
    """Plain texts for language-model pre-training: every token but the first is trained; long texts are cut into windows."""

    ROW_FOR_ROW = False

    def __init__(self, spec: ExampleSpec):
        self.spec = spec
        self.format = new_format(local_folder(spec.base), spec.schema, spec.template)
        self.encode = encoder(self.format.tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = []
        end = self.format.tokenizer.eos_token_id
        for id, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
            ids = [*self.encode(text), end]
            for start in range(0, len(ids), self.spec.max_tokens):
                window = np.array(ids[start : start + self.spec.max_tokens], np.int32)
                if len(window) < 2:
                    continue  # a lone token predicts nothing
                trained = np.arange(len(window)) > 0
                rows.append(
                    example_row(
                        Origin(f"{id}-{start}", id), Tokens(window, trained, np.zeros(0, np.int32)), np.zeros(0)
                    )
                )
        return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def _table(batch: pa.Table, make: Callable[[Conversation], dict[str, object]]) -> pa.Table:
    rows = []
    for conversation in from_table(batch):
        try:
            rows.append(make(conversation))
        except OverLong:
            rows.append(
                example_row(
                    Origin(conversation.id, conversation.group, conversation.source),
                    None,
                    np.zeros(0),
                    reason="over_long",
                )
            )
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
