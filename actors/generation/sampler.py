"""The Ray Data worker of sampling: prompts with requested attributes in, conversations with the sampled answer out.

It holds a policy and its engine. Each row has its own seed, so the answers do not depend on the number of workers.
"""

import time
from dataclasses import replace

import pyarrow as pa

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete, require_fit
from actors.generation.settings import EngineSettings, sampling_place
from data.attributes import AttributeSchema
from data.conversation import Conversation, Message, to_table
from data.counters import with_counters
from data.errors import UserError
from data.prompts import Prompt, prompts_from
from data.selection import CUT_OFF

FINISH = "finish"
"""The column with the end of an answer: "stop", or "length" if it was cut off."""
TOO_LONG = "too_long"
"""The value of that column if the prompt left no space for an answer: the answer is empty."""


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
    ):
        """`sampling` has no seed: it comes from the row. Raises SchemaMismatch if the policy has another schema, and
        UserError if the engine cannot run it.

        `keep_too_long`: a prompt that leaves no space gets an empty answer instead of an error. `gpus` are set aside
        for this process, below 1 a share of one.
        """
        self.policy, self.engine = load_engine(engine, policy, dtype, sampling_place(gpus), num_threads)
        schema.require_same(self.policy.schema, "the run", f"the policy at {policy}")
        self.schema, self.sampling, self.keep_too_long = schema, sampling, keep_too_long

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts, started = list(prompts_from(batch)), time.process_time()
        requests = [(self._ids(p), replace(self.sampling, seed=p.seed)) for p in prompts]
        fits = [not self.keep_too_long or self._fits(ids) for ids, _ in requests]
        found = iter(complete(self.engine, [request for request, fit in zip(requests, fits, strict=True) if fit]))
        answers = [next(found) if fit else ([], TOO_LONG) for fit in fits]
        finishes = [finish for _, finish in answers]
        rows = [self._row(prompt, ids) for prompt, (ids, _) in zip(prompts, answers, strict=True)]
        table = to_table(rows, self.schema).append_column(FINISH, pa.array(finishes))
        tokens, seconds = sum(len(ids) for ids, _ in answers), time.process_time() - started
        return with_counters(table, {"tokens": tokens, "cut_off": finishes.count(CUT_OFF), "cpu_seconds": seconds})

    def _ids(self, prompt: Prompt) -> list[int]:
        """The prompt's ids; the oldest exchanges are cut if they leave no space for an answer."""
        messages = prompt.messages
        while True:
            ids = self.policy.prompt(prompt.system, messages, prompt.requested)
            if len(ids) + self.sampling.max_tokens <= self.engine.context or len(messages) <= 2:
                return ids
            messages = messages[2:]

    def _fits(self, ids: list[int]) -> bool:
        try:
            require_fit(ids, self.sampling, self.engine.context)
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
