"""The optional engine: vLLM behind the same contract. Knows no text, no HTTP and no Ray.

vLLM pages its KV cache, shares the pages of prompts that begin alike, and schedules by itself, in a process of its own
(`actors.generation.vllm_process`). Our thread sends it requests, and passes its tokens on.
"""

import logging
import math
from collections.abc import Collection
from typing import Any

from actors.generation.engine_thread import EngineThread, Request
from actors.generation.grammar_check import enforceable
from actors.generation.protocol import GenerationStep, Grammar, Load, Sampling, TokenLogprob
from actors.generation.vllm_adapters import VllmAdapters
from actors.generation.vllm_start import VllmStart
from actors.modeling.policy import PolicyText

log = logging.getLogger(__name__)

NO_GUIDANCE = (
    "vLLM cannot tie the two prompts of a guided answer to each other; leave guidance out, or set engine.kind to "
    "transformers"
)
"""Its logits processors see the rows of one step, which its scheduler chooses: nothing keeps both prompts in the same
step, and nothing lets the second one take the token that was drawn for the first."""


class VllmEngine(EngineThread):
    """vLLM's scheduler and kernels on a policy."""

    def __init__(self, text: PolicyText, start: VllmStart):
        """`text`: of the policy that `start` names. Raises UserError if vLLM is missing or cannot run the policy."""
        self._process = start.process(text.max_tokens)
        self._engine = self._process.engine
        model = self._engine.vllm_config.model_config
        super().__init__("vllm", min(text.max_tokens, model.max_model_len), model.get_vocab_size())
        self.no_guidance = NO_GUIDANCE
        self._stop_ids = text.stop_ids
        self._lora = VllmAdapters(text, start.folder, len(start.ranks))
        self._requests: dict[int, Request] = {}
        self._started: set[int] = set()  # those that run: vLLM queues the others itself
        self.start()

    @property
    def load(self) -> Load:
        requests, running = len(self._requests), len(self._started)
        waiting = requests - running + len(self._inbox)
        return Load(running, waiting, self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def close(self) -> None:
        super().close()
        self._process.close()

    def put_adapter(self, name: str, folder: str) -> None:
        self._adapters[name] = self._lora.request(name, folder)

    def _compiled(self, grammar: Grammar) -> object:
        """vLLM compiles it itself, in threads of its own; here it is only checked."""
        return enforceable(grammar)

    def _running(self) -> Collection[Request]:
        return list(self._requests.values())

    def _reason(self, error: Exception) -> str:
        return self._process.failure() or super()._reason(error)

    def _notify(self) -> None:
        self._process.wake()

    def _wait(self) -> bool:
        return not self._closed  # the step waits, for tokens and for `_notify` at once

    def _step(self) -> None:
        while request := self._next_new():
            self._admit(request)
        for output in self._engine.step():
            self._take(output)

    def _abort(self, requests: list[Request]) -> None:
        self._engine.abort_request([str(request.number) for request in requests])
        for request in requests:
            self._forget(request)

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.number)
        self._started.discard(request.number)

    def _admit(self, request: Request) -> None:
        from vllm import TokensPrompt

        self._requests[request.number] = request
        own = request.sampling
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        if own.cache_salt:
            prompt["cache_salt"] = own.cache_salt
        try:
            named = {} if request.adapter is None else {"lora_request": request.adapter}
            self._engine.add_request(str(request.number), prompt, _parameters(request, self._stop_ids), **named)
        except ValueError as error:  # ends this request, never the engine
            log.error("vLLM refused a request: %s", error)
            self._forget(request)
            request.emit([], "error")

    def _take(self, output: Any) -> None:
        """Send one request's tokens of a step to its listener."""
        request = self._requests.get(int(output.request_id))
        if request is None:
            return
        if request.number not in self._started:
            self._started.add(request.number)
            reused = output.num_cached_tokens or 0
            self._reused_tokens += reused
            self._prefilled_tokens += len(request.prompt_ids) - reused
        [answer] = output.outputs
        step = _step(answer, _prompt_logprobs(output, request), request.sampling, self._stop_ids)
        self._generated_tokens += len(step.token_ids)
        request.send(step)
        if answer.finish_reason is not None:
            self._forget(request)
        elif request.finish is not None:  # its listener failed
            self._abort([request])


def _parameters(request: Request, stop_ids: Collection[int]) -> Any:
    """vLLM's SamplingParams."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    own, grammar, form = request.sampling, request.compiled, None
    if grammar is not None:
        kind, text = grammar.kind, grammar.text
        form = StructuredOutputsParams(
            json=text if kind == "json_schema" else None,
            json_object=kind == "json_object" or None,
            regex=text if kind == "regex" else None,
            grammar=text if kind == "ebnf" else None,
            structural_tag=text if kind == "structural_tag" else None,
        )
    return SamplingParams(
        max_tokens=max(1, own.max_tokens),
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        min_p=own.min_p,
        seed=own.seed,
        frequency_penalty=own.frequency_penalty,
        presence_penalty=own.presence_penalty,
        repetition_penalty=own.repetition_penalty,
        logit_bias=dict(own.logit_bias) or None,
        logprobs=own.logprobs,
        prompt_logprobs=own.prompt_logprobs,
        structured_outputs=form,
        stop_token_ids=[] if own.ignore_eos else sorted(stop_ids),
        ignore_eos=own.ignore_eos,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _step(
    answer: Any, prompt_logprobs: list[TokenLogprob | None] | None, own: Sampling, stop_ids: Collection[int]
) -> GenerationStep:
    """`answer`: what vLLM has written since the last step."""
    ids = [int(i) for i in answer.token_ids]
    logprobs = None
    if answer.logprobs is not None:
        logprobs = [_logprob(of_token, i, own.logprobs or 0) for of_token, i in zip(answer.logprobs, ids, strict=True)]
    finish = answer.finish_reason if answer.finish_reason in (None, "stop", "length") else "error"
    if not own.max_tokens and finish in ("stop", "length"):  # vLLM writes one token at least
        return GenerationStep([], "length", prompt_logprobs=prompt_logprobs)
    if finish == "stop" and ids and ids[-1] in stop_ids:
        end_logprob = logprobs.pop() if logprobs else None
        return GenerationStep(ids[:-1], finish, logprobs, prompt_logprobs, ids[-1], end_logprob)
    return GenerationStep(ids, finish, logprobs, prompt_logprobs)


def _logprob(of_token: Any, token: int, num_top: int) -> TokenLogprob:
    """`of_token`: token id -> vLLM's Logprob, of the likeliest tokens and of `token`, which may be none of them."""
    ranked = sorted(of_token.items(), key=lambda item: item[1].rank)
    top = [(int(i), float(p.logprob)) for i, p in ranked if p.rank <= num_top and p.logprob != -math.inf]
    return TokenLogprob(float(of_token[token].logprob), tuple(top))


def _prompt_logprobs(output: Any, request: Request) -> list[TokenLogprob | None] | None:
    """vLLM gives them once, when the prompt is whole; before that and afterwards its list is empty."""
    num_top = request.sampling.prompt_logprobs
    if num_top is None or not output.prompt_logprobs:
        return None
    pairs = zip(output.prompt_logprobs, request.prompt_ids, strict=True)
    return [None if of_token is None else _logprob(of_token, token, num_top) for of_token, token in pairs]
