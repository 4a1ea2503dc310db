"""Ridge heads in closed form, with what they read and their penalty chosen by cross-validation.

The answers that an error is measured on are of other groups (message trees, prompts) than those that it was fitted to.
Numbers in, numbers out: knows no model, no rows and no workers.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actors.modeling.layer_heads import Block, LayerHeads
from actors.modeling.ridge_solver import CrossValidation, solved
from data.errors import UserError
from data.stage_metrics import HeadFit

FOLDS = 5
PENALTIES = tuple(10 ** (k / 2) for k in range(-8, 3))
"""Per example and standardized feature: 1e-4 to 10 in half powers of ten. Each is multiplied by the number of features,
so that one of them means the same for one block and for ten."""
CONSTANT = 1e-6
"""A feature whose standard deviation is a smaller share of its mean carries rounding errors only, and is left out."""


@dataclass(frozen=True)
class Labelled:
    """Answers with their features and labels."""

    features_NF: torch.Tensor
    """Float32, the blocks side by side, without the constant."""
    values_NA: torch.Tensor
    """Finite where there is no label, too."""
    weights_NA: torch.Tensor
    """What a label counts; 0 = there is none."""
    folds_N: torch.Tensor
    """Of cross-validation; a group is in one of them."""


@dataclass(frozen=True)
class FittedHeads:
    """Heads on the blocks that some attribute reads."""

    heads: LayerHeads
    weights_AF: torch.Tensor
    """Float32, for the features of `heads`: the last column is the bias; 0 for a block that an attribute does not read,
    and for an attribute without labels."""
    fits: tuple[HeadFit, ...]
    """One for each attribute."""


def group_folds(groups: Sequence[str], seed: int) -> np.ndarray:
    """The fold of each answer by its group: a group is whole, the folds are about as large; int64 [N].

    Raises UserError if all answers are of one group.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise UserError(
            f"all {len(groups)} rated answers are of one group (a message tree or a prompt), and heads are chosen on "
            "groups that they were not fitted to; add rated rows, or set predictor.heads to null"
        )
    order = sorted(sizes, key=lambda g: (-sizes[g], hashlib.sha256(f"{seed}/{g}".encode()).hexdigest()))
    filled, fold_of = [0] * min(FOLDS, len(sizes)), dict[str, int]()
    for group in order:
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], np.int64)


def fit_heads(labelled: Labelled, heads: LayerHeads, chooses: bool) -> FittedHeads:
    """The heads of each attribute: with `chooses` on the blocks that rate unseen groups best, else on all of `heads`.

    The penalty is always chosen. A weight of all labels of an attribute changes nothing: each has heads of its own.
    """
    mean_F, scale_F = _standard(labelled)
    x_NF = (labelled.features_NF - mean_F.float()) * scale_F.float()
    width = x_NF.shape[1] // len(heads.blocks)
    tried = list(candidates(heads)) if chooses else [heads.blocks]
    num_attributes = labelled.values_NA.shape[1]
    chosen: list[_Choice | None] = [None] * num_attributes
    for alike in _alike(labelled.weights_NA):
        rows = labelled.weights_NA[:, alike[0]] > 0
        if int(rows.sum()) < 2:
            continue
        own = labelled.values_NA[rows][:, alike].double(), labelled.weights_NA[rows, alike[0]].double()
        found = _choose(x_NF[rows], *own, labelled.folds_N[rows], heads, tried)
        for attribute, one in zip(alike, found, strict=True):
            chosen[attribute] = one
    kept = tuple(b for b in heads.blocks if any(c and b in c.blocks for c in chosen)) or heads.blocks[:1]
    fitted = LayerHeads(kept, heads.backbone_layers)
    weights_AF = torch.zeros(num_attributes, fitted.num_features(width), dtype=torch.float64)
    for attribute, choice in enumerate(chosen):
        if choice is not None:
            columns = _columns(heads, choice.blocks, width)
            slope_F = choice.slope_F * scale_F[columns]
            weights_AF[attribute, _columns(fitted, choice.blocks, width)] = slope_F
            weights_AF[attribute, -1] = choice.intercept - slope_F @ mean_F[columns]
    none = HeadFit(blocks=(), penalty=0, answers=0, explained=0)
    return FittedHeads(fitted, weights_AF.float(), tuple(c.fit if c else none for c in chosen))


