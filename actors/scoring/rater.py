"""Conversations in, a predictor's values of their assistant turns out: many conversations in one packed forward.

Order and batch size do not change a value. Knows no Arrow and no Ray.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from actors.scoring.predictor import Predictor
from actors.scoring.preprocessor import read
from data.conversation import Conversation
from data.counters import Counters
from data.packing import best_fit
from data.tokens import Segment, Tokens, segments


class Rater:
    """A predictor that rates conversations."""

    def __init__(self, predictor: Predictor, pack_tokens: int, max_tokens: int):
        """`pack_tokens` and `max_tokens` bound a packed forward and a conversation.

        Raises UserError if the predictor's backbone cannot read `max_tokens`.
        """
        predictor.require_segment_fits(max_tokens)
        self.predictor, self.pack_tokens, self.max_tokens = predictor, pack_tokens, max_tokens

    def rate(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """Raw values of each conversation's assistant turns, float32 [S, A] in the order of the schema.

        Of an over-long conversation the last `max_tokens` are read; the turns before them are NaN.
        """
        tokens, _ = read(conversations, self.predictor.format, self.max_tokens)
        values, _ = self.rate_tokens(tokens)
        return [self.whole(v, c.num_answers) for v, c in zip(values, conversations, strict=True)]

    def rate_tokens(self, tokens: Sequence[Tokens]) -> tuple[list[np.ndarray], Counters]:
        """The values of the turns in each conversation's tokens [S, A], and how full the packs were."""
        cut = [segments(t, self.predictor.reading) if len(t.turn_ends_S) else [] for t in tokens]
        flat = [(owner, segment) for owner, own in enumerate(cut) for segment in own]
        found: dict[tuple[int, int], np.ndarray] = {}
        lengths = [len(segment) for _, segment in flat]
        packs = best_fit(lengths, self.pack_tokens) if self.predictor.packing else [[i] for i in range(len(flat))]
        for members, scores in self._scored(packs, [segment for _, segment in flat]):
            for i, values_SA in zip(members, scores, strict=True):
                found[flat[i][0], i] = values_SA
        nothing_SA = np.zeros((0, len(self.predictor.schema.names)), np.float32)
        values = [[nothing_SA] for _ in tokens]
        for owner, i in sorted(found):
            values[owner].append(found[owner, i])
        filled = sum(len(segment) for _, segment in flat)
        budget = len(packs) * self.pack_tokens if self.predictor.packing else filled
        counters: Counters = {"filled_tokens": filled, "budget_tokens": budget}
        return [np.concatenate(v) for v in values], counters

    def _scored(
        self, packs: Sequence[list[int]], segments: Sequence[Segment]
    ) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Each pack with its segments' scores. The next pack begins before a pack's scores are waited for."""
        waiting: tuple[list[int], Callable[[], list[np.ndarray]]] | None = None
        for members in packs:
            chosen = [segments[i] for i in members]
            begun = self.predictor.start(*([getattr(s, n) for s in chosen] for n in ("ids_T", "reads_S", "starts_S")))
            if waiting:
                yield waiting[0], waiting[1]()
            waiting = members, begun
        if waiting:
            yield waiting[0], waiting[1]()

    def whole(self, values_SA: np.ndarray, num_turns: int) -> np.ndarray:
        """`values_SA` of a conversation's last turns, with NaN for the turns before them."""
        unread_SA = np.full((num_turns - len(values_SA), values_SA.shape[1]), np.nan, np.float32)
        return np.concatenate([unread_SA, values_SA])
