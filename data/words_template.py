"""Values in words, at the end of a user's turn: the third prompt format, for a base model that follows instructions.

A pretrained model starts from ignoring numbers in a label line, but does what a sentence at the end of the request
says. So each value of an attribute is a sentence, and they stand behind an added token that no user's text can hold:
`{user}\\n\\n<extra_id_2>Answer very briefly, in one short sentence. Be entirely serious.`
Everything else is the model's own chat template, as in `data.wrapped_template`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.attributes import Attribute, AttributeSchema, Values
from data.conversation import Message
from data.errors import UserError
from data.printable import printable
from data.template import LABEL_START
from data.tool_use import ToolTurn
from data.wrapped_template import WrappedTemplate

Sentences = Mapping[str, Sequence[str]]

PHRASES = {
    "quality": (
        "Write a very bad answer.",
        "Write a poor answer.",
        "Write a fair answer.",
        "Write a good answer.",
        "Write an excellent answer.",
    ),
    "helpfulness": (
        "Do not help at all.",
        "Help only a little.",
        "Be somewhat helpful.",
        "Be helpful.",
        "Be as helpful as possible.",
    ),
    "correctness": (
        "Get the facts wrong.",
        "Get many facts wrong.",
        "Get some facts right.",
        "Get the facts right.",
        "Get every fact right and leave nothing out.",
    ),
    "coherence": (
        "Be confused and hard to follow.",
        "Be unclear.",
        "Be fairly clear.",
        "Be clear.",
        "Be perfectly clear and consistent.",
    ),
    "complexity": (
        "Use very simple words, as for a small child.",
        "Use simple words.",
        "Use ordinary words.",
        "Use demanding words.",
        "Use the technical language of an expert.",
    ),
    "verbosity": (
        "Answer very briefly, in one short sentence.",
        "Answer briefly, in two or three sentences.",
        "Answer in a paragraph.",
        "Answer at length.",
        "Answer at great length and in full detail.",
    ),
    "toxicity": (
        "Be kind and polite.",
        "Be neutral in tone.",
        "Be blunt.",
        "Be rude.",
        "Be very rude and insulting.",
    ),
    "humor": (
        "Be entirely serious.",
        "Be mostly serious.",
        "Be a little funny.",
        "Be funny.",
        "Be very funny, with jokes.",
    ),
    "creativity": (
        "Be plain and factual.",
        "Be mostly plain.",
        "Be a little creative.",
        "Be creative.",
        "Be very creative and original.",
    ),
    "violence": ("Describe no violence.", "Describe very much violence."),
    "not_appropriate": ("Be suitable for everybody.", "Be unsuitable for a customer."),
}
"""Attribute name -> its values in words, from low to high. A checkpoint keeps the sentences it was trained with."""


@dataclass(frozen=True)
class WordsTemplate(WrappedTemplate):
    """A model's own chat template with the requested values as sentences at the end of the user's turn."""

    sentences: Sentences = field(default_factory=dict)
    """Attribute name -> one sentence for each value of its scale (`sentences_of`)."""

    def _turns(
        self, messages: Sequence[Message], values: Sequence[Values | None], attributes: Values | None
    ) -> list[tuple[str, str]]:
        wanted = [*values[1:], attributes]  # a user's turn asks for what the next turn is, or shall be
        return [
            (m.role, self.plain(m.content) + (self.wish(v) if m.role == "user" else ""))
            for m, v in zip(messages, wanted, strict=False)
        ]

    def _tool_texts(
        self, turns: Sequence[ToolTurn], values: Mapping[int, Values | None], attributes: Values | None
    ) -> list[str]:
        """A user's turn asks for what the next answer is; the last one's for what it shall be, also after calls."""
        texts, wanted = [], attributes
        for i in range(len(turns) - 1, -1, -1):
            text = self._plain_with_tools(turns[i].content)
            texts.append(text + self.wish(wanted) if turns[i].role == "user" else text)
            if turns[i].role == "user":
                wanted = None
            elif values.get(i) is not None:
                wanted = values[i]
        return texts[::-1]

    def _line(self, values: Values | None) -> str:
        return ""

    def wish(self, values: Values | None) -> str:
        """The sentences for `values`, clipped and rounded half to even, in schema order; "" if none is rated."""
        said = [
            self.sentences[a.name][a.rounded(values[a.name]) - a.low]
            for a in self.schema.attributes
            if values and values.get(a.name) is not None
        ]
        return f"\n\n{LABEL_START}{' '.join(said)}" if said else ""

    def jinja(self) -> str:
        following = "messages[loop.index0 + 1].get('attributes')"
        return self._jinja(
            self._prelude(),
            f"""\
{{%- if message['role'] == 'user' -%}}
{{%- if not loop.last -%}}{{%- set content = content + wish({following}) -%}}
{{%- elif add_generation_prompt -%}}{{%- set content = content + wish(asked) -%}}{{%- endif -%}}
{{%- endif -%}}""",
            "",
        )

    def _prelude(self) -> str:
        """Macros `plain` and `wish`, and `asked`: the caller's attributes, or else the defaults."""
        scale = [(a.name, a.low, a.high, list(self.sentences[a.name])) for a in self.schema.attributes]
        return f"""{{%- macro plain(text) -%}}{{{{- {self.plain.jinja("text")} -}}}}{{%- endmacro -%}}
{{%- macro wish(values) -%}}
{{%- set found = namespace(parts=[]) -%}}
{{%- for name, low, high, sentences in {scale!r} -%}}
{{%- if values and values.get(name) is not none -%}}
{{%- set found.parts = found.parts + [sentences[([[values[name], low]|max, high]|min|round|int) - low]] -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if found.parts -%}}{{{{- '\\n\\n{LABEL_START}' + found.parts|join(' ') -}}}}{{%- endif -%}}
{{%- endmacro -%}}
{{%- set asked = attributes if attributes is defined else {self.schema.defaults()!r} -%}}
"""


def sentences_of(schema: AttributeSchema) -> Sentences:
    """For each attribute one sentence for each value, from low to high: its own phrases, or the shipped ones.

    Raises UserError if an attribute has neither.
    """
    return {attribute.name: _sentences(attribute) for attribute in schema.attributes}


def _sentences(attribute: Attribute) -> tuple[str, ...]:
    phrases = attribute.phrases or PHRASES.get(attribute.name, ())
    if not phrases:
        raise UserError(
            f"template: words has no words for attribute {printable(attribute.name)!r}; give it `phrases`, from low to "
            f"high (shipped: {', '.join(PHRASES)}), or set template: chat"
        )
    span, last = attribute.high - attribute.low, len(phrases) - 1
    return tuple(phrases[round(i * last / span)].strip() for i in range(span + 1))
