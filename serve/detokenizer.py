"""Token ids in, settled text out: never half a character, never a stop string or a part of one.

Knows no tokenizer: it is given `decode`.
"""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What `decode` gives for bytes that are no character, or not yet."""
MAX_HELD_IDS = 32
"""After so many ids without a character, none is coming: one has at most four bytes."""


class Detokenizer:
    """Ids to text, as they come. Only a short window is decoded again, so that an answer costs linear time.

    Micro-example: "é" in two byte tokens: push([0xC3]) -> "", push([0xA9]) -> "é".
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()):
        """`context`: ids before the first ones, if these go on with a text."""
        self._decode = decode
        self._context = list(context)  # settled ids: some tokenizers write a token otherwise where it stands first
        self._window: list[int] = []  # ids whose text is not settled
        self._num_sent = 0  # characters of the window that were returned already

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that `ids` settle; with `last`, all that is left."""
        self._window += ids
        before = len(self._decode(self._context)) if self._context else 0
        text = self._decode(self._context + self._window)[before:]
        # The whole run of them waits: with byte fallback one missing byte spoils its whole neighbors for the moment.
        settled = text if last or len(self._window) > MAX_HELD_IDS else text.rstrip(REPLACEMENT)
        new = settled[self._num_sent :]
        self._num_sent = max(self._num_sent, len(settled))
        if new and settled == text:
            self._context, self._window, self._num_sent = self._window, [], 0
        return new


class AnswerText:
    """The text of one answer as a caller may see it: characters whole, ended before the first stop string, trimmed.

    Answers are trained trimmed, before the template's own line break: trailing space belongs to the template.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        context: Sequence[int] = (),
        trimmed: bool = True,
    ):
        """`context`: the last ids of the answer's beginning, if it is to be continued; `trimmed`: without a template
        no space belongs to it."""
        self._detokenizer, self._trimmed = Detokenizer(decode, context), trimmed
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Was a stop string found? Then whatever comes after it is ignored."""

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """What a caller may see now; `last` when no ids will follow."""
        if self.stopped:
            return ""
        text = self._held + self._detokenizer.push(ids, last)
        # The stop string that is complete first counts, so that the answer does not depend on how the text was cut.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        open_end = text if last else text[: len(text) - self._pending(text)]
        open_end = open_end.rstrip() if self._trimmed else open_end
        self._held = text[len(open_end) :]
        return open_end

    def _pending(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
