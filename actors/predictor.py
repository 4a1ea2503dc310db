"""A trained attribute predictor, ready to score token ids: one packed forward for many conversations.

All assistant turns of a conversation are scored in one causal forward. Knows no rows and no text (`actors.annotator`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from actors.attention import VARLEN, packed
from actors.checkpoint import Format, load_format, local_folder
from actors.regressor import PredictorLoss, load_regressor


class Predictor:
    """A trained predictor, ready to score token ids: one packed forward for many conversations."""

    def __init__(self, module: PredictorLoss, format: Format):
        self.module, self.format, self.schema = module.eval(), format, format.schema
        self.device = next(module.parameters()).device

    @classmethod
    def load(cls, path: str, dtype: str = "float32", device: str | None = None, num_threads: int | None = None) -> "Predictor":
        """From a local folder or any fsspec URI; raises ValueError if it is no predictor of ours. `num_threads`: CPU threads of this process."""
        if num_threads:
            torch.set_num_threads(num_threads)
        folder = local_folder(path)
        format = load_format(folder)
        model = load_regressor(folder, format, VARLEN, getattr(torch, dtype))
        return cls(PredictorLoss(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))), format)

    @torch.inference_mode()
    def score(self, ids: Sequence[np.ndarray], turn_ends: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Scores of the conversations of one packed row, one float32 array [S, A] each."""
        starts = np.cumsum([0, *(len(i) for i in ids)])
        ends_S = np.concatenate([e + start for e, start in zip(turn_ends, starts, strict=False)]).astype(np.int64)
        scores_SA = self.module.scores(packed(ids, self.device), torch.from_numpy(ends_S).to(self.device)).cpu().numpy()
        return list(np.split(scores_SA, np.cumsum([len(e) for e in turn_ends])[:-1]))
