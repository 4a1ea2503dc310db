"""Ratings of models from games: Elo and Bradley-Terry, with intervals by a bootstrap over questions.

Elo follows QLoRA (arXiv 2305.14314, section 5: from 1,000, K 32, mean over orders of the games), which SteerLM compares
with. Bradley-Terry is the maximum likelihood and needs no order (Chatbot Arena, arXiv 2403.04132). Knows no judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

START, SCALE = 1000.0, 400.0
"""Where everybody starts; so many points more are ten times the odds."""
ELO_K = 32.0
"""How much a game moves a rating."""
MOST_STEPS, CLOSE_ENOUGH = 2000, 1e-9


@dataclass(frozen=True)
class Game:
    """`score` is 1 where `one` won, 0 where `other` did, 0.5 for a tie. Games of one question are drawn together."""

    question: object
    one: str
    other: str
    score: float


def elo(games_GX: np.ndarray, num_models: int, orders_RG: np.ndarray) -> np.ndarray:
    """Elo after the games in each order: `ratings_RM`. Columns of `games_GX`: one, other (numbers of models), score.

    All orders are played at once, a game of each at a time.
    """
    ratings_RM = np.full((len(orders_RG), num_models), START)
    rows_R = np.arange(len(orders_RG))
    for games_R in orders_RG.T:
        one_R, other_R = games_GX[games_R, 0].astype(int), games_GX[games_R, 1].astype(int)
        expected_R = 1 / (1 + 10 ** ((ratings_RM[rows_R, other_R] - ratings_RM[rows_R, one_R]) / SCALE))
        gain_R = ELO_K * (games_GX[games_R, 2] - expected_R)
        ratings_RM[rows_R, one_R] += gain_R
        ratings_RM[rows_R, other_R] -= gain_R
    return ratings_RM


def bradley_terry(wins_RMM: np.ndarray) -> np.ndarray:
    """Most likely ratings `ratings_RM`, mean 1,000, for each table of wins (row beat column; a tie is half a win).

    Every two models that met get one tie more than they played, so that who won or lost every game has a finite rating.
    Minorize-maximize (Hunter 2004): each step multiplies a strength by wins over expected wins.
    """
    played_RMM = wins_RMM + wins_RMM.transpose(0, 2, 1)
    met_RMM = played_RMM > 0
    wins_RMM, played_RMM = wins_RMM + 0.5 * met_RMM, played_RMM + 1.0 * met_RMM
    strengths_RM = np.ones(wins_RMM.shape[:2])
    won_RM = wins_RMM.sum(2)
    for _ in range(MOST_STEPS):
        expected_RM = (played_RMM / (strengths_RM[:, :, None] + strengths_RM[:, None, :])).sum(2)
        new_RM = np.where(expected_RM > 0, won_RM / np.maximum(expected_RM, 1e-12), 1.0)
        new_RM /= np.exp(np.log(new_RM).mean(1, keepdims=True))
        moved = np.abs(np.log(new_RM / strengths_RM)).max()
        strengths_RM = new_RM
        if moved < CLOSE_ENOUGH:
            break
    return START + SCALE * np.log10(strengths_RM)


def ratings(games: Sequence[Game], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """`elo` and `bradley_terry` of each model, best first, with 95 % intervals `[low, high]` and its number of games.

    Each resample draws as many questions as there are, with repetition, and plays their games in an order of its own.
    """
    models = sorted({model for game in games for model in (game.one, game.other)})
    if not games:
        return {}
    number = {model: i for i, model in enumerate(models)}
    games_GX = np.array([(number[g.one], number[g.other], g.score) for g in games])
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(games_R) for games_R in resampled([g.question for g in games], resamples, rng)]
    orders_RG = np.array([rng.permutation(len(games)) for _ in range(resamples)])
    mean_elo_M = elo(games_GX, len(models), orders_RG).mean(0)
    # Draws differ in length where questions have more or fewer games; those of equal length are played together.
    elo_RM = np.concatenate(
        [
            elo(games_GX, len(models), np.array([d for d in drawn if len(d) == n]))
            for n in sorted({len(d) for d in drawn})
        ]
    )
    point_M = bradley_terry(_wins(games_GX, len(models))[None])[0]
    spread_RM = bradley_terry(np.stack([_wins(games_GX[d], len(models)) for d in drawn]))
    found = {}
    for model in sorted(models, key=lambda m: -point_M[number[m]]):
        i = number[model]
        found[model] = {
            "bradley_terry": round(float(point_M[i]), 1),
            "bradley_terry_interval": interval(spread_RM[:, i]),
            "elo": round(float(mean_elo_M[i]), 1),
            "elo_interval": interval(elo_RM[:, i]),
            "games": int(np.sum((games_GX[:, 0] == i) | (games_GX[:, 1] == i))),
        }
    return found


def resampled(questions: Sequence[object], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """For each resample the places of what belongs to the questions drawn, as often as they were drawn."""
    places: dict[object, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question, []).append(place)
    groups = [np.array(found) for found in places.values()]
    return [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(resamples)]


def interval(values_R: np.ndarray, digits: int = 1) -> list[float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values_R, (0.025, 0.975))
    return [round(float(low), digits), round(float(high), digits)]


def _wins(games_GX: np.ndarray, num_models: int) -> np.ndarray:
    wins_MM = np.zeros((num_models, num_models))
    one_G, other_G = games_GX[:, 0].astype(int), games_GX[:, 1].astype(int)
    np.add.at(wins_MM, (one_G, other_G), games_GX[:, 2])
    np.add.at(wins_MM, (other_G, one_G), 1 - games_GX[:, 2])
    return wins_MM
