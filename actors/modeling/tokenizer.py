"""Tokenizers with a prompt format: train a small one, and add template, control tokens and Jinja to any one.

Knows no model weights; the format itself is `data.template`'s.
"""

import string
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from actors.modeling.chat_template import ChatRenderer, own_template, watched
from actors.modeling.control_text import surviving_gap
from actors.modeling.settings import TemplateKind
from data.attributes import AttributeSchema
from data.conversation import Message
from data.errors import UserError
from data.plain_text import longest_first
from data.template import CONTROL_TOKENS, LABEL_START, SteerLMTemplate, Template
from data.tokens import Encode, prompt_ids, tokenize
from data.words_template import Sentences, WordsTemplate, sentences_of
from data.wrapped_template import WrappedTemplate

PAD = "<pad>"
ANSWER_STARTS = (*string.ascii_letters, *string.digits, *"\"'#*-({[<", "The", "They", "Yes", "So", "In", "Here", "Sure")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` entries; any text round-trips."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, *CONTROL_TOKENS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # The turn start also ends a turn, as in the reference template, so any engine stops there.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=CONTROL_TOKENS[1],
        extra_special_tokens=[CONTROL_TOKENS[0], CONTROL_TOKENS[2]],
    )


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Text to ids with nothing added."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return lambda text: tokenizer.encode(text, add_special_tokens=False)
    # The same, without what `encode` does around each call: a conversation is many short texts.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return lambda text: list(backend.encode(text, add_special_tokens=False).ids)


def make_template(
    tokenizer: PreTrainedTokenizerBase,
    schema: AttributeSchema,
    kind: TemplateKind,
    base: str | None = None,
    sentences: Sentences | None = None,
) -> Template:
    """Add the control tokens of `kind` to `tokenizer`, return the template; `base`: the model's Jinja, if not steerlm.

    `sentences`: of "words"; None = those of the schema. Raises UserError if kind is not "steerlm" and the model has no
    chat template that can be used, or if an attribute has no words.
    """
    needed = CONTROL_TOKENS if kind == "steerlm" else (LABEL_START,)
    missing = [token for token in needed if token not in tokenizer.get_added_vocab()]
    added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in missing]
    tokenizer.add_tokens(added, special_tokens=True)
    control = longest_first([token for token in tokenizer.get_added_vocab() if len(token) > 1 and token.strip()])
    if kind == "steerlm":
        ids = tokenizer("a").input_ids
        bos = str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""
        return SteerLMTemplate(schema, control, bos, surviving_gap(tokenizer, control))
    source = base or own_template(tokenizer)
    with watched():
        wrapped = WordsTemplate if kind == "words" else WrappedTemplate
        template = wrapped.of(schema, source, ChatRenderer(tokenizer), control)
    template = replace(template, gap=surviving_gap(tokenizer, control, template.markers, source))
    if not isinstance(template, WordsTemplate):
        return template
    _require_boundary(tokenizer, template)
    return _with_words(template, sentences)


def _with_words(template: WordsTemplate, sentences: Sentences | None) -> WordsTemplate:
    """Raises UserError if an attribute has no words."""
    found = sentences or sentences_of(template.schema)
    return replace(template, sentences={name: [template.plain(s) for s in said] for name, said in found.items()})


def _require_boundary(tokenizer: PreTrainedTokenizerBase, template: WordsTemplate) -> None:
    """Raise UserError if an answer's first token may swallow the end of its prompt, as in "[/INST] " + "They".

    A label line ends with a newline; without one, the model's own template decides where an answer begins.
    """
    encode = encoder(tokenizer)
    for start in ANSWER_STARTS:
        prompt, answer = template.pieces("", [Message("user", "a"), Message("assistant", start)], ())
        if encode(prompt.text + answer.text) != encode(prompt.text) + encode(answer.text):
            raise UserError(
                f"the model's chat template writes {prompt.text[-10:]!r} before an answer, which its tokenizer joins "
                f"with the answer's start ({start!r}), so training and other engines would see different tokens; "
                "set template: chat"
            )


def check_equality(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Raise UserError unless the exported Jinja gives the very ids that training builds piece by piece."""
    labels = [template.schema.best(), template.schema.defaults()]
    texts = ("Hello.", "Hi!", "Why?", "So:\n\n1. this")
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    encode = encoder(tokenizer)
    ours = tokenize(template.pieces("Be kind.", turns, labels), encode).ids_T.tolist()
    our_prompt = prompt_ids(template, encode, "Be kind.", turns[:3], labels[1], labels[:1])
    messages = [Message("system", "Be kind."), *turns]
    chat: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    chat[2] |= {"attributes": labels[0]}
    chat[4] |= {"attributes": labels[1]}
    theirs = chat_ids(tokenizer, chat, template.jinja())
    prompt = chat_ids(tokenizer, chat[:4], template.jinja(), attributes=labels[1], add_generation_prompt=True)
    # A chat template may add a newline after the last turn end; training does not need it.
    if theirs[: len(ours)] != ours or prompt != our_prompt:
        raise UserError(
            "the exported chat template and training give different ids with this tokenizer "
            f"({type(tokenizer).__name__}): {tokenizer.decode(ours)!r} against {tokenizer.decode(theirs)!r}; "
            "try another `template` (steerlm, chat or words)"
        )


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]], template: str | None = None, **variables: Any
) -> list[int]:
    """`apply_chat_template` as a plain list of ids."""
    return list(tokenizer.apply_chat_template(chat, chat_template=template, return_dict=False, **variables))
