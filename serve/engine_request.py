"""A generation request as the engine takes it; what the engine would refuse is refused by the caller's own field.

Knows no HTTP, no text and no Ray.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from actors.generation.protocol import Engine, Listener, Sampling
from data.errors import UserError
from data.template import Unrenderable
from serve.request import Failed, GenerationRequest


class Refusal(UserError):
    """A value that this policy cannot take, with its field and a code."""

    def __init__(self, message: str, field: str, code: str, status: int = 400):
        super().__init__(message)
        self.field, self.code, self.status = field, code, status


def sampling_of(
    request: GenerationRequest, engine: Engine, prompt_ids: Sequence[int], unguided_ids: Sequence[int] = ()
) -> Sampling:
    """How to answer; the length is cut to what the prompt leaves. Raises UserError if that is nothing.

    `unguided_ids`: the prompt of `request.unguided`. If it is the prompt itself, there is nothing to guide.
    """
    _require_known(engine, request.input_field, prompt_ids)
    _require_known(engine, "logit_bias", request.sampling.logit_bias)
    guidance = request.sampling.guidance
    if request.guided_from is not None:
        _require_known(engine, "guidance_from", unguided_ids)
        guidance = 1.0 if list(unguided_ids) == list(prompt_ids) else guidance
    unguided = () if guidance == 1 else tuple(unguided_ids)
    own = replace(request.sampling, guidance=guidance, unguided_ids=unguided, adapter=request.adapter)
    num_tokens, context = len(prompt_ids), engine.guided_context if own.is_guided else engine.context
    if num_tokens >= context:
        sizes = f"{request.input_name} has {num_tokens} tokens, the policy's context {context}"
        raise UserError(f"{sizes}, and the answer needs room: shorten {request.input_field}")
    if own.is_guided and len(unguided_ids) >= context:
        sizes = f"guidance_from has {len(unguided_ids)} tokens, the policy's context {context}"
        wrong = f"{sizes}, and the answer needs room: shorten guidance_from"
        raise Refusal(wrong, "guidance_from", "context_length_exceeded")
    num_tokens = max(num_tokens, len(own.unguided_ids))
    return replace(own, max_tokens=min(own.max_tokens, context - num_tokens))


def _require_known(engine: Engine, field: str, ids: Collection[int]) -> None:
    if not ids and field != "logit_bias":
        what = "guidance_from" if field == "guidance_from" else "the prompt"
        raise Refusal(f"{what} is empty: send at least one token", field, "invalid_prompt")
    wrong = next((i for i in ids if not 0 <= i < engine.num_tokens), None)
    if wrong is not None:
        known = f"the policy's vocabulary has tokens 0 to {engine.num_tokens - 1}"
        raise Refusal(f"{field} names token {wrong}, and {known}", field, "unknown_token")


async def submitted(
    engine: Engine, request: GenerationRequest, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener
) -> int:
    """The request's number in the engine. Raises UserError if its grammar cannot be followed, and RuntimeError if the
    engine is down."""
    if sampling.grammar is None:
        return engine.submit(prompt_ids, sampling, listener)
    # Compiling takes up to seconds.
    submitting = asyncio.ensure_future(asyncio.to_thread(engine.submit, prompt_ids, sampling, listener))
    try:
        return await asyncio.shield(submitting)
    except UserError as problem:
        raise Refusal(f"{request.grammar_field}: {problem}", request.grammar_field, "invalid_grammar") from None
    except asyncio.CancelledError:  # the caller left, and the thread does not know

        def cancel(done: asyncio.Future[int]) -> None:
            if done.exception() is None:
                engine.cancel(done.result())

        submitting.add_done_callback(cancel)
        raise


def refused(problem: UserError, request: GenerationRequest, prompt_tokens: int) -> Failed:
    """`prompt_tokens`: that were counted until then."""
    if isinstance(problem, Refusal):
        return Failed(str(problem), problem.status, problem.field, problem.code, prompt_tokens=prompt_tokens)
    code = "invalid_messages" if isinstance(problem, Unrenderable) else "context_length_exceeded"
    return Failed(str(problem), 400, request.input_field, code, prompt_tokens=prompt_tokens)


def out_of_memory(request: GenerationRequest) -> Failed:
    """What a request gets whose prompt finds too little memory in the engine."""
    remedy = f"shorten {request.input_field}, or lower engine.max_model_len, so that it is refused at once"
    message = f"the engine has not enough memory for {request.input_name}: {remedy}"
    return Failed(message, 503, request.input_field, "out_of_memory")
