"""Steadier grasps: the search alone, on worlds whose best hand is known, and in physics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from afield.hand import Hand, hand_by_name
from afield.steady import NOISE, Attempt, SteadyConfig, noisy_hands, steadier

REACH = 0.008
"""Metres around the best place within which a hand holds, in the worlds of these tests."""


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_by_name("shadow")


def near(place: Tensor) -> tuple[list[Tensor], Callable[[Tensor], Attempt]]:
    """A world in which hands hold near a place, and what was tried in it."""
    tried: list[Tensor] = []

    def attempt(beta: Tensor) -> Attempt:
        tried.append(beta)
        far = float((beta[:3] - place).norm())
        return Attempt(far < REACH, max(0.0, 1.0 - far / 0.05) + (far < REACH))

    return tried, attempt


def held(beta: Tensor, hand: Hand, attempt: Callable[[Tensor], Attempt]) -> float:
    """Share of fresh noisy repetitions that hold."""
    return sum(attempt(noisy).holds for noisy in noisy_hands(hand, beta, 200, 99)) / 200


def test_noise_is_spread_as_told_and_alike_for_all_hands(hand: Hand) -> None:
    low, high = hand.limits.unbind(dim=-1)
    beta = hand.join(torch.eye(4), (low + high) / 2)
    offsets = noisy_hands(hand, beta, 500, 3) - beta
    assert offsets[:, :3].std() == pytest.approx(NOISE[0], rel=0.05)
    wide = (high - low) > 8 * NOISE[1]
    assert offsets[:, 9:][:, wide].std() == pytest.approx(NOISE[1], rel=0.05)
    moved = beta.clone()
    moved[:3] += 0.1
    torch.testing.assert_close(noisy_hands(hand, moved, 500, 3) - moved, offsets, atol=1e-6, rtol=0)
    assert not torch.equal(noisy_hands(hand, beta, 5, 4), noisy_hands(hand, beta, 5, 3))


def test_a_steadier_hand_holds_more_often(hand: Hand) -> None:
    beta = hand.join(torch.eye(4), hand.neutral())
    place = beta[:3] + torch.tensor([0.007, 0.0, 0.0])
    _, attempt = near(place)
    config = SteadyConfig(rounds=12)
    found = steadier(hand, beta, attempt, lambda _: True, 2.0, config, progress=False)
    assert held(beta, hand, attempt) < 0.6 < 0.7 < held(found, hand, attempt)
    assert torch.equal(found, steadier(hand, beta, attempt, lambda _: True, 2.0, config, progress=False))


def test_giving_children_up_early_changes_nothing_but_the_number_of_attempts(hand: Hand) -> None:
    """Against the slow way: with no bound on the score every child is tried to its end."""
    beta = hand.join(torch.eye(4), hand.neutral())
    place = beta[:3] + torch.tensor([0.0, 0.007, 0.0])
    (few, quick), (many, slow) = near(place), near(place)
    config = SteadyConfig(rounds=4)
    found = steadier(hand, beta, quick, lambda _: True, 2.0, config, progress=False)
    assert torch.equal(found, steadier(hand, beta, slow, lambda _: True, 1e9, config, progress=False))
    assert not torch.equal(found, beta)
    assert len(few) < 0.8 * len(many)


def test_what_is_not_fit_to_be_taken_is_not_taken(hand: Hand) -> None:
    beta = hand.join(torch.eye(4), hand.neutral())
    place = beta[:3] + torch.tensor([0.007, 0.0, 0.0])
    _, attempt = near(place)
    config = SteadyConfig(rounds=4)
    assert torch.equal(steadier(hand, beta, attempt, lambda _: False, 2.0, config, progress=False), beta)
    found = steadier(hand, beta, attempt, lambda b: bool(b[0] < place[0] - 0.003), 2.0, config, progress=False)
    assert not torch.equal(found, beta)
    assert found[0] < place[0] - 0.003
    tried, attempt = near(place)
    assert torch.equal(steadier(hand, beta, attempt, lambda _: True, 2.0, SteadyConfig(rounds=0), progress=False), beta)
    assert not tried


def test_the_search_ends_when_enough_hold_or_nothing_helps(hand: Hand) -> None:
    beta = hand.join(torch.eye(4), hand.neutral())
    tried, attempt = near(beta[:3])
    steadier(hand, beta, attempt, lambda _: True, 2.0, SteadyConfig(trials=6, enough=0.5), progress=False)
    assert len(tried) == 6
    asked: list[Tensor] = []

    def refuse(child: Tensor) -> bool:
        """Remember who asked."""
        asked.append(child)
        return False

    config = SteadyConfig(rounds=50, children=2, trials=2, patience=3)
    steadier(hand, beta, lambda _: Attempt(False, 0.0), refuse, 2.0, config, progress=False)
    assert len(asked) == 6