def candidates(heads: LayerHeads) -> Iterator[tuple[Block, ...]]:
    """Sets of blocks to choose from: each block, each layer, each reading of all layers up to one, and both."""
    found: dict[tuple[Block, ...], None] = {}
    for depth in heads.layers:
        below = [b for b in heads.blocks if b.layer <= depth]
        for blocks in (
            *([b] for b in below if b.layer == depth),
            [b for b in below if b.layer == depth],
            *([b for b in below if b.reading == reading] for reading in ("end", "mean")),
            below,
        ):
            if blocks:
                found[tuple(blocks)] = None
    yield from found


@dataclass(frozen=True)
class _Choice:
    """Heads of one attribute on standardized features."""

    blocks: tuple[Block, ...]
    slope_F: torch.Tensor
    intercept: float
    fit: HeadFit


def _standard(labelled: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation of each feature over the answers that have a label, float64 [F]."""
    x_NF = labelled.features_NF[(labelled.weights_NA > 0).any(1)].double()
    mean_F, std_F = x_NF.mean(0), x_NF.std(0, correction=0)
    return mean_F, torch.where(std_F > CONSTANT * mean_F.abs(), 1 / std_F.clamp_min(1e-300), 0.0)


def _alike(weights_NA: torch.Tensor) -> list[list[int]]:
    """The attributes by what their labels count: those of a list are solved together. A common factor is nothing."""
    shares_NA = weights_NA.double() / weights_NA.double().amax(0).clamp_min(1e-300)
    found: list[list[int]] = []
    for attribute in range(weights_NA.shape[1]):
        same = (one for one in found if torch.equal(shares_NA[:, one[0]], shares_NA[:, attribute]))
        if (one := next(same, None)) is not None:
            one.append(attribute)
        else:
            found.append([attribute])
    return found


def _columns(heads: LayerHeads, blocks: Sequence[Block], width: int) -> torch.Tensor:
    """Where the features of `blocks` are among those of `heads`."""
    starts = [heads.blocks.index(block) * width for block in blocks]
    return torch.cat([torch.arange(start, start + width) for start in starts])


def _choose(
    x_NF: torch.Tensor,
    y_NA: torch.Tensor,
    weight_N: torch.Tensor,
    fold_N: torch.Tensor,
    heads: LayerHeads,
    tried: Sequence[tuple[Block, ...]],
) -> list[_Choice]:
    """The best of `tried` for each attribute, fitted to all answers. All of them have the same weights."""
    width = x_NF.shape[1] // len(heads.blocks)
    validation = CrossValidation(x_NF, y_NA, weight_N, fold_N, width)
    errors = torch.stack([validation.errors([heads.blocks.index(b) for b in blocks], PENALTIES) for blocks in tried])
    found = []
    mean_A = weight_N @ y_NA / weight_N.sum()
    variance_A = (weight_N @ (y_NA - mean_A) ** 2 / weight_N.sum()).clamp_min(1e-12)
    for attribute in range(y_NA.shape[1]):
        best, penalty = divmod(int(errors[:, :, attribute].argmin()), len(PENALTIES))
        blocks = tried[best]
        x_Nf, y_N1 = x_NF[:, _columns(heads, blocks, width)], y_NA[:, [attribute]]
        [(slope_f1, intercept_1)] = solved(x_Nf.double(), y_N1, weight_N, [PENALTIES[penalty]])
        fit = HeadFit(
            blocks=tuple(map(str, blocks)),
            penalty=round(PENALTIES[penalty], 6),
            answers=len(y_NA),
            explained=round(1 - float(errors[best, penalty, attribute] / variance_A[attribute]), 4),
        )
        found.append(_Choice(blocks, slope_f1[:, 0], float(intercept_1[0]), fit))
    return found
