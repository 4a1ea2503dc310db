"""Can a text become control with this tokenizer? Finds a break for every control token and marker that survives it.

A normalizer may drop the break, fold letters or widths: then a text that spells no control token becomes one.
"""

import tokenizers
from transformers import PreTrainedTokenizerBase

from data.errors import UserError
from data.plain_text import BREAK, Neutralizer
from data.printable import printable

GAPS = (BREAK, "\u2060", "\u00b7", "_", " ")
"""Breaks in the order in which they are tried; a normalizer for search drops those that nobody sees."""


def surviving_gap(
    tokenizer: PreTrainedTokenizerBase, control: tuple[str, ...], markers: tuple[str, ...] = (), template: str = ""
) -> str:
    """The first break that leaves control tokens and markers plain text. Raises UserError if there is none.

    All added tokens are broken. Those that must not come back are special ones and those that `template` writes: others
    are runs of spaces, say, which a text may well hold.

    Changes the tokenizer where it must: a control token that is looked for after normalizing would be found in a text
    that never spelled it, so it is looked for before.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    orders = tuple(token for token in control if token in special or token in template)
    _match_before_normalizing(tokenizer, Neutralizer(control), orders)
    for gap in GAPS:
        if _leak(tokenizer, Neutralizer((*control, *markers), gap), orders, markers) is None:
            return gap
    leak = _leak(tokenizer, Neutralizer((*control, *markers)), orders, markers)
    raise UserError(
        f"this tokenizer ({type(tokenizer).__name__}) takes {printable(str(leak))!r} in a text of users for the "
        "template's own, however it is broken; set the other `template` (steerlm or chat), or base.model to a model "
        "with another tokenizer"
    )


def _match_before_normalizing(tokenizer: PreTrainedTokenizerBase, plain: Neutralizer, orders: tuple[str, ...]) -> None:
    written = _written(tokenizer, plain, orders)
    flags = ("single_word", "lstrip", "rstrip", "special")
    for token in tokenizer.added_tokens_decoder.values():
        if token.normalized and token.content in written:
            own = {flag: getattr(token, flag) for flag in flags}
            again = tokenizers.AddedToken(token.content, normalized=False, **own)
            tokenizer.add_tokens([again], special_tokens=token.special)


def _written(tokenizer: PreTrainedTokenizerBase, plain: Neutralizer, orders: tuple[str, ...]) -> list[str]:
    """The control tokens that texts can still write. The unknown token is no order."""
    texts = [text for token in orders for text in (token, *_look_alikes(token))]
    found = set(_ids(tokenizer, plain(" a ".join(texts)))) - {tokenizer.unk_token_id}
    return [token for token in orders if tokenizer.convert_tokens_to_ids(token) in found]


def _leak(
    tokenizer: PreTrainedTokenizerBase, plain: Neutralizer, orders: tuple[str, ...], markers: tuple[str, ...]
) -> str | None:
    """A control token or marker that a text can still write; None if none is left."""
    if written := _written(tokenizer, plain, orders):
        return written[0]
    for marker in markers:
        real = _ids(tokenizer, f"a\n{marker}\nb")
        if any(_ids(tokenizer, f"a\n{plain(text)}\nb") == real for text in (marker, *_look_alikes(marker))):
            return marker
    return None


def _look_alikes(text: str) -> list[str]:
    """Other texts that a normalizer may turn into `text`."""
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    others = [text[0] + gap + text[1:] for gap in GAPS[:2]]
    return [t for t in (wide, *others, text.upper(), text.lower(), text.title()) if t != text]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
