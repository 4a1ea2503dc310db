"""Chat requests as callers send them, through the parser."""

import json
from typing import Any

import pytest

from serve.chat_request import ChatRequest
from serve.parser import parse
from serve.protocol import ProtocolError

USER = {"role": "user", "content": "Why is the sky blue?"}


def request(**fields: Any) -> ChatRequest:
    """What the parser makes of one question with `fields`."""
    return parse(json.dumps({"messages": [USER], **fields}).encode()).chat


def problem(**fields: Any) -> ProtocolError:
    """The refusal of such a request."""
    with pytest.raises(ProtocolError) as caught:
        request(**fields)
    assert caught.value.status == 400
    return caught.value
