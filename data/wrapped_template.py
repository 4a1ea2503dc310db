"""The label line inside a model's own chat template, right before each answer. Knows no Jinja engine: it is given one.

The whole conversation is rendered once and cut at what the template writes around texts, its `Frame`, which is found by
rendering a sample. A template without a frame is rendered once for each answer, so it takes few answers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from data.attributes import AttributeSchema, Values
from data.conversation import Message
from data.plain_text import BREAK, Neutralizer, longest_first, plain_markers
from data.template import CONTROL_TOKENS, Labels, TextPiece, Unrenderable, jinja_prelude, label_line, per_message
from data.tool_use import ToolChat, ToolTurn

Chat = list[dict[str, Any]]
TOOL_MARK = re.compile(r"</?tool\w*>")
"""What chat templates write around tools and their results; not always a token."""


class Render(Protocol):
    """Raises TemplateRefusal if the template refuses the messages."""

    def __call__(
        self, template: str, messages: Chat, add_generation_prompt: bool, tools: Chat | None = None
    ) -> str: ...


MAX_ANSWERS_WITHOUT_FRAME = 64
SYSTEM_SAMPLE = "Qz0Sqz"
SAMPLE = tuple(Message(("user", "assistant")[i % 2], f"Qz{i}{'UA'[i % 2]}qz") for i in range(6))
"""Texts that no template writes itself: what stands around them is the template's."""


class TemplateRefusal(Unrenderable):
    """The chat template itself, its Jinja, failed or raised."""


@dataclass(frozen=True)
class Frame:
    """What a template writes around the texts of every turn alike."""

    between: str
    """From an answer's end to the next user's text."""
    opening: str
    """From a user's text to the label line."""
    end: str
    """After an answer, to its last trained token."""


