"""The only place that knows the prompt format: conversation and labels in, pieces of text out, and the same as Jinja.

`SteerLMTemplate` is NeMo-Aligner's template byte for byte (examples/nlp/data/steerlm/common.py). `data.chat_template`
puts the label line at the same place, right before the answer, inside a model's own chat template. Knows no token ids.
Every text goes through a `Neutralizer` first, here and in the exported Jinja.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from data.attributes import AttributeSchema, Values
from data.conversation import Message
from data.errors import UserError
from data.plain_text import BREAK, Neutralizer

SYSTEM_START, TURN_START, LABEL_START = CONTROL_TOKENS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
Labels = Sequence[Values | None]
"""One entry per assistant turn; None or {} = no label line."""


class Unrenderable(UserError):
    """A conversation that the template refuses; it may take others."""


@dataclass(frozen=True)
class TextPiece:
    """A run of text that is tokenized on its own, so that the loss mask is known by construction."""

    text: str
    trained: bool = False
    """Answer and turn end: these tokens carry loss. If so, the piece's last token ends an assistant turn."""


class Template(Protocol):
    """A prompt format, as training, annotation and serving need it."""

    @property
    def schema(self) -> AttributeSchema: ...

    @property
    def is_local(self) -> bool:
        """Are an exchange's pieces, but those of the first one, the same whatever stands before it?"""
        ...

    @property
    def plain(self) -> Neutralizer:
        """What every text goes through."""
        ...

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        """The whole conversation, two pieces for each answer; if it ends with a user turn, a prompt at `attributes`.

        Raises Unrenderable if the template refuses this conversation.
        """
        ...

    def jinja(self) -> str:
        """The same format as a chat template: `messages`, `attributes`, `add_generation_prompt`."""
        ...


def label_line(schema: AttributeSchema, values: Values | None) -> str:
    """`<extra_id_2>name:int,name:int\\n` in schema order, clipped and rounded half to even; "" if none is rated."""
    rated = [
        f"{a.name}:{a.rounded(values[a.name])}" for a in schema.attributes if values and values.get(a.name) is not None
    ]
    return f"{LABEL_START}{','.join(rated)}\n" if rated else ""


def surroundings(schema: AttributeSchema, messages: Sequence[Message], labels: Labels) -> list[str]:
    """What the format writes around the texts, without control tokens: role words and label lines, in order."""
    silent = [Message(m.role, "") for m in messages]
    written = "".join(piece.text for piece in SteerLMTemplate(schema).pieces("", silent, labels))
    return [part for part in re.split("|".join(CONTROL_TOKENS), written) if part.strip()]


def per_message(messages: Sequence[Message], labels: Labels) -> list[Values | None]:
    """`labels`, one per assistant turn, spread over all messages."""
    answers = sum(m.role == "assistant" for m in messages)
    assert len(labels) in (0, answers), f"{len(labels)} labels for {answers} assistant turns"
    remaining = iter(labels or [None] * answers)
    return [next(remaining) if m.role == "assistant" else None for m in messages]


@dataclass(frozen=True)
class SteerLMTemplate:
    """NeMo-Aligner's format: the system text, then a pair of turns for each answer.

    `<extra_id_0>System\\n{system}\\n`
    `<extra_id_1>User\\n{user}\\n<extra_id_1>Assistant\\n<extra_id_2>{labels}\\n{answer}\\n<extra_id_1>`

    `control_tokens` are all the tokenizer's added tokens; `bos` is what the tokenizer puts first, or "".
    """

    schema: AttributeSchema
    control_tokens: tuple[str, ...] = CONTROL_TOKENS
    bos: str = ""
    gap: str = BREAK

    is_local = True

    @cached_property
    def plain(self) -> Neutralizer:
        return Neutralizer(self.control_tokens, self.gap)

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        pieces = []
        text = f"{self.bos}{SYSTEM_START}System\n{self.plain(system)}\n{TURN_START}"
        for message, values in zip(messages, per_message(messages, labels), strict=True):
            content = self.plain(message.content)
            if message.role == "user":
                text += f"User\n{content}\n{TURN_START}"
            else:
                pieces += [
                    TextPiece(f"{text}Assistant\n{label_line(self.schema, values)}"),
                    TextPiece(f"{content}\n{TURN_START}", trained=True),
                ]
                text = ""
        if messages and messages[-1].role == "user":
            pieces.append(TextPiece(f"{text}Assistant\n{label_line(self.schema, attributes)}"))
        return pieces

    def jinja(self) -> str:
        role_error = "'role ' ~ message['role'] ~ ' is not system (first), user or assistant'"
        return f"""{jinja_prelude(self.schema, self.plain)}\
{{%- set first = 1 if messages and messages[0]['role'] == 'system' else 0 -%}}
{{{{- {self.bos!r} + '{SYSTEM_START}System\\n' + (plain(messages[0]['content']) if first else '') + '\\n' -}}}}
{{%- for message in messages[first:] -%}}
{{%- if message['role'] == 'assistant' -%}}
{{{{- '{TURN_START}Assistant\\n' + line(message.get('attributes')) + plain(message['content']) + '\\n' -}}}}
{{%- if loop.last -%}}{{{{- '{TURN_START}' -}}}}{{%- endif -%}}
{{%- elif message['role'] == 'user' -%}}
{{{{- '{TURN_START}User\\n' + plain(message['content']) + '\\n' -}}}}
{{%- else -%}}{{{{ raise_exception({role_error}) }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{TURN_START}Assistant\\n' + line(asked) -}}}}{{%- endif -%}}"""


def jinja_prelude(schema: AttributeSchema, plain: Neutralizer) -> str:
    """Macros `plain` and `line` (label_line), and `asked`: the caller's attributes, or else the defaults.

    The template is stored with checkpoints, and a prompt cache is keyed by it: its names stay.
    """
    scale = "[" + ", ".join(f"({a.name!r}, {a.low}, {a.high})" for a in schema.attributes) + "]"
    return f"""{{%- macro plain(text) -%}}{{{{- {plain.jinja("text")} -}}}}{{%- endmacro -%}}
{{%- macro line(values) -%}}
{{%- set found = namespace(parts=[]) -%}}
{{%- for name, low, high in {scale} -%}}
{{%- if values and values.get(name) is not none -%}}
{{%- set found.parts = found.parts + [name ~ ':' ~ ([[values[name], low]|max, high]|min|round|int)] -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if found.parts -%}}{{{{- '{LABEL_START}' + found.parts|join(',') + '\\n' -}}}}{{%- endif -%}}
{{%- endmacro -%}}
{{%- set asked = attributes if attributes is defined else {schema.defaults()!r} -%}}
"""
