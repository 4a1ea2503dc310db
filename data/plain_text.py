"""Text from people is never control: `Neutralizer` breaks the spelling of every control token and marker in it.

The same in Python and as a chain of Jinja filters, so that both give the same ids in every engine.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from data.errors import UserError
from data.printable import printable

BREAK = "\u200b"
"""Zero width space: put after the first character of a control token's spelling, it makes plain text of it."""


@dataclass(frozen=True)
class Neutralizer:
    """Breaks `spellings` with `gap`, in their order; the longest comes first, so that none is left whole by another."""

    spellings: tuple[str, ...]
    gap: str = BREAK

    def __call__(self, text: str) -> str:
        """`text`, trimmed, with no spelling left in it: "<extra_id_2>" -> "<", BREAK, "extra_id_2>"."""
        if any(first in text for first in self._firsts):
            for spelling, broken in self._steps:
                text = text.replace(spelling, broken)
        return text.strip()

    def jinja(self, variable: str) -> str:
        """An expression for the same of `variable`."""
        return variable + "".join(f"|replace({s!r}, {broken!r})" for s, broken in self._steps) + "|trim"

    @cached_property
    def _steps(self) -> list[tuple[str, str]]:
        # "||" in "|||" is found once in a pass, and the next one starts inside it: such a spelling needs more passes.
        passes = [s for s in self.spellings for _ in range(len(s) if _overlaps_itself(s) else 1)]
        return [(s, s[0] + self.gap + s[1:]) for s in passes]

    @cached_property
    def _firsts(self) -> frozenset[str]:
        return frozenset(s[0] for s in self.spellings)


def longest_first(spellings: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(spellings, key=lambda s: (-len(s), s)))


def _overlaps_itself(spelling: str) -> bool:
    return any(spelling.startswith(spelling[i:]) for i in range(1, len(spelling)))


BRACKETED = re.compile(r"<<[^<>\n]{1,60}>>|<[^<>\n]{1,60}>|\[[^\[\]\n]{1,60}\]|\{[^{}\n]{1,60}\}")
"""What marks a role in a chat template: <|user|>, [INST], <<SYS>>."""


def plain_markers(constants: Sequence[str], control_tokens: Collection[str]) -> set[str]:
    """The markers of roles that are no tokens, in what a template writes before, between and after texts, in order.

    Micro-example: "</s>\\n<|assistant|>\\n", of which only </s> is a control token -> <|assistant|>.
    A word beside a control token ("<|im_start|>user") needs no protection: nobody can write the token.
    Raises UserError if a role is marked by a mere word, which cannot be broken wherever it stands.
    """
    control = re.compile("|".join(map(re.escape, longest_first(control_tokens))) or "(?!)")
    found: set[str] = set()
    for number, constant in enumerate(constants):
        parts = control.split(constant)
        lines = [(line, i > 0 and j == 0) for i, part in enumerate(parts) for j, line in enumerate(part.split("\n"))]
        # What stands before the first text may be a date or a greeting: only what introduces the text marks it.
        last = max((i for i, (line, _) in enumerate(lines) if line.strip()), default=0)
        for i, (line, beside_token) in enumerate(lines):
            brackets = BRACKETED.findall(line)
            found |= set(brackets)
            rest = BRACKETED.sub(" ", line).strip()
            is_word = len(rest) == 1 or all(c.isalnum() or c in " _" for c in rest)
            if not rest or (is_word and (beside_token or brackets or number == 0)):
                continue
            if is_word:
                raise UserError(
                    f"the model's chat template marks a turn with {printable(rest)!r} alone, which any text may "
                    "hold, so texts could not be told from the template; set template: steerlm"
                )
            if number > 0 or (i == last and not rest[-1].isalnum()):
                found.add(rest)
    return found
