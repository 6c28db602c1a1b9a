"""Hands looked for where something moves, on a drawn arm that comes in over paper with a pattern, seen by a shaking camera."""

from __future__ import annotations

import numpy as np
import pytest
from distill_samples import noise_picture

from afield.distill.stages.hands import find_hands
from afield.errors import AfieldError
from afield.perception.hands import Hand, Region
from afield.perception.moving_hands import (
    MOVES,
    PLACES,
    HandJudge,
    against_background,
    moving_hands,
    prolonged,
    regions_of_motion,
    steadied,
    telling_frames,
)

COUNT, WIDTH, HEIGHT, COMES = 24, 320, 240, 10
SHAKE = np.round(3 * np.sin(np.arange(COUNT)[:, None] * [0.9, 1.3])).astype(int)
"""Pixels by which the camera is off in every frame."""


def tip(frame: int) -> np.ndarray:
    """Where the drawn arm ends: it comes from the right border, 8 pixels a frame, and then rests."""
    return np.array([WIDTH - 8.0 * np.clip(frame - COMES, 0, 12), 120.0])


def frames_with_arm(arm: bool = True) -> np.ndarray:
    paper, sleeve = noise_picture(WIDTH + 20, HEIGHT + 20), noise_picture(WIDTH, 40, seed=1) // 2
    frames = []
    for index, (x, y) in enumerate(SHAKE + 10):
        frame = paper[y : y + HEIGHT, x : x + WIDTH].copy()
        left = int(tip(index)[0])
        if arm and left < WIDTH:
            frame[100:140, left:] = sleeve[:, : WIDTH - left]
        frame[0, :4] = index  # so that a judge knows which frame it is shown
        frames.append(frame)
    return np.stack(frames)


def hand_at(x: float, y: float, score: float = 0.9) -> Hand:
    """A hand of 40 pixels whose fingers point to the left."""
    fingers = [[(x - 4 - 8 * j, y + 4 * (f - 2)) for j in range(4)] for f in range(5)]
    points = np.array([(x + 10, y), *(p for finger in fingers for p in finger)], np.float32)
    return Hand(points, np.zeros(21, np.float32), score, 1.0)


class Judge:
    """Knows the hand at the arm's end, or takes a pattern of the paper for one."""

    def __init__(self, pattern: bool = False, detected: list[list[Hand]] | None = None) -> None:
        self.pattern, self.detected, self.asked = pattern, detected, 0

    def detect(self, frames: np.ndarray, *, progress: bool = True) -> list[list[Hand]]:
        return self.detected or [[] for _ in frames]

    def landmarks(self, frame: np.ndarray, region: Region) -> Hand | None:
        self.asked += 1
        index = int(frame[0, 0, 0])
        x, y = (100, 120) - SHAKE[index] if self.pattern else tip(index) + (30, 0)
        if self.pattern or (index > COMES + 2 and np.linalg.norm(region.center - (x, y)) < 25):
            return hand_at(float(x), float(y))
        return None


def test_what_moves_against_the_background_is_told_from_a_shaking_camera() -> None:
    motion = against_background(frames_with_arm())
    moving = motion[COMES + 8] > MOVES
    left = int(tip(COMES + 8)[0])
    assert moving[108:132, left + 8 : -8].mean() > 0.9
    moving[90:150, left - 20 :] = False
    assert moving.mean() < 0.01
    assert telling_frames(against_background(frames_with_arm(arm=False))) == []


def test_squares_lie_along_the_arm_away_from_the_border() -> None:
    index = COMES + 8
    regions = regions_of_motion(against_background(frames_with_arm())[index], (HEIGHT, WIDTH))
    centers = np.array([region.center for region in regions])
    assert np.linalg.norm(centers - tip(index) - (20, 0), axis=1).min() < 15
    assert centers[:, 0].max() < (tip(index)[0] + WIDTH) / 2 + 10 and np.ptp(centers[:, 1]) < 60
    assert min(abs(region.turn + np.pi / 2) for region in regions) < 0.2, "the arm comes from the right"
    inside = np.zeros((HEIGHT, WIDTH), np.float32)
    inside[80:160, 100:200] = 1.0  # something that moves but does not come from the border
    assert regions_of_motion(inside, (HEIGHT, WIDTH)) == []
    assert regions_of_motion(np.roll(inside, 120, axis=1), (HEIGHT, WIDTH))
    comb = np.zeros((HEIGHT, WIDTH), np.float32)
    comb[:, :6] = comb[np.arange(HEIGHT) % 12 < 6] = 1.0  # thin things that hang together and move all over the picture
    assert 0 < len(regions_of_motion(comb, (HEIGHT, WIDTH))) <= 15 * PLACES


def test_a_hand_is_followed_to_where_it_rests() -> None:
    found = moving_hands(frames_with_arm(), Judge(), progress=False)
    assert [len(hands) for hands in found] == [0] * (COMES + 3) + [1] * (COUNT - COMES - 3)
    assert found[-1][0].landmarks[0] == pytest.approx(tip(COUNT - 1) + (40, 0))


def test_a_pattern_that_stands_still_is_no_hand() -> None:
    judge = Judge(pattern=True)
    assert not any(moving_hands(frames_with_arm(), judge, progress=False)) and judge.asked > 0


def test_motion_is_asked_only_where_nothing_is_detected() -> None:
    judge = Judge()
    assert isinstance(judge, HandJudge)
    track = find_hands(frames_with_arm(), judge, progress=False)
    assert (track.state == 2).sum() == COUNT - COMES - 3 and judge.asked > 0
    known = [[hand_at(*(tip(i) + (30, 0)))] if COMES + 5 < i < COUNT - 4 else [] for i in range(COUNT)]
    lost = find_hands(frames_with_arm(), Judge(detected=known), progress=False)
    assert np.flatnonzero(lost.state == 2).tolist() == list(range(COMES + 3, COUNT)), "followed to where it is seen"
    np.testing.assert_allclose(lost.landmarks[-1], track.landmarks[-1])
    chain = {index: hands[0] for index, hands in enumerate(known) if hands}
    until = prolonged(frames_with_arm(), Judge(), chain, {*chain, COUNT - 3})
    assert sorted(until) == list(range(COMES + 3, COUNT - 3)), "another hand is known from there on"
    with pytest.raises(AfieldError, match="no hand was found"):
        find_hands(frames_with_arm(), Judge(pattern=True), progress=False)


class Jumpy:
    """Sees the hand 40 pixels aside where its square is turned clockwise."""

    def landmarks(self, frame: np.ndarray, region: Region) -> Hand | None:
        return hand_at(140.0 if region.turn > -np.pi / 2 + 0.1 else 100.0, 120.0)


def test_a_look_that_jumps_is_outvoted() -> None:
    steady = steadied(frames_with_arm()[0], Jumpy(), hand_at(140.0, 120.0, 0.6))
    assert np.allclose(steady.landmarks, hand_at(100.0, 120.0).landmarks) and steady.score == 0.6
