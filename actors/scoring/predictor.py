"""A trained attribute predictor, ready to score token ids: one packed forward for many conversations.

A decoder scores all assistant turns of a conversation in one causal forward; an encoder each in a segment of its own
(`data.tokens.segments` cuts a conversation as `reading` says). Knows no rows and no text (`actors.scoring.annotator`).
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from actors.kernels.last_layer import only_read
from actors.kernels.onednn import pack_multiple, use_onednn
from actors.kernels.varlen import VARLEN, kernel_name, packed
from actors.modeling.backbone import max_positions, packs
from actors.modeling.model_folder import Format, load_format, local_folder
from actors.modeling.regressor import PredictorLoss, load_regressor
from data.errors import UserError

log = logging.getLogger(__name__)


class Predictor:
    """A trained predictor, ready to score token ids."""

    def __init__(self, module: PredictorLoss, format: Format):
        self.module, self.format, self.schema = module.eval(), format, format.schema
        self.reading = format.reading
        self.max_tokens = max_positions(module.model.config)
        """Longest segment, with an encoder's frame; None = no limit."""
        self.device = next(module.parameters()).device
        self.body = getattr(module.model, module.model.base_model_prefix)
        use_onednn(self.body)
        self.multiple = pack_multiple(self.device) if packs(type(module.model)) else 1
        """Rows are filled to a multiple of so many tokens."""
        weights = next(self.body.parameters()).dtype
        log.info(
            "scoring in %s on %s; attention: %s",
            str(weights).removeprefix("torch."),
            self.device,
            kernel_name(module.model.config, self.device, weights),
        )

    @classmethod
    def load(
        cls, path: str, dtype: str = "float32", device: str | None = None, num_threads: int | None = None
    ) -> "Predictor":
        """From a local folder or any fsspec URI; raises UserError if it is no predictor of ours. `num_threads`: CPU threads of this process."""
        if num_threads:
            torch.set_num_threads(num_threads)
        folder = local_folder(path)
        format = load_format(folder)
        model = load_regressor(folder, format, VARLEN, getattr(torch, dtype))
        return cls(PredictorLoss(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))), format)

    def require_segment_fits(self, num_tokens: int) -> None:
        """Raise UserError unless a segment of `num_tokens` can be read: an encoder has no positions beyond its longest."""
        if not self.reading.causal and self.max_tokens and num_tokens > self.max_tokens:
            raise UserError(
                f"segments of {num_tokens} tokens are asked for, the predictor's backbone reads at most {self.max_tokens}; "
                f"set annotate.max_tokens to at most {self.max_tokens}"
            )

    @torch.inference_mode()
    def score(self, ids: Sequence[np.ndarray], reads: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Scores of the segments of one packed row, one float32 array [S, A] each; `reads` are the positions the heads read in each.

        Raises UserError for a segment that an encoder has no positions for.
        """
        self.require_segment_fits(max(len(i) for i in ids))
        starts = np.cumsum([0, *(len(i) for i in ids)])
        reads_S = np.concatenate([r + start for r, start in zip(reads, starts, strict=False)]).astype(np.int64)
        device_reads_S = torch.from_numpy(reads_S).to(self.device)
        row = packed(ids, self.device, self.multiple)
        with only_read(self.body, device_reads_S, row["input_ids"].shape[1]):
            scores_SA = self.module.scores(row, device_reads_S).cpu().numpy()
        return list(np.split(scores_SA, np.cumsum([len(r) for r in reads])[:-1]))
