"""The Ray Data worker of sampling: prompts with requested attributes in, conversations with the sampled answer out.

It holds a policy and its engine. Each row has its own seed, so the answers do not depend on the number of workers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete, require_fit
from actors.generation.settings import EngineSettings, sampling_place
from actors.kernels.machine_memory import ALONE, MachineShare
from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, Message, to_table
from data.counters import with_counters
from data.errors import UserError
from data.prompts import Prompt, prompts_from
from data.selection import CUT_OFF, FINISH, TOO_LONG


class Sampler:
    """Answer every prompt of a batch."""

    def __init__(
        self,
        policy: str,
        schema: AttributeSchema,
        sampling: Sampling,
        engine: EngineSettings,
        dtype: str,
        num_threads: int,
        keep_too_long: bool = False,
        gpus: float = 0,
        guidance_from: Values | None = None,
        share: MachineShare = ALONE,
    ):
        """`sampling` has no seed: it comes from the row. Raises SchemaMismatch if the policy has another schema, and
        UserError if the engine cannot run it.

        `guidance_from`: what guidance leads away from: a row's request with these values in it; None = no request at
        all. `keep_too_long`: a prompt that leaves no space gets an empty answer instead of an error. `gpus` are set
        aside for this process, below 1 a share of one. `share`: of the machine's memory, on a CPU.
        """
        self.policy, self.engine = load_engine(engine, policy, dtype, sampling_place(gpus), num_threads, share=share)
        schema.require_same(self.policy.schema, "the run", f"the policy at {policy}")
        self.schema, self.sampling, self.keep_too_long = schema, sampling, keep_too_long
        self.guidance_from = guidance_from

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts, started_cpu_s, started_s = list(prompts_from(batch)), time.process_time(), time.monotonic()
        requests = [self._request(prompt) for prompt in prompts]
        fits = [not self.keep_too_long or self._fits(*request) for request in requests]
        found = iter(complete(self.engine, [request for request, fit in zip(requests, fits, strict=True) if fit]))
        answers = [next(found) if fit else ([], TOO_LONG) for fit in fits]
        finishes = [finish for _, finish in answers]
        rows = [self._row(prompt, ids) for prompt, (ids, _) in zip(prompts, answers, strict=True)]
        table = to_table(rows, self.schema).append_column(FINISH, pa.array(finishes))
        counters = {
            "tokens": sum(len(ids) for ids, _ in answers),
            "cut_off": finishes.count(CUT_OFF),
            "cpu_seconds": time.process_time() - started_cpu_s,
            "wall_seconds": time.monotonic() - started_s,
        }
        return with_counters(table, counters)

    def _request(self, prompt: Prompt) -> tuple[list[int], Sampling]:
        """The prompt's ids and how to go on; the oldest exchanges are cut if they leave no space for an answer."""
        own, messages = replace(self.sampling, seed=prompt.seed), prompt.messages
        while True:
            ids = self.policy.prompt(prompt.system, messages, prompt.requested)
            if own.is_guided:
                own = self._guided(own, prompt, messages, ids)
            longest = max(len(ids), len(own.unguided_ids))
            if longest + own.max_tokens <= self._context(own) or len(messages) <= 2:
                return ids, own
            messages = messages[2:]

    def _guided(self, own: Sampling, prompt: Prompt, messages: Sequence[Message], ids: list[int]) -> Sampling:
        """With the prompt to go away from; without guidance where that is the prompt itself."""
        values = {} if self.guidance_from is None else {**prompt.requested, **self.guidance_from}
        unguided_ids = self.policy.prompt(prompt.system, messages, values)
        return replace(own, guidance=1.0) if unguided_ids == ids else replace(own, unguided_ids=tuple(unguided_ids))

    def _context(self, own: Sampling) -> int:
        return self.engine.guided_context if own.is_guided else self.engine.context

    def _fits(self, ids: list[int], own: Sampling) -> bool:
        try:
            require_fit(ids, own, self._context(own))
        except UserError:
            return False
        return True

    def _row(self, prompt: Prompt, ids: list[int]) -> Conversation:
        messages = (*prompt.messages, Message("assistant", self.policy.decode(ids).strip()))
        earlier = sum(m.role == "assistant" for m in prompt.messages)
        return Conversation(
            id=prompt.id,
            source=prompt.source,
            group=prompt.group,
            system=prompt.system,
            messages=messages,
            requested=({},) * earlier + (prompt.requested,),
        )
