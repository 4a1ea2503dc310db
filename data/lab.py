"""The synthetic world: rated conversations whose truth is known, and a measure that reads it back from the text.

Knows no model, no prompt and no file; its sentences are in `data.lab_words`.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from data.attributes import AttributeProblem, Values
from data.bounds import ScaleValue, Seed, Share, Size, Times, Whole
from data.conversation import Conversation, Message
from data.errors import UserError
from data.lab_mix import CREATIVITY, HELPFULNESS, HIGH, HUMOR, LOW, SCHEMA, TOXICITY, VERBOSITY, combinations
from data.lab_words import FACTS, FILLER, FOLLOW_UPS, IMAGES, INSULTS, JOKES, OPENINGS, SAME_AGAIN
from data.record import Record

LAB = "lab"
"""The format whose rows are generated, not read."""
MAX_SUBJECTS, MAX_FACTS = len(FACTS), min(map(len, FACTS.values()))
HELPFUL_AND_FUNNY: Mapping[str, int] = {HELPFULNESS: 3, HUMOR: 2}

_SAME_SUBJECT_AGAIN = 0.3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class LabSettings(Record):
    """Size and difficulty of the world. Harder, for an ablation: 20 subjects, 6 facts, skew 1, rater_exact 0.4."""

    num_subjects: Whole = Field(default=12, ge=2, le=MAX_SUBJECTS)
    """Number of subjects of the questions."""
    facts_per_subject: Whole = Field(default=4, ge=HIGH, le=MAX_FACTS)
    """True facts of each subject; the highest helpfulness needs four."""
    num_rows: Size = 6000
    """Conversations to write; a larger number continues the same world."""
    max_turns: Times = 3
    """Most questions in a conversation; each number of turns is half as common as the one before."""
    seed: Seed = 0
    """Same seed, same rows."""
    skew: Share = 0.2
    """0: all values equally common, so a fifth of the answers have the top one; 1: most are mediocre."""
    plain_share: Share = 0.0
    """Share of answers without images, jokes and insults, beside those that come by chance: as most answers of people.
    Where they are rare, a small model learns that nothing but facts means the end, whatever verbosity it is asked."""
    single_share: Share = 0.0
    """Share of answers with images, or jokes, or insults, and none of the two others, beside those that come by chance.
    Where they are rare, a small model tells jokes only in answers that have insults or images, too."""
    shuffle: Share = 0.25
    """How often the sentences of a kind are a random sample; else they keep the book's order, from a random start."""
    false_share: Share = 0.15
    """Share of answers that state something false, where the helpfulness allows it."""
    held_out: tuple[dict[str, ScaleValue], ...] = ()
    """Combinations that never occur: in each, an answer with all these attributes at the given value or above."""
    hold_out_helpful_humor: bool = False
    """Short for holding out helpfulness >= 3 with humor >= 2: what only a bootstrap round can teach."""
    rated_share: Share = 0.35
    """Share of conversations that people rated; the predictor annotates the rest."""
    rater_exact: Share = 0.6
    """Share of ratings that equal the truth."""
    rater_far: Share = 0.1
    """Share of the wrong ratings that are off by two, the others by one."""
    # As Open Assistant has no verbosity, and HelpSteer neither humor nor toxicity. Each rates what the other lacks,
    # so every attribute can be learned; but four of ten labels only by carrying them over from the other source.
    source_unrated: dict[str, tuple[str, ...]] = Field(
        default={"lab_forum": (VERBOSITY,), "lab_desk": (HUMOR, TOXICITY)}, min_length=1
    )
    """Each source (equally common) and the attributes that its raters did not rate."""

    @model_validator(mode="after")
    def _known_attributes(self) -> "LabSettings":
        for rule in self.held_out:
            _require_known(rule, "held_out")
            if not any(LOW < value <= HIGH for value in rule.values()) or max(rule.values()) > HIGH:
                raise UserError(
                    f"held_out: {rule} must have a value from {LOW + 1} to {HIGH}, and none above; "
                    "otherwise it leaves out every answer or none"
                )
        for source, unrated in self.source_unrated.items():
            _require_known(unrated, f"source_unrated.{source}")
        if self.plain_share + self.single_share > 1:
            raise UserError(
                f"plain_share {self.plain_share:g} and single_share {self.single_share:g} are more than all answers "
                "together; lower one of them"
            )
        never = set.intersection(*(set(unrated) for unrated in self.source_unrated.values()))
        if never:
            raise UserError(
                f"source_unrated: no source rates {', '.join(sorted(never))}; each attribute needs at least one source"
            )
        return self

    def allows(self, values: Mapping[str, int]) -> bool:
        """False for a combination that is held out."""
        return not any(all(values[name] >= least for name, least in rule.items()) for rule in self.rules)

    @property
    def rules(self) -> tuple[Mapping[str, int], ...]:
        """All that is held out, by either setting."""
        return (*self.held_out, *((HELPFUL_AND_FUNNY,) if self.hold_out_helpful_humor else ()))


