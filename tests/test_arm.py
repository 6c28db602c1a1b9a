from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from afield.demonstration import demonstrate
from afield.errors import AfieldError
from afield.geometry import pose_from, rotation_about_axis, uniform_sphere
from afield.hand import Hand, hand_by_name
from afield.pipeline import transfer_and_rehearse, within_reach
from afield.pretrain import train_field
from afield.scene import FeatureSource, Plane, Scene
from afield.simulate.arm import ArmWithHand, read_arm
from afield.transfer import Stage, TransferConfig

DH = [  # theta offset, d, a, alpha: the maker's table for the UR10e
    (0.1807, 0.0, math.pi / 2), (0.0, -0.6127, 0.0), (0.0, -0.57155, 0.0),
    (0.17415, 0.0, math.pi / 2), (0.11985, 0.0, -math.pi / 2), (0.11655, 0.0, 0.0),
]  # fmt: skip


def _dh(theta: float, d: float, a: float, alpha: float) -> np.ndarray:
    c, s, ca, sa = math.cos(theta), math.sin(theta), math.cos(alpha), math.sin(alpha)
    return np.array([[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_by_name("shadow")


@pytest.fixture(scope="module")
def arm(hand: Hand) -> ArmWithHand:
    return ArmWithHand(read_arm("ur10e"), hand, 0.0)


def _above(hand: Hand, x: float, y: float, z: float, yaw: float = 0.0) -> torch.Tensor:
    """The palm looks along +x, the fingers point down: the forearm is upright."""
    normal, finger = hand.palm_normal, hand.finger_direction
    source = torch.stack((normal, finger, torch.linalg.cross(normal, finger)), dim=1)
    goal = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]).T
    turn = rotation_about_axis(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(yaw))
    return hand.join(pose_from(turn @ goal @ source.T, torch.tensor([x, y, z])), hand.neutral())


def test_the_ur10e_is_the_makers(arm: ArmWithHand) -> None:
    q = np.array([0.3, -1.1, 0.9, -0.4, 1.2, 0.5])
    expected = np.eye(4)
    for theta, row in zip(q, DH, strict=True):
        expected = expected @ _dh(theta, *row)
    data = mujoco.MjData(arm.model)
    data.qpos[arm.qpos] = q
    mujoco.mj_forward(arm.model, data)
    base = np.eye(4)
    base[:3, :3], base[:3, 3] = np.diag([-1.0, -1.0, 1.0]), [-0.75, 0, 0]
    site = arm.model.site("arm/flange").id
    assert np.allclose(data.site_xpos[site], (base @ expected)[:3, 3], atol=1e-6)
    assert np.allclose(data.site_xmat[site].reshape(3, 3), (base @ expected)[:3, :3], atol=1e-6)


@pytest.mark.parametrize("yaw", [0.0, 2.0, -1.5])
def test_the_joints_put_the_palm_where_it_was_asked_for(arm: ArmWithHand, hand: Hand, yaw: float) -> None:
    beta = _above(hand, 0.05, 0.1, 0.18, yaw)
    reach = arm.reach(beta)
    assert reach.reachable, reach.reason
    assert reach.clearance >= 0.015
    pose, joints = hand.split(beta)
    wanted = {"grasp": pose[:3, 3], "lift": pose[:3, 3] + torch.tensor([0.0, 0.0, 0.1])}
    wanted["pregrasp"] = pose[:3, 3] - 0.08 * pose[:3, :3] @ hand.palm_normal
    data = mujoco.MjData(arm.model)
    for name, position in wanted.items():
        data.qpos[arm.qpos], data.qpos[arm.hand_qpos] = reach.joints[name], joints.numpy()
        mujoco.mj_forward(arm.model, data)
        assert np.linalg.norm(data.body("hand/robot0:palm").xpos - position.numpy()) < 0.005
        assert np.allclose(data.body("hand/robot0:palm").xmat.reshape(3, 3), pose[:3, :3].numpy(), atol=0.04)


def test_what_is_too_far_away_is_out_of_reach(arm: ArmWithHand, hand: Hand) -> None:
    reach = arm.reach(_above(hand, 1.5, 0.0, 0.2))
    assert not reach.reachable
    assert reach.reason is not None
    assert "is missed by" in reach.reason
    assert "does not reach" in reach.sentence()


def test_a_forearm_below_the_table_is_out_of_reach(arm: ArmWithHand, hand: Hand) -> None:
    upright = _above(hand, 0.0, 0.0, 0.1)
    pose, joints = hand.split(upright)
    turn = rotation_about_axis(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(math.pi))
    assert not arm.reach(hand.join(pose_from(turn @ pose[:3, :3], pose[:3, 3]), joints)).reachable
    high = pose_from(turn @ pose[:3, :3], torch.tensor([0.0, 0.0, 0.65]))
    assert arm.reach(hand.join(high, joints)).reachable  # the same from below is possible where there is room


def test_a_higher_table_takes_away_what_was_within_reach(hand: Hand, arm: ArmWithHand) -> None:
    pose, joints = hand.split(_above(hand, 0.0, 0.0, 0.15))
    tilt = rotation_about_axis(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(math.radians(-80.0)))
    flat = hand.join(pose_from(tilt @ pose[:3, :3], pose[:3, 3]), joints)
    low = ArmWithHand(read_arm("ur10e"), hand, -0.3)
    assert low.reach(flat).reachable
    high = ArmWithHand(read_arm("ur10e"), hand, 0.14)
    assert not high.reach(flat).reachable


def test_unreachable_candidates_are_passed_over_but_not_lost(arm: ArmWithHand, hand: Hand) -> None:
    far, near = _above(hand, 2.0, 0.0, 0.2), _above(hand, 0.0, 0.0, 0.2)
    assert within_reach(arm, torch.stack((far, near, far, near))) == [1, 3]
    assert within_reach(arm, torch.stack((far, far))) == [0, 1]


def test_bases_and_descriptions(hand: Hand, tmp_path: Path) -> None:
    beta = _above(hand, 2.0, 0.3, 0.2)
    moved = read_arm("ur10e", (1.3, 0.3, 0.0, math.pi))
    assert moved.position == (1.3, 0.3, 0.0)
    assert ArmWithHand(moved, hand, 0.0).reach(beta).reachable
    with pytest.raises(AfieldError, match="panda, panda_menagerie, ur10e"):
        read_arm("ur99")
    (tmp_path / "arm.json").write_text(json.dumps({"name": "x", "file": "x.xml"}))
    with pytest.raises(AfieldError, match="incomplete"):
        read_arm(str(tmp_path / "arm.json"))
    with pytest.raises(AfieldError, match="neither a site nor a body"):
        ArmWithHand(replace(read_arm("ur10e"), flange="nothing"), hand, 0.0)


def test_a_transfer_with_an_arm_says_how_it_reaches(arm: ArmWithHand, hand: Hand) -> None:
    """The whole way: a demonstration, its repetition by the cheapest settings, and the joints of the arm for it."""
    ball = uniform_sphere(500)
    points = 0.035 * ball + torch.tensor([0.0, 0.0, 0.15])
    table, source = Plane(torch.tensor([0.0, 0.0, 1.0]), 0.0), FeatureSource("color", 1, 224, 0.3)
    scene = Scene(points, ball, torch.rand(500, 3, generator=torch.Generator().manual_seed(0)), ball, source, table)
    beta = _above(hand, -0.1, 0.0, 0.2)
    beta[:3] += points.mean(dim=0) - hand.place(hand.keypoints, beta).mean(dim=0) - torch.tensor([0.05, 0.0, 0.0])
    demonstration = demonstrate("ball", hand, beta, scene)
    stages = (Stage(4, 2, 32, 64, False), Stage(2, 2, 32, 64, False))
    config = TransferConfig(preset="faithful", stages=stages)  # no rehearsal
    model = train_field([scene], kind="dff", channels=3, progress=False)
    grasp = transfer_and_rehearse(demonstration, scene, model, hand, config, arm=arm, progress=False)
    assert grasp.provenance["reach"] == arm.reach(grasp.beta).to_json()
    assert grasp.provenance["reach"]["arm"] == "ur10e"
    assert grasp.provenance["rehearsal"] == []
    without = transfer_and_rehearse(demonstration, scene, model, hand, config, progress=False)
    assert "reach" not in without.provenance
