"""Log-probabilities of tokens that were written, and of a prompt's own. Knows no engine and no sampling."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from actors.generation.protocol import TokenLogprob

CHUNK_LOGITS = 2**25
"""Logits of a prompt that exist at a time: 128 MiB in fp32, and as much again while they are summed."""


def of_tokens(logits_NV: torch.Tensor, ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Of token `ids[n]` by row n, with the `num_top` likeliest in its place. Keeps nothing of the size of the logits.

    Tokens whose logit is -inf are banned and never among the likeliest.
    """
    logits_NV = logits_NV.float()
    ids_N1 = torch.tensor(list(ids), device=logits_NV.device)[:, None]
    sums_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    own = (logits_NV.gather(1, ids_N1) - sums_N1)[:, 0].tolist()
    if not num_top:
        return [TokenLogprob(logprob) for logprob in own]
    likeliest_NK, top_ids_NK = logits_NV.topk(min(num_top, logits_NV.shape[1]), dim=-1)
    found = zip(own, top_ids_NK.tolist(), (likeliest_NK - sums_N1).tolist(), strict=True)
    return [
        TokenLogprob(logprob, tuple((i, p) for i, p in zip(ids_K, logprobs_K, strict=True) if p != -torch.inf))
        for logprob, ids_K, logprobs_K in found
    ]


def prefill_with_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[int], num_top: int, vocabulary: int, chunk_logits: int = CHUNK_LOGITS
) -> tuple[DynamicCache, torch.Tensor, list[TokenLogprob | None]]:
    """Keys and values of a prompt, the logits [1, V] at its end, and how likely each of its tokens was.

    The prompt runs in chunks whose logits are at most `chunk_logits`, or one token's. None stands for the first token,
    which nothing comes before.
    """
    cache: Any = DynamicCache()
    found: list[TokenLogprob | None] = [None]
    step = max(1, chunk_logits // vocabulary)
    logits_TV = torch.empty(0)
    for start in range(0, len(prompt_ids), step):
        end = min(start + step, len(prompt_ids))
        ids_1T = torch.tensor([list(prompt_ids[start:end])], device=model.device)
        positions_1T = torch.arange(start, end, device=model.device)[None]
        logits_TV = model(input_ids=ids_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True).logits[0]
        nexts = prompt_ids[start + 1 : end + 1]  # what each position predicts; the prompt's last one, nothing
        found += of_tokens(logits_TV[: len(nexts)], nexts, num_top) if nexts else []
    return cache, logits_TV[-1:].clone(), found