def _require_known(names: Mapping[str, int] | Sequence[str], where: str) -> None:
    for name in names:
        try:
            SCHEMA[name]
        except AttributeProblem as unknown:
            raise UserError(f"{where}: {unknown}") from None


@dataclass(frozen=True)
class Sentence:
    """What a sentence of the world counts for."""

    attribute: str
    true_of: str = ""
    """For a fact: the subject that it is about, or "" where it is false."""


@dataclass(frozen=True)
class Measurement:
    """The attributes of one answer, read from its text."""

    values: dict[str, float]
    unknown_sentences: int
    """Sentences, repeats included, that are none of this world's."""


class Lab:
    """One world: writes its rows, and measures any text against it."""

    def __init__(self, settings: LabSettings | None = None) -> None:
        self.settings = settings or LabSettings()
        facts = {s: FACTS[s][: self.settings.facts_per_subject] for s in tuple(FACTS)[: self.settings.num_subjects]}
        self.subjects = tuple(facts)
        self._true = {s: tuple(_fact(s, f) for f in facts[s]) for s in facts}
        self._false = {s: tuple(_fact(s, f) for other in facts if other != s for f in facts[other]) for s in facts}
        self._jokes = {s: tuple(joke.format(subject=s) for joke in JOKES) for s in facts}
        self.sentences = self._sentences()
        self._subject_named = re.compile(rf"\b({'|'.join(self.subjects)})\b", re.IGNORECASE)
        settings = self.settings
        shares_of = {0: settings.plain_share, 1: settings.single_share}
        mix = combinations(settings.skew, shares_of, settings.allows)
        self._combinations, self._cumulative_weights = mix

    def _sentences(self) -> dict[str, Sentence]:
        """Every sentence of the world: exact text -> what it counts for."""
        kinds = [(texts, Sentence(HELPFULNESS, true_of=subject)) for subject, texts in self._true.items()]
        kinds += [(texts, Sentence(HELPFULNESS)) for texts in self._false.values()]
        kinds += [(IMAGES, Sentence(CREATIVITY))]
        kinds += [(texts, Sentence(HUMOR)) for texts in self._jokes.values()]
        kinds += [(INSULTS, Sentence(TOXICITY)), (FILLER, Sentence(VERBOSITY))]
        pairs = [(text, sentence) for texts, sentence in kinds for text in texts]
        assert len(dict(pairs)) == len(pairs), "a sentence with two meanings could not be measured"
        return dict(pairs)

    # ---- writing

    def rows(self) -> Iterator[Conversation]:
        """The conversations, with the raters' ratings."""
        for conversation, _ in self.rows_and_intended():
            yield conversation

    def rows_and_intended(self) -> Iterator[tuple[Conversation, tuple[dict[str, int], ...]]]:
        """Each conversation with the values that its answers were written to have, one mapping per assistant turn."""
        # Texts and ratings draw from separate streams, and every rating is drawn, shown or not: a change of
        # the raters leaves the texts as they are, a change of `rated_share` leaves the ratings that stay.
        writer = random.Random(f"{self.settings.seed} texts")
        rater = random.Random(f"{self.settings.seed} ratings")
        for _ in range(self.settings.num_rows):
            messages, intended = self._conversation(writer)
            source = writer.choice(tuple(self.settings.source_unrated))
            human = self._ratings(rater, source, intended)
            yield Conversation(source=source, system="", messages=messages, human=human), intended

    def questions(self, num_questions: int, seed: int) -> list[str]:
        """Single-turn questions for evaluation; none comes again before all have come."""
        every = [opening.format(subject=subject) for subject in self.subjects for opening in OPENINGS]
        random.Random(f"{seed} questions").shuffle(every)
        return list(itertools.islice(itertools.cycle(every), num_questions))

    def _conversation(self, writer: random.Random) -> tuple[tuple[Message, ...], tuple[dict[str, int], ...]]:
        turns = range(1, self.settings.max_turns + 1)
        num_turns = writer.choices(turns, [0.5**n for n in range(len(turns))])[0]
        messages: list[Message] = []
        intended: list[dict[str, int]] = []
        subject = ""
        for _ in range(num_turns):
            question, subject = self._question(writer, subject)
            values = writer.choices(self._combinations, cum_weights=self._cumulative_weights)[0]
            messages += [Message("user", question), Message("assistant", self._answer(writer, subject, values))]
            intended.append(dict(values))
        return tuple(messages), tuple(intended)

    def _question(self, writer: random.Random, before: str) -> tuple[str, str]:
        """A question and the subject that it names; `before` is the last turn's subject, "" at the start."""
        if before and writer.random() < _SAME_SUBJECT_AGAIN:
            subject, templates = before, SAME_AGAIN
        else:
            subject = writer.choice([s for s in self.subjects if s != before])
            templates = FOLLOW_UPS if before else OPENINGS
        return writer.choice(templates).format(subject=subject), subject

    def _answer(self, writer: random.Random, subject: str, values: Mapping[str, int]) -> str:
        """Facts, images, jokes, insults, filler. In this order a small model has only one thing to count at a time."""
        sentences = [
            *self._facts(writer, subject, values[HELPFULNESS], alone=sum(values.values()) == 0),
            *self._pick(writer, IMAGES, values[CREATIVITY]),
            *self._pick(writer, self._jokes[subject], values[HUMOR]),
            *self._pick(writer, INSULTS, values[TOXICITY]),
            *self._pick(writer, FILLER, values[VERBOSITY]),
        ]
        return " ".join(sentences)

    def _facts(self, writer: random.Random, subject: str, helpfulness: int, alone: bool) -> list[str]:
        """True facts less false ones = `helpfulness`. An answer with nothing else (`alone`) has a false one."""
        false = alone or writer.random() < self.settings.false_share
        if not false or helpfulness == self.settings.facts_per_subject:
            return self._pick(writer, self._true[subject], helpfulness)
        # Below 0 is 0: a useless answer may do without the true fact that makes up for the false one.
        num_true = writer.randrange(2) if helpfulness == 0 else helpfulness + 1
        return [*self._pick(writer, self._true[subject], num_true), writer.choice(self._false[subject])]

    def _pick(self, writer: random.Random, pool: tuple[str, ...], count: int) -> list[str]:
        """`count` different sentences: [c, d, a] of (a, b, c, d), or any, in any order, in `shuffle` of the cases."""
        if writer.random() < self.settings.shuffle:
            return writer.sample(pool, count)
        start = writer.randrange(len(pool))
        return [pool[(start + i) % len(pool)] for i in range(count)]

    def _ratings(self, rater: random.Random, source: str, intended: tuple[dict[str, int], ...]) -> tuple[Values, ...]:
        rated = rater.random() < self.settings.rated_share
        human = tuple(
            {name: float(self._rating(rater, value)) for name, value in values.items()} for values in intended
        )
        unrated = self.settings.source_unrated[source] if rated else SCHEMA.names
        return tuple({name: value for name, value in values.items() if name not in unrated} for values in human)

    def _rating(self, rater: random.Random, truth: int) -> int:
        exact, far, up = (rater.random() < share for share in (self.settings.rater_exact, self.settings.rater_far, 0.5))
        if exact:
            return truth
        # At the ends of the scale an error can only go inwards; clipping would make the rater better than requested.
        off = 2 if far else 1
        inside = [value for value in (truth - off, truth + off) if LOW <= value <= HIGH]
        return inside[-1] if up else inside[0]

    # ---- measuring

    def measure(self, messages: Sequence[Message]) -> dict[str, float]:
        """The attributes of the last assistant turn, from the text alone, whoever wrote it."""
        return self.read(messages).values

    def unknown_sentences(self, messages: Sequence[Message]) -> int:
        """How many sentences of the last assistant turn are not from this world."""
        return self.read(messages).unknown_sentences

    def truth(self, conversation: Conversation) -> tuple[dict[str, float], ...]:
        """The measure of every assistant turn."""
        messages = conversation.messages
        return tuple(
            self.measure(messages[: i + 1]) for i, message in enumerate(messages) if message.role == "assistant"
        )

    def read(self, messages: Sequence[Message]) -> Measurement:
        """The last assistant turn, against the last question before it."""
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        if last < 0:
            raise UserError(
                f"nothing to measure: none of the {len(messages)} messages is an assistant's; "
                "pass a conversation with an answer"
            )
        question = next((message.content for message in reversed(messages[:last]) if message.role == "user"), "")
        return self.read_answer(question, messages[last].content)

    def read_answer(self, question: str, answer: str) -> Measurement:
        """The same for one question and its answer. If the question names several subjects, facts of any are true."""
        subjects = {name.lower() for name in self._subject_named.findall(question)}
        texts = _SENTENCE_END.split(answer.strip())
        counts = dict.fromkeys(SCHEMA.names, 0)
        # A repeated sentence counts once.
        for text in dict.fromkeys(texts):
            if sentence := self.sentences.get(text):
                is_false = sentence.attribute == HELPFULNESS and sentence.true_of not in subjects
                counts[sentence.attribute] += -1 if is_false else 1
        values = {name: float(min(max(count, LOW), HIGH)) for name, count in counts.items()}
        return Measurement(values, unknown_sentences=sum(text not in self.sentences for text in texts if text))


def _fact(subject: str, predicate: str) -> str:
    return f"{subject.capitalize()} {predicate}."