@dataclass(frozen=True)
class WrappedTemplate:
    """A model's own chat template, `base`, in Jinja. `of` makes one."""

    schema: AttributeSchema
    base: str
    render: Render
    control_tokens: tuple[str, ...] = CONTROL_TOKENS
    """All the tokenizer's added tokens."""
    markers: tuple[str, ...] = ()
    """Marks of roles that are plain characters for the tokenizer."""
    gap: str = BREAK
    frame: Frame | None = None
    merges_system: bool = False
    """The template takes no system message: the system text stands above the first user's, as its users write it."""

    @classmethod
    def of(
        cls, schema: AttributeSchema, base: str, render: Render, control_tokens: tuple[str, ...] = CONTROL_TOKENS
    ) -> "WrappedTemplate":
        """Studies `base` by rendering a sample. Raises UserError if no model can be trained with it."""
        template = cls(schema, base, render, control_tokens)
        try:
            pieces = template.pieces(SYSTEM_SAMPLE, SAMPLE, ())
        except TemplateRefusal:
            template = replace(template, merges_system=True)
            pieces = template.pieces(SYSTEM_SAMPLE, SAMPLE, ())
        constants = "".join(p.text for p in pieces)
        for sample in (SYSTEM_SAMPLE, *(m.content for m in SAMPLE)):
            constants = constants.replace(sample, "\0", 1)
        markers = plain_markers(constants.split("\0"), control_tokens)
        return replace(template, frame=_frame(pieces), markers=longest_first(markers))

    @property
    def is_local(self) -> bool:
        return self.frame is not None

    @cached_property
    def plain(self) -> Neutralizer:
        return Neutralizer(longest_first({*self.control_tokens, *self.markers}), self.gap)

    def pieces(
        self, system: str, messages: Sequence[Message], labels: Labels, attributes: Values | None = None
    ) -> list[TextPiece]:
        """Raises Unrenderable if the template rewrites earlier turns, so that a prompt is no prefix of the whole."""
        asks = bool(messages) and messages[-1].role == "user"
        values = per_message(messages, labels)
        chat = self._chat(system, self._turns(messages, values, attributes))
        lines = [self._line(v) for v in values]
        turns = len(chat) - len(messages)
        shown = [
            m | {"content": line + m["content"]} if m["role"] == "assistant" else m
            for m, line in zip(chat[turns:], lines, strict=True)
        ]
        whole = self.render(self.base, [*chat[:turns], *shown], asks)
        pieces = self._cut(whole, chat[turns:], lines)
        if pieces is None:
            pieces = self._turn_by_turn(chat[:turns], chat[turns:], lines)
        if asks:
            prompt = _after(whole, "".join(p.text for p in pieces))
            pieces.append(TextPiece(prompt + self._line(attributes)))
        return pieces

    def tool_prompt(self, system: str, chat: ToolChat, labels: Labels, attributes: Values | None) -> str:
        """A prompt at `attributes` with tools, as the model's own template writes them, rendered once as a whole.

        `labels`: one for each of an assistant's turns. Raises Unrenderable if the template refuses this conversation.
        """
        values = dict(zip((i for i, t in enumerate(chat.turns) if t.role == "assistant"), labels, strict=True))
        texts = self._tool_texts(chat.turns, values, attributes)
        plain = self._plain_with_tools
        messages = self._chat(plain(system), [(turn.role, text) for turn, text in zip(chat.turns, texts, strict=True)])
        for message, turn in zip(messages[-len(chat.turns) :], chat.turns, strict=True):
            if turn.calls:
                message["tool_calls"] = [call.shown(plain) for call in turn.calls]
            if turn.role == "tool":
                message |= {"tool_call_id": plain(turn.call_id), "name": plain(turn.name)}
        return self.render(self.base, messages, True, [t.shown(plain) for t in chat.tools]) + self._line(attributes)

    def _tool_texts(
        self, turns: Sequence[ToolTurn], values: Mapping[int, Values | None], attributes: Values | None
    ) -> list[str]:
        """Neutralized text of every turn, with its label line; a turn that only calls has none."""
        plain = self._plain_with_tools
        return [
            (self._line(values.get(i)) if turn.content else "") + plain(turn.content) for i, turn in enumerate(turns)
        ]

    @cached_property
    def _plain_with_tools(self) -> Neutralizer:
        """Nobody's text is a call or a tool's result either."""
        marks = {*self.control_tokens, *self.markers, *TOOL_MARK.findall(self.base)}
        return Neutralizer(longest_first(marks), self.gap)

    def _turns(
        self, messages: Sequence[Message], values: Sequence[Values | None], attributes: Values | None
    ) -> list[tuple[str, str]]:
        """Role and neutralized text of every message, with what this format adds to a user's turn: nothing."""
        return [(m.role, self.plain(m.content)) for m in messages]

    def _line(self, values: Values | None) -> str:
        """What stands right before an answer of these values."""
        return label_line(self.schema, values)

    def _chat(self, system: str, turns: Sequence[tuple[str, str]]) -> Chat:
        """The messages for the template, without label lines."""
        chat: Chat = [{"role": role, "content": content} for role, content in turns]
        if system and not self.merges_system:
            return [{"role": "system", "content": self.plain(system)}, *chat]
        if chat and (text := self.plain(system)):
            chat[0]["content"] = f"{text}\n\n{chat[0]['content']}"
        return chat

    def _cut(self, whole: str, turns: Chat, lines: Sequence[str]) -> list[TextPiece] | None:
        """`whole` at the frame; None if it does not have it everywhere."""
        if self.frame is None or any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(turns)):
            return None
        pieces: list[TextPiece] = []
        at = 0
        for i in range(1, len(turns), 2):
            prompt = f"{turns[i - 1]['content']}{self.frame.opening}{lines[i]}"
            answer = f"{turns[i]['content']}{self.frame.end}"
            start = at
            if i == 1:
                start = whole.find(prompt + answer)
            else:
                prompt = self.frame.between + prompt
            if start < 0 or not whole.startswith(prompt + answer, start):
                return None
            pieces += [TextPiece(whole[at : start + len(prompt)]), TextPiece(answer, trained=True)]
            at = start + len(prompt) + len(answer)
        return pieces

    def _turn_by_turn(self, head: Chat, turns: Chat, lines: Sequence[str]) -> list[TextPiece]:
        """The same for any template: one rendering up to each answer and one with it."""
        num_answers = sum(m["role"] == "assistant" for m in turns)
        if num_answers > MAX_ANSWERS_WITHOUT_FRAME:
            raise Unrenderable(
                f"the model's chat template writes turns differently from place to place, so it takes at most "
                f"{MAX_ANSWERS_WITHOUT_FRAME} answers in a conversation, and this one has {num_answers}; "
                "shorten it, or set template: steerlm"
            )
        chat, pieces, done = list(head), list[TextPiece](), ""
        for message, line in zip(turns, lines, strict=True):
            if message["role"] == "assistant":
                prompt = self.render(self.base, chat, True) + line
                upto = prompt + message["content"]
                chat.append(message | {"content": line + message["content"]})
                end = self._turn_end(self.render(self.base, chat, False), upto)
                pieces += [TextPiece(_after(prompt, done)), TextPiece(message["content"] + end, trained=True)]
                done = upto + end
            else:
                chat.append(message)
        return pieces

    def _turn_end(self, whole: str, upto_content: str) -> str:
        """The text after the answer, up to the first control token with it: trained, so that the model stops."""
        tail = _after(whole, upto_content)
        ends = [tail.find(token) + len(token) for token in self.control_tokens if token in tail]
        if not ends:
            raise Unrenderable(
                "the model's chat template ends an answer with no special token, so a model trained on it never stops; "
                "set template: steerlm"
            )
        return tail[: min(ends)]

    def jinja(self) -> str:
        label = "{%- set content = line(message.get('attributes')) + content -%}"
        return self._jinja(
            jinja_prelude(self.schema, self.plain),
            f"{{%- if message['role'] == 'assistant' -%}}{label}{{%- endif -%}}",
            "{% if add_generation_prompt %}{{ line(asked) }}{% endif %}",
        )

    def _jinja(self, prelude: str, label: str, after: str) -> str:
        """The model's template with `prelude` before it, `label` run for every message, and `after` behind it."""
        append = "{%- set ns.chat = ns.chat + [dict(message, content=content)] -%}"
        state = "chat=[]"
        if self.merges_system:
            state = "chat=[], system=''"
            append = f"""\
{{%- if message['role'] == 'system' -%}}{{%- set ns.system = content -%}}
{{%- else -%}}
{{%- if ns.system -%}}{{%- set content = ns.system + '\\n\\n' + content -%}}{{%- set ns.system = '' -%}}{{%- endif -%}}
{append}
{{%- endif -%}}"""
        return f"""{prelude}\
{{%- set ns = namespace({state}) -%}}
{{%- for message in messages -%}}
{{%- set content = plain(message['content']) -%}}
{label}
{append}
{{%- endfor -%}}
{{%- set messages = ns.chat -%}}
{self.base.removesuffix(chr(10))}{after}"""


def _after(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        there = text[max(0, len(prefix) - 20) : len(prefix)]
        raise Unrenderable(
            f"the model's chat template rewrites earlier turns (…{prefix[-20:]!r} is no prefix of …{there!r}), "
            "so training and serving would see different tokens; set template: steerlm"
        )
    return text[len(prefix) :]


def _frame(pieces: Sequence[TextPiece]) -> Frame | None:
    """The frame of the sample's pieces; None if its turns differ."""
    found = set()
    for i in range(2, len(pieces), 2):
        between, user, opening = pieces[i].text.partition(SAMPLE[i].content)
        end = pieces[i + 1].text.removeprefix(SAMPLE[i + 1].content)
        found.add(Frame(between, opening, end) if user else None)
    first = pieces[0].text.partition(SAMPLE[0].content)[2], pieces[1].text.removeprefix(SAMPLE[1].content)
    (frame,) = found if len(found) == 1 else (None,)
    return frame if frame and (frame.opening, frame.end) == first else None
