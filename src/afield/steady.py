"""Grasps that hold under noise: small steps to hands of which more noisy repetitions hold.

A hand never ends exactly where it was sent, and an object never lies exactly where it was seen. Whether a grasp holds says
less than how often it holds a few millimetres and degrees beside itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.hand import Hand


@dataclass(frozen=True)
class Attempt:
    """What became of one hand configuration."""

    holds: bool
    """Whether it did all that it should."""
    score: float
    """How far it got; attempts that hold get more than others."""


@dataclass(frozen=True)
class SteadyConfig:
    """How a steadier grasp is searched for: the best hand so far is varied, and gives way to a child that does better."""

    rounds: int = 8
    """How often it is varied; 0 leaves it as it is."""
    children: int = 8
    """How many times each."""
    trials: int = 12
    """Noisy repetitions by which hands are compared, the same for all."""
    enough: float = 0.9
    """Share of them that must hold for the search to end early."""
    patience: int = 5
    """It also ends after so many rounds without a better one."""
    seed: int = 0
    """Of noise and steps."""


STEP = (0.006, 0.1)
"""First spread of a child around its parent: metres of the palm, and the rest (radians, entries of the rotation)."""
GROW, SHRINK, SMALLEST = 1.2, 0.8, 0.2
"""The spread after a round that was better, after one that was not, and the least one; shares."""
NOISE = (0.004, 0.05)
"""Spread of a noisy repetition: 4 mm, and 0.05 rad in the joints or 3 degrees of the palm."""


def noisy_hands(
    hand: Hand, beta: Float[Tensor, "d"], count: int, seed: int, spread: tuple[float, float] = NOISE
) -> Float[Tensor, "count d"]:
    """Configurations around one, drawn alike for every hand that is given the same seed.

    Args:
        hand: the hand.
        beta: the configuration in the middle.
        count: how many.
        seed: of the draws.
        spread: standard deviations in metres and radians.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.full_like(beta, spread[1])
    scale[:3] = spread[0]
    return hand.clamp(beta + scale * torch.randn(count, len(beta), generator=generator))


def steadier(
    hand: Hand,
    beta: Float[Tensor, "d"],
    attempt: Callable[[Float[Tensor, "d"]], Attempt],
    admit: Callable[[Float[Tensor, "d"]], bool],
    most: float,
    config: SteadyConfig | None = None,
    *,
    progress: bool = True,
) -> Float[Tensor, "d"]:
    """The hand, or one nearby of which more noisy repetitions hold.

    Args:
        hand: the hand.
        beta: where the search begins.
        attempt: tries a noisy repetition, as a rule in physics.
        admit: says whether a configuration itself is fit to be taken at all.
        most: the highest score that an attempt can get; a child is given up once it cannot be the best any more.
        config: see `SteadyConfig`.
        progress: show a progress bar.
    """
    config = config or SteadyConfig()
    if config.rounds == 0:
        return beta
    best, least, held = beta, -float("inf"), 0

    def better(child: Float[Tensor, "d"]) -> bool:
        """Compare a child with the best hand so far; it becomes that if it is better."""
        nonlocal best, least, held
        total, holding = 0.0, 0
        for left, noisy in zip(
            range(config.trials - 1, -1, -1), noisy_hands(hand, child, config.trials, config.seed), strict=True
        ):
            made = attempt(noisy)
            total, holding = total + made.score, holding + made.holds
            if total + left * most <= least:
                return False
        best, least, held = child, total, holding
        return True

    better(beta)
    size, stale = 1.0, 0
    for number in tqdm(range(config.rounds), desc="steady", unit="round", disable=not progress):
        if held >= config.enough * config.trials or stale == config.patience:
            break
        spread = (size * STEP[0], size * STEP[1])
        found = False
        for child in range(config.children):
            # One child a draw, so that it varies the best hand of this very moment.
            seed = config.seed + 1 + number * config.children + child
            varied = noisy_hands(hand, best, 1, seed, spread)[0]
            found |= admit(varied) and better(varied)
        size, stale = (size * GROW, 0) if found else (max(size * SHRINK, SMALLEST), stale + 1)
    return best
