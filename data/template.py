"""The only place that knows the prompt format: conversation and labels in, pieces of text out, and the same as Jinja.

`SteerLMTemplate` is NeMo-Aligner's template byte for byte (examples/nlp/data/steerlm/common.py). `WrappedTemplate` puts
the label line at the same place, right before the answer, inside a model's own chat template. Knows no token ids.

Text from people is never control: `neutralize` breaks the spelling of every special token inside a message, in Python
and in the exported Jinja alike, so that both give the same ids in every engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.attributes import AttributeSchema, Values
from data.conversation import Message
from data.errors import UserError

SYSTEM_START, TURN_START, LABEL_START = CONTROL_TOKENS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
BREAK = "\u200b"
"""Zero width space: put after the first character of a control token's spelling, it makes plain text of it."""

Labels = Sequence[Values | None]
"""One entry per assistant turn; None or {} = no label line."""


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

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        """The whole conversation; if it ends with a user turn, the prompt for an answer at `attributes`."""
        ...

    def jinja(self) -> str:
        """The same format as a chat template: `messages`, `attributes`, `add_generation_prompt`."""
        ...


def neutralize(text: str, control_tokens: Sequence[str]) -> str:
    """`text`, trimmed, with no control token's spelling left in it: "<extra_id_2>" -> "<", BREAK, "extra_id_2>"."""
    for token in control_tokens:
        text = text.replace(token, token[0] + BREAK + token[1:])
    return text.strip()


def label_line(schema: AttributeSchema, values: Values | None) -> str:
    """`<extra_id_2>name:int,name:int\\n` in schema order, clipped and rounded half to even; "" if none is rated."""
    rated = [
        f"{a.name}:{a.rounded(values[a.name])}" for a in schema.attributes if values and values.get(a.name) is not None
    ]
    return f"{LABEL_START}{','.join(rated)}\n" if rated else ""


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

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        pieces = []
        text = f"{self.bos}{SYSTEM_START}System\n{neutralize(system, self.control_tokens)}\n{TURN_START}"
        for message, values in zip(messages, per_message(messages, labels), strict=True):
            content = neutralize(message.content, self.control_tokens)
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
        return f"""{_jinja_prelude(self.schema, self.control_tokens)}\
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


@dataclass(frozen=True)
class WrappedTemplate:
    """A model's own chat template, with the label line right before each answer.

    `base` is the model's Jinja source; `render(template, messages, add_generation_prompt)` renders it.
    """

    schema: AttributeSchema
    base: str
    render: Callable[[str, list[dict[str, Any]], bool], str]
    control_tokens: tuple[str, ...] = CONTROL_TOKENS

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        """Raises UserError if the base template rewrites earlier turns, so that a prompt is no prefix of the whole."""
        chat = [{"role": "system", "content": neutralize(system, self.control_tokens)}] if system else []
        pieces: list[TextPiece] = []
        done = ""
        for message, values in zip(messages, per_message(messages, labels), strict=True):
            content = neutralize(message.content, self.control_tokens)
            if message.role == "assistant":
                line = label_line(self.schema, values)
                prompt = self.render(self.base, chat, True) + line
                chat.append({"role": "assistant", "content": line + content})
                end = self._turn_end(self.render(self.base, chat, False), prompt + content)
                pieces += [TextPiece(self._prefixed(prompt, done)), TextPiece(content + end, trained=True)]
                done = prompt + content + end
            else:
                chat.append({"role": "user", "content": content})
        if messages and messages[-1].role == "user":
            prompt = self._prefixed(self.render(self.base, chat, True), done)
            pieces.append(TextPiece(prompt + label_line(self.schema, attributes)))
        return pieces

    def _turn_end(self, whole: str, upto_content: str) -> str:
        """The text after the answer, up to the first control token with it: trained, so that the model stops."""
        tail = self._prefixed(whole, upto_content)
        ends = [tail.find(token) + len(token) for token in self.control_tokens if token in tail]
        if not ends:
            raise UserError(
                "the model's chat template ends an answer with no special token, so a model trained on it never stops; "
                "set template: steerlm"
            )
        return tail[: min(ends)]

    def _prefixed(self, text: str, prefix: str) -> str:
        if not text.startswith(prefix):
            there = text[max(0, len(prefix) - 40) : len(prefix)]
            raise UserError(
                f"the model's chat template rewrites earlier turns (…{prefix[-40:]!r} is no prefix of …{there!r}), "
                "so training and serving would see different tokens; set template: steerlm"
            )
        return text[len(prefix) :]

    def jinja(self) -> str:
        label = "{%- set content = line(message.get('attributes')) + content -%}"
        return f"""{_jinja_prelude(self.schema, self.control_tokens)}\
{{%- set ns = namespace(chat=[]) -%}}
{{%- for message in messages -%}}
{{%- set content = plain(message['content']) -%}}
{{%- if message['role'] == 'assistant' -%}}{label}{{%- endif -%}}
{{%- set ns.chat = ns.chat + [dict(message, content=content)] -%}}
{{%- endfor -%}}
{{%- set messages = ns.chat -%}}
{self.base.removesuffix(chr(10))}{{% if add_generation_prompt %}}{{{{ line(asked) }}}}{{% endif %}}"""


def _jinja_prelude(schema: AttributeSchema, control_tokens: Sequence[str]) -> str:
    """Macros `plain` (neutralize) and `line` (label_line), and `asked`: the caller's attributes, or else the defaults.

    The template is stored with checkpoints, and a prompt cache is keyed by it: its names stay.
    """
    plain = "text" + "".join(f"|replace({t!r}, {t[0] + BREAK + t[1:]!r})" for t in control_tokens)
    scale = "[" + ", ".join(f"({a.name!r}, {a.low}, {a.high})" for a in schema.attributes) + "]"
    return f"""{{%- macro plain(text) -%}}{{{{- {plain}|trim -}}}}{{%- endmacro -%}}
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
