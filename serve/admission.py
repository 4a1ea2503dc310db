"""A parsed request in, a typed one out: model, profile, checked attributes, and what the policy is to generate.

Knows no HTTP and no Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from actors.generation.protocol import Sampling
from data.attributes import AttributeProblem, Values
from data.conversation import Message
from data.errors import UserError
from serve import dials
from serve.auth import Team
from serve.bodies import BodyLimits
from serve.chat_request import ChatRequest
from serve.guidance import guided_from
from serve.models import AddressedModel, ServedPolicies, ServedPolicy
from serve.profiles import Profile, find, resolve
from serve.protocol import ProtocolError
from serve.rate_limits import RequestCost
from serve.reply import ChatReply, Reply, Steering
from serve.request import GenerationRequest
from serve.requested import channels, requested, wrong_attribute
from serve.sampling_fields import SamplingFields
from serve.settings import ServeSettings
from serve.tolerance import unsupported
from serve.tool_reply import ToolReply
from serve.tool_request import WantedTools, tool_chat, turn_places, wanted_tools
from serve.turns import Turn

DEFAULT_SHARE = 4
"""A request that names no length gets a quarter of the context: an engine holds memory for the longest answer."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets that names none."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class RequestLimits:
    """What one request may cost."""

    max_new_tokens: int | None
    """Longest answer; None = as long as the context."""
    body: BodyLimits
    max_messages: int = 1024
    """Of one conversation."""
    max_rated_tokens: int = 1024
    """The most that the predictor reads of an answer and its conversation."""
    ignore_tools: bool = True
    """Take `tools` of a request to a model that cannot call any, and answer without them?"""
    sampling: SamplingDefaults = SamplingDefaults()

    @classmethod
    def of(cls, settings: ServeSettings) -> Self:
        return cls(
            max_new_tokens=settings.max_new_tokens,
            body=BodyLimits(settings.max_body_bytes, settings.body_timeout_s, settings.max_open_bodies),
            max_messages=settings.max_messages,
            max_rated_tokens=settings.scorer.max_tokens,
            ignore_tools=settings.ignore_tools,
            sampling=SamplingDefaults(settings.temperature, settings.top_p),
        )

    def longest(self, model: ServedPolicy) -> int:
        """Tokens of a model's longest answer, if its prompt were none."""
        return min(self.max_new_tokens or model.info.context, model.info.context)

    def by_default(self, model: ServedPolicy) -> int:
        """Tokens of the longest answer to a request that names no length."""
        return self.longest(model) if self.max_new_tokens else max(1, model.info.context // DEFAULT_SHARE)


@dataclass(frozen=True)
class AdmittedRequest:
    """A request that will be answered. After admission nothing is read from what the caller sent."""

    model: ServedPolicy
    profile: str | None
    requested: Mapping[str, float]
    """Attributes as the caller asked for them."""
    generations: tuple[GenerationRequest, ...]
    """One for each answer; they differ in the seed."""
    reply: Reply
    score: bool
    """Return what the predictor measures?"""
    best_of: bool
    """Return only the nearest of the answers?"""
    include_usage: bool
    """End a stream with the token counts?"""
    cost: RequestCost
    """The most that it can use."""
    target_distance: float | None = None
    """With best_of: an answer at most so far from what is effective ends the others; None = all are written."""
    unused: frozenset[str] = frozenset()
    """What the caller sent that this model does not use."""
    num_prompts: int = 1
    """Each has as many of the answers, those of the first one first."""

    @property
    def effective(self) -> Mapping[str, int]:
        return self.generations[0].attributes

    @property
    def stream(self) -> bool:
        return self.generations[0].stream


def admitted(
    chat: ChatRequest, team: Team, models: ServedPolicies, limits: RequestLimits, can_score: bool, header: str = ""
) -> AdmittedRequest:
    """`header`: attributes that stood in a header. Raises ProtocolError that names the field to fix."""
    addressed = models.addressed(chat.model, team)
    model = addressed.policy
    _require_predictor(chat, can_score)
    profile = team.profile(_named_profile(chat, addressed))
    chosen = _chosen(model, profile)
    places = channels(chat, addressed.attributes, header)
    wanted = requested(model.schema, chosen, places, _dials(chat))
    away_from = guided_from(chat, model, chosen, wanted.effective)
    steering = Steering(
        requested=wanted.values,
        effective=wanted.effective,
        sources=wanted.sources or None,
        guidance=None if away_from is None else chat.guidance,
    )
    tools = wanted_tools(chat.tools, chat.tool_choice, model.info.tool_format, model.name, limits.ignore_tools)
    _require_tools(chat, tools, model)
    generation = GenerationRequest(
        system=chat.system,
        **_conversation(model, chosen, chat, tools),
        attributes=steering.effective,
        sampling=Sampling(
            max_tokens=min(chat.answer_limit[1] or limits.by_default(model), limits.longest(model)),
            logprobs=chat.num_top,
            grammar=chat.grammar if tools is None else tools.grammar(chat.grammar),
            cache_salt=team.name,
            **sampling_fields(chat, limits.sampling),
        ),
        stop=tuple(chat.stop),
        stream=chat.stream,
        guided_from=away_from,
        grammar_field="response_format" if tools is None else "tools",
    )
    return AdmittedRequest(
        model=model,
        profile=profile,
        requested=wanted.values,
        generations=tuple(numbered(generation, chat.seed, i) for i in range(chat.best_of or chat.n)),
        reply=_reply(model.name, steering, tools, chat.num_top),
        unused=frozenset({"tools"} if chat.tools and tools is None else ()),
        score=chat.score,
        best_of=chat.best_of is not None,
        target_distance=chat.target_distance,
        include_usage=chat.include_usage,
        cost=_cost(chat, generation, limits),
    )


def _require_tools(chat: ChatRequest, tools: WantedTools | None, model: ServedPolicy) -> None:
    """Raises ProtocolError for a conversation with tools that this model, or this request, cannot have."""
    if chat.has_calls and model.info.tool_format is None:
        why = f"has calls of tools, and the chat template of model {model.name!r} has none: send texts only"
        raise unsupported("messages", why)
    if (tools is not None or chat.has_calls) and (chat.score or chat.best_of):
        what = "score" if chat.score else "best_of"
        raise unsupported(what, 'rates texts, and this answer may be a call: leave it out, or send tool_choice "none"')
    if tools is not None and chat.begun:
        raise ProtocolError("messages end with an assistant's: with tools, end with a user's or a tool's", "messages")
    if tools is not None and tools.forced and chat.ignore_eos:
        raise ProtocolError("ignore_eos goes on behind the end of a call: leave it out", "ignore_eos")


def _conversation(
    model: ServedPolicy, profile: Profile | None, chat: ChatRequest, tools: WantedTools | None
) -> dict[str, Any]:
    """The fields of a `GenerationRequest` with the conversation."""
    if tools is None and not chat.has_calls:
        labels = tuple(_label(model, profile, chat, turn) for turn in chat.answers)
        return {"messages": tuple(turn.message for turn in chat.turns), "labels": labels}
    labels = tuple(
        _label(model, profile, chat, Turn(Message("assistant", ""), tuple(places)))
        for places in turn_places(chat.messages)
        if chat.messages[places[0]].role == "assistant"
    )
    return {"messages": (), "labels": labels, "tool_chat": tool_chat(chat.messages, tools)}


def _reply(model: str, steering: Steering, tools: WantedTools | None, num_top: int | None) -> ChatReply:
    return ChatReply(model, steering, num_top) if tools is None else ToolReply(model, steering, tools, num_top)


def sampling_fields(sent: SamplingFields, defaults: SamplingDefaults) -> dict[str, Any]:
    """The fields of a `Sampling` that every route's requests have."""
    return {
        "temperature": defaults.temperature if sent.temperature is None else sent.temperature,
        "top_p": defaults.top_p if sent.top_p is None else sent.top_p,
        "top_k": max(0, sent.top_k),
        "min_p": sent.min_p,
        "frequency_penalty": sent.frequency_penalty,
        "presence_penalty": sent.presence_penalty,
        "repetition_penalty": sent.repetition_penalty,
        "logit_bias": sent.biases,
        "ignore_eos": sent.ignore_eos,
        "guidance": sent.guidance,
    }


def numbered(generation: GenerationRequest, seed: int | None, number: int) -> GenerationRequest:
    """Answer `number` of a request, with a seed of its own."""
    own = None if seed is None else (seed + number) % 2**63  # no sampler takes negative ones
    return replace(generation, sampling=replace(generation.sampling, seed=own))


def _require_predictor(chat: ChatRequest, can_score: bool) -> None:
    if (chat.score or chat.best_of) and not can_score:
        what = "score" if chat.score else "best_of"
        remedy = "leave it out, or start the endpoint with one (predictor=URI)"
        raise ProtocolError(f"{what} needs an attribute predictor, and none is served here: {remedy}", what)


def _named_profile(chat: ChatRequest, addressed: AddressedModel) -> str | None:
    if None not in (chat.profile, addressed.profile) and chat.profile != addressed.profile:
        wrong = f"profile is {str(chat.profile)[:60]!r}, but model names {addressed.profile!r}"
        raise ProtocolError(f"{wrong}: leave one of them out", "profile")
    return chat.profile if addressed.profile is None else addressed.profile


def _dials(chat: ChatRequest) -> Mapping[str, str]:
    return {dial: setting for dial in dials.POSITIONS if (setting := getattr(chat, dial)) is not None}


def _cost(chat: ChatRequest, generation: GenerationRequest, limits: RequestLimits) -> RequestCost:
    num_answers = chat.best_of or chat.n
    num_rated = num_answers if chat.best_of else 0 if not chat.score else 1 if chat.stream else num_answers
    return RequestCost(
        prompt=generation.most_prompt_tokens_of_rows,
        num_answers=num_answers,
        max_tokens=generation.sampling.max_tokens,
        num_rated=num_rated,
        max_rated=limits.max_rated_tokens,
        num_rows=generation.num_rows,
        asked_by="n" if chat.best_of is None else "best_of",
    )


def _chosen(model: ServedPolicy, profile: str | None) -> Profile | None:
    try:
        return None if profile is None else find(model.profiles, profile[:60])
    except UserError as problem:
        raise ProtocolError(str(problem), "profile", "unknown_profile") from None


def _label(model: ServedPolicy, profile: Profile | None, chat: ChatRequest, turn: Turn) -> Values | None:
    """The attributes of an earlier answer, which enter the prompt: the profile's rules hold for them too.

    Of an answer in several messages the last one that has attributes counts.
    """
    label = None
    for field, values in chat.labels_of(turn):
        try:
            label = model.schema.checked(values)
            resolve(model.schema, profile, label)
        except AttributeProblem as problem:
            raise wrong_attribute(field, problem) from None
    return label
