"""Field -> what it may be, for error messages. Knows no request and no JSON."""

from collections.abc import Mapping

from actors.generation.protocol import MAX_BIAS, MAX_BIASED, MAX_LOGPROBS, MAX_PENALTY, REPETITION_RANGE
from data.bounds import MAX_GUIDANCE
from serve import response_format
from serve.chat_request import MAX_BEST_OF, ChatRequest
from serve.completion_request import PROMPT, CompletionRequest
from serve.feedback_request import FeedbackRequest
from serve.protocol import ProtocolRecord
from serve.sampling_fields import MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS, MAX_TOP_K, SEED_LIMIT
from serve.tokenize_request import TokenizeRequest
from serve.tool_request import CHOICES

PENALTY = f"a number from {-MAX_PENALTY:g} to {MAX_PENALTY:g}"
ALLOWED = {
    "messages": "a list of one or more messages",
    "messages[]": "an object with role and content",
    "messages[].role": '"system", "developer", "user", "assistant" or "tool"',
    "messages[].content": 'a string, or a list of {"type": "text", "text": string}',
    "messages[].attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "model": "a string, see GET /v1/models",
    "attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "guidance": f"a number from 0 to {MAX_GUIDANCE:g}",
    "guidance_from": "an object: attribute name -> number, see GET /v1/attributes",
    "profile": "a string, see GET /v1/attributes",
    "verbosity": '"low", "medium" or "high"',
    "reasoning_effort": '"none", "minimal", "low", "medium", "high", "xhigh" or "max"',
    "metadata": "an object",
    "metadata.attributes": 'a string like "humor=4,verbosity=1"',
    "stream": "true or false",
    "stream_options": "an object with include_usage",
    "stream_options.include_usage": "true or false",
    "max_tokens": "a whole number from 1",
    "max_completion_tokens": "a whole number from 1",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0 and at most 1",
    "top_k": f"a whole number from 0 (off; so is -1) to {MAX_TOP_K}",
    "seed": f"a whole number from {-SEED_LIMIT} to {SEED_LIMIT - 1}",
    "stop": f"a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARS} characters",
    "stop[]": f"a string of 1 to {MAX_STOP_CHARS} characters",
    "n": f"a whole number from 1 to {MAX_CHOICES}",
    "score": "true or false",
    "best_of": f"a whole number from 2 to {MAX_BEST_OF}",
    "target_distance": "a number from 0 to 1",
    "user": "a string",
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "repetition_penalty": f"a number from {REPETITION_RANGE[0]:g} to {REPETITION_RANGE[1]:g}",
    "min_p": "a number from 0 to 1",
    "logit_bias": f"an object of at most {MAX_BIASED}: token id -> number from {-MAX_BIAS:g} to {MAX_BIAS:g}",
    "ignore_eos": "true or false",
    "logprobs": "true or false",
    "top_logprobs": f"a whole number from 0 to {MAX_LOGPROBS}",
    "response_format": response_format.ALLOWED,
    "tools": "a list of functions",
    "tool_choice": CHOICES,
    "messages[].tool_calls": "a list of calls",
    "messages[].tool_call_id": "a string",
}
"""Field -> what it may be, for error messages; [] stands for any index."""
IN_COMPLETIONS = ALLOWED | {
    "prompt": PROMPT,
    "max_tokens": "a whole number from 0 (the prompt alone, with echo)",
    "echo": "true or false",
    "logprobs": f"a whole number from 0 to {MAX_LOGPROBS}",
    "best_of": "the value of n: all answers are returned",
    "add_special_tokens": "true or false",
}
"""The same for text completions."""
ALLOWED_IN: Mapping[type[ProtocolRecord], Mapping[str, str]] = {
    ChatRequest: ALLOWED,
    CompletionRequest: IN_COMPLETIONS,
    TokenizeRequest: {
        "prompt": "a text, or messages instead",
        "model": ALLOWED["model"],
        "add_special_tokens": "true or false",
        "return_token_strs": "true or false",
    },
    FeedbackRequest: {
        "id": "the id of a reply, a string",
        "index": "a whole number from 0: which choice of the reply",
        "attributes": "an object with one or more: attribute name -> number, see GET /v1/attributes",
    },
}
"""Record -> the same for its fields."""
