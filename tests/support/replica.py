"""A replica in the process of a test, and what it answers."""

from actors.generation.protocol import Sampling
from data.conversation import Message
from serve.replica import Replica
from serve.request import Delta, Event, GenerationRequest, Revision
from serve.settings import ServedEngineSettings

REQUEST = GenerationRequest(
    system="",
    messages=(Message("user", "Tell me about the moon."),),
    labels=(),
    attributes={},
    sampling=Sampling(24, seed=3),
)


def replica_of(policy: str) -> Replica:
    return Replica("tiny", Revision(policy, 0), ServedEngineSettings(max_num_seqs=2))


async def collected(replica: Replica, request: GenerationRequest) -> list[Event]:
    return [event async for event in replica.generate(request)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))
