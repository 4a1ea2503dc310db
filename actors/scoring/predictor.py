"""A trained attribute predictor that scores token ids: one packed forward for many conversations.

A decoder scores all assistant turns of a conversation in one causal forward; an encoder scores each in its own segment
(`data.tokens.segments` cuts a conversation by its `reading`). Knows no rows and no text (`actors.scoring.annotator`).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch

from actors.kernels.devices import own_device
from actors.kernels.last_layer import only_read
from actors.kernels.onednn import pack_multiple, use_onednn
from actors.kernels.transfer import to_device, to_host
from actors.kernels.varlen import alone, kernel_name, packed
from actors.modeling.backbone import max_positions, packs
from actors.modeling.isolation import ANNOTATION, require_isolated
from actors.modeling.model_folder import Format, load_format, local_folder
from actors.modeling.model_part import ModelPart
from actors.modeling.regressor import PredictorLoss, load_regressor
from data.errors import UserError

log = logging.getLogger(__name__)


class Predictor:
    """A trained predictor, ready to score token ids."""

    def __init__(self, module: PredictorLoss, format: Format, packing: bool = True):
        self.packing = packing
        """False = one segment in each forward."""
        self.module, self.format, self.schema = module.eval(), format, format.schema
        self.reading = format.reading
        self.max_tokens = max_positions(module.model.config)
        """Longest segment, with an encoder's [CLS] and [SEP]; None = no limit."""
        self.device = next(module.parameters()).device
        self.body = getattr(module.model, module.model.base_model_prefix)
        use_onednn(self.body)
        self.multiple = pack_multiple(self.device) if packing and packs(type(module.model)) else 1
        """Packs are padded to a multiple of so many tokens."""
        dtype = next(self.body.parameters()).dtype
        kernel = kernel_name(module.model.config, self.device, dtype)
        log.info("scoring in %s on %s; attention: %s", str(dtype).removeprefix("torch."), self.device, kernel)

    @classmethod
    def load(
        cls,
        path: str,
        dtype: str = "float32",
        device: str | None = None,
        num_threads: int | None = None,
        packing: bool = True,
        setting: str = ANNOTATION,
    ) -> Self:
        """From a folder or fsspec URI, on `num_threads` CPU threads.

        `device`: None = this process's own (`actors.kernels.devices`), the CPU unless Ray assigned a GPU to it. Raises
        UserError if it is no predictor of ours, and if packing (the setting `setting`) would change its scores.
        """
        predictor = cls.unchecked(path, dtype, own_device(device), num_threads, packing)
        predictor.require_isolated(setting)
        return predictor

    @classmethod
    def unchecked(
        cls,
        path: str,
        dtype: str,
        device: torch.device,
        num_threads: int | None,
        packing: bool,
        part: ModelPart | None = None,
    ) -> Self:
        """The same before its first forward; with `part` only that part of it."""
        if num_threads:
            torch.set_num_threads(num_threads)
        folder = local_folder(path)
        format = load_format(folder)
        model = load_regressor(folder, format, packing, getattr(torch, dtype), part=part)
        return cls(PredictorLoss(model.to(device)), format, packing)

    def require_isolated(self, setting: str) -> None:
        """Raise UserError if packing (the setting `setting`) would change its scores."""
        if self.packing:
            require_isolated(self.module.model, self._forward, setting)

    def _forward(self, ids: Sequence[np.ndarray]) -> None:
        """Run these segments, and read nothing."""
        self.module.read(self.pack(ids), torch.zeros(0, dtype=torch.int64, device=self.device))

    def require_segment_fits(self, num_tokens: int) -> None:
        """Raise UserError if a segment of `num_tokens` has more tokens than an encoder has positions."""
        if not self.reading.causal and self.max_tokens and num_tokens > self.max_tokens:
            raise UserError(
                f"segments of {num_tokens} tokens are requested, the predictor's backbone reads at most "
                f"{self.max_tokens}; set annotate.max_tokens to at most {self.max_tokens}"
            )

    def pack(self, ids: Sequence[np.ndarray]) -> dict[str, Any]:
        """The model's inputs for the segments of one pack."""
        if self.packing:
            return packed(ids, self.device, self.multiple)
        (one,) = ids
        return alone(one, self.device)

    def score(
        self, ids: Sequence[np.ndarray], reads: Sequence[np.ndarray], starts: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Scores of the segments of one pack at the positions `reads` of each, one float32 array [S, A] per segment.

        `starts`: the first token of the answer that ends at each position; heads on several layers need it. Without
        packing there is one segment. Raises UserError for a segment that is longer than an encoder reads.
        """
        return self.start(ids, reads, starts)()

    @torch.inference_mode()
    def start(
        self, ids: Sequence[np.ndarray], reads: Sequence[np.ndarray], starts: Sequence[np.ndarray] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        """The same, but on a GPU it only begins: the function returned waits and gives the scores.

        Until then the host is free, for the next pack above all.
        """
        self.require_segment_fits(max(len(i) for i in ids))
        bounds = np.cumsum([0, *(len(i) for i in ids)])
        reads_S, starts_S = (
            np.concatenate([p + begin for p, begin in zip(part, bounds, strict=False)]).astype(np.int64)
            for part in (reads, reads if starts is None else starts)
        )
        positions = to_device(reads_S, self.device), to_device(starts_S, self.device)
        # On a GPU to find the distinct ones would wait for all that runs.
        distinct_S = to_device(self._needed(starts_S, reads_S), self.device)
        pack = self.pack(ids)
        with only_read(self.body, distinct_S, pack["input_ids"].shape[1]):
            scores = to_host(self.module.scores(pack, *positions))
        return lambda: list(np.split(scores(), np.cumsum([len(r) for r in reads])[:-1]))

    def _needed(self, starts_S: np.ndarray, reads_S: np.ndarray) -> np.ndarray:
        """The positions at which the last layer is read, distinct and in order."""
        reader = self.module.reader
        if reader is None or not reader.heads.reads_answers:
            return np.unique(reads_S)
        answers = [np.arange(start, end + 1) for start, end in zip(starts_S, reads_S, strict=True)]
        return np.unique(np.concatenate([reads_S, *answers]))
