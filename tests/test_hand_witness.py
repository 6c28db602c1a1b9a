"""The hand as a witness of a joint: a hand on the edge of a door whose pictures never change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from afield.geometry import look_at
from afield.perception.cameras import CameraPath
from afield.perception.direct import Surface
from afield.perception.hand_witness import REACH, HandWitness
from afield.perception.joint_search import Joint, follow_joint, motions, score_joint

COUNT, FIRST, ARRIVED = 28, 2, 5
TWIST = np.array([0.0, 0, 1, 0, 0.2, 0])
"""Of a hinge: the vertical line through (-0.2, 0)."""
TURN = np.radians(50.0) * np.clip((np.arange(COUNT) - ARRIVED) / (COUNT - 1 - ARRIVED), 0, 1)
HELD = np.array([0.15, 0.0, 0.05])
"""The spot that is held, on the far edge of a door of 40 by 30 cm."""
AMOUNTS = np.radians(np.arange(-60.0, 61.0, 5.0))
MOMENTS = np.array([6, 10, 12, 16, 20, 24, 27])


def seen_from(points: np.ndarray, frame: int, path: CameraPath) -> np.ndarray:
    return path.camera(frame).project(torch.from_numpy(points).float())[0].numpy()


@pytest.fixture(scope="module")
def path() -> CameraPath:
    up = torch.tensor([0.0, 0.0, 1.0])
    eyes = [torch.tensor([0.2 * math.sin(i / 14), -0.8, 0.5]) for i in range(COUNT)]
    poses = torch.stack([look_at(eye, torch.zeros(3), up) for eye in eyes])
    return CameraPath(320, 240, 260.0, poses, torch.zeros(0, 3), torch.zeros(0), static=False, metric=True)


@pytest.fixture(scope="module")
def surface(path: CameraPath) -> Surface:
    """A door without any texture, seen in pictures without any change."""
    place = np.stack(np.meshgrid(np.linspace(-0.19, 0.19, 20), [0.0], np.linspace(-0.14, 0.14, 15)), -1).reshape(-1, 3)
    pixels = seen_from(place, FIRST, path)
    frames, hidden = np.full((COUNT, 240, 320, 3), 128, np.uint8), np.zeros((COUNT, 240, 320), bool)
    block = np.unique(pixels // 14, axis=0, return_inverse=True)[1].reshape(-1)
    normals = np.tile(np.array([0.0, -1.0, 0.0], np.float32), (len(place), 1))
    look = np.zeros((len(place), 3), np.float32)
    made = Surface(frames, path, hidden, pixels, place.astype(np.float32), normals, look, block, 1.0, 1.0)
    made.look = made.difference(FIRST, np.eye(4)[None])[0][0]
    return made


@pytest.fixture(scope="module")
def hand(path: CameraPath, surface: Surface) -> HandWitness:
    """It comes from the right, is 6 pixels beside what it holds, and goes with it; in one frame it is not seen."""
    middle = np.full((COUNT, 2), np.nan)
    for frame in range(FIRST + 1, COUNT):
        pose = motions(TWIST, np.array(-TURN[frame]))
        held = seen_from((pose[:3, :3] @ HELD + pose[:3, 3])[None], frame, path)[0]
        middle[frame] = held + [6.0 + 40.0 * max(0, ARRIVED - frame), 0.0]
    middle[12] = np.nan
    return HandWitness.of(path, middle, np.full(COUNT, 50.0), surface.points, FIRST + 1, int(MOMENTS[0]))


def test_what_may_be_held_is_near_the_hand_before_the_motion(path: CameraPath, hand: HandWitness) -> None:
    assert 10 < len(hand.spots) <= 40
    for spot in hand.spots:
        near = min(np.linalg.norm(seen_from(spot[None], frame, path)[0] - hand.middle[frame]) for frame in (3, 4, 5, 6))
        assert near <= REACH * 50.0 + 1e-3
    assert np.linalg.norm(hand.spots - HELD, axis=1).min() < 0.03


def test_agreement_is_that_of_each_spot_motion_and_frame_alone(path: CameraPath, hand: HandWitness) -> None:
    poses = motions(TWIST, AMOUNTS[::6])
    found = hand.agreement(9, poses)
    for i, spot in enumerate(hand.spots[::7]):
        for j, pose in enumerate(poses):
            off = np.linalg.norm(seen_from((pose[:3, :3] @ spot + pose[:3, 3])[None], 9, path)[0] - hand.middle[9])
            assert found[7 * i, j] == pytest.approx(max(0.0, 1 - (off / 25.0) ** 2), abs=1e-4)
    assert not hand.agreement(12, poses).any()
    total = hand.agreed(np.array([8, 9]), motions(TWIST, -TURN[[8, 9]]))
    alone = hand.agreement(8, motions(TWIST, -TURN[[8]])) + hand.agreement(9, motions(TWIST, -TURN[[9]]))
    assert np.allclose(total, alone[:, 0])
    assert total.max() > 1.8


def test_the_hand_tells_the_joint_where_pictures_do_not(surface: Surface, hand: HandWitness) -> None:
    blind, _, nothing = score_joint(surface, TWIST, MOMENTS, AMOUNTS)
    assert not blind.any() and nothing == 0.0
    found, _, score = score_joint(surface, TWIST, MOMENTS, AMOUNTS, hand)
    seen = MOMENTS != 12
    assert np.abs(np.degrees(found + TURN[MOMENTS]))[seen].max() < 6.0
    other = np.array([0.0, 0, 1, 0, -0.2, 0])  # a hinge at the other edge
    assert score_joint(surface, other, MOMENTS, AMOUNTS, hand)[2] < 0.8 * score


def test_a_part_without_texture_is_followed_by_the_hand(surface: Surface, hand: HandWitness) -> None:
    joint = Joint("hinge", TWIST, TWIST[:3], -TURN[MOMENTS])
    spot = hand.only(int(hand.agreed(MOMENTS, joint.motion(joint.amounts)).argmax()))
    every = np.arange(len(surface.points))
    followed = follow_joint(surface, joint, every, ARRIVED, COUNT, spot)
    assert np.abs(np.degrees(followed + TURN)).max() < 8.0
    assert np.abs(np.degrees(follow_joint(surface, joint, every, ARRIVED, COUNT) + TURN)).max() > 30.0


def test_a_hand_that_is_never_seen_is_no_witness(path: CameraPath, surface: Surface) -> None:
    absent = HandWitness.of(path, np.full((COUNT, 2), np.nan), np.zeros(COUNT), surface.points, 3, 6)
    assert len(absent.spots) == 0 and not absent.agreed(MOMENTS, motions(TWIST, -TURN[MOMENTS])).size
    with_it, without = (score_joint(surface, TWIST, MOMENTS, AMOUNTS, given) for given in (absent, None))
    assert (with_it[0] == without[0]).all() and with_it[2] == without[2]
