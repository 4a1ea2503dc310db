"""What callers send to POST /tokenize with a text, and what comes back. Knows no tokenizer and no HTTP."""

from serve.protocol import ProtocolRecord


class TokenizeRequest(ProtocolRecord):
    """Body of POST /tokenize with a text; with `messages` it is a `ChatRequest`."""

    prompt: str
    """The text."""
    model: str | None = None
    """Whose tokenizer; None = that of the policy that is served."""
    add_special_tokens: bool = True
    """Put before it what the tokenizer puts first of its own accord?"""
    return_token_strs: bool = False
    """Return each token's text too?"""


class TokenizeReply(ProtocolRecord):
    """Reply to POST /tokenize."""

    count: int
    max_model_len: int
    """The model's context."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """Each token's text alone, if it was asked for."""
