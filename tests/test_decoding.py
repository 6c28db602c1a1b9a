import math

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation

from afield.benchmark.fit_bench import true_flow
from afield.capture.furniture import Furniture, handle_box, joint_motion
from afield.decoding import (
    PUBLISHED,
    DecodeConfig,
    compose,
    decode_trajectory,
    joint_from_motions,
    push_direction,
    push_pose,
    relative_motions,
)
from afield.errors import AfieldError
from afield.geometry import pose_from, rotation_angle, transform_points

KINDS = ("microwave", "cabinet", "drawer")


def handle(item: Furniture) -> torch.Tensor:
    return torch.from_numpy(handle_box(item)[0]).float()


def true_poses(item: Furniture, grasp: torch.Tensor, count: int = 8) -> torch.Tensor:
    share = [item.travel * (k + 1) / count for k in range(count)]
    return torch.stack([torch.from_numpy(joint_motion(item, amount)).float() @ grasp for amount in share])


def grasp_at(item: Furniture) -> torch.Tensor:
    """A hand before the furniture that looks along +y."""
    return pose_from(torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), handle(item))


def errors(found: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Degrees and metres."""
    turned = rotation_angle(found[:, :3, :3], truth[:, :3, :3])
    return math.degrees(float(turned.max())), float((found - truth)[:, :3, 3].norm(dim=-1).max())


@pytest.mark.parametrize("hinge", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_known_joint_is_reproduced_beside_a_body_that_stands_still(kind, hinge):
    item = Furniture(kind=kind, hinge=hinge)
    flow, grasp = true_flow(item, 500, 0), grasp_at(item)
    noise = 0.005 * torch.randn(flow.displacement.shape, generator=torch.Generator().manual_seed(1))
    motions = relative_motions(flow.start, flow.displacement + noise, flow.visible, handle(item))
    trajectory = decode_trajectory(grasp, 0.012, motions)
    moved = trajectory.poses[[label == "move" for label in trajectory.labels]]
    degrees, metres = errors(moved, true_poses(item, grasp))
    assert degrees < 2.0 and metres < 0.01


def test_published_weights_alone_are_spoilt_by_the_body():
    item = Furniture()
    flow, grasp = true_flow(item, 500, 0), grasp_at(item)
    motions = relative_motions(flow.start, flow.displacement, flow.visible, handle(item), PUBLISHED)
    assert errors(compose(grasp, motions), true_poses(item, grasp))[0] > 30.0
    with_part = flow.displacement[:, -1].norm(dim=-1) > 1e-4
    alone = [tensor[with_part] for tensor in (flow.start, flow.displacement, flow.visible)]
    motions = relative_motions(*alone, handle(item), PUBLISHED)
    assert errors(compose(grasp, motions), true_poses(item, grasp)) < (0.1, 1e-3)


def test_a_third_of_the_tracks_may_be_wrong():
    item = Furniture(kind="cabinet")
    flow, grasp = true_flow(item, 500, 0), grasp_at(item)
    generator = torch.Generator().manual_seed(2)
    wrong = torch.rand(500, generator=generator) < 0.33
    drift = 0.1 * torch.randn(500, 1, 3, generator=generator) * torch.linspace(0, 1, 32)[:, None]
    displacement = torch.where(wrong[:, None, None], drift, flow.displacement)
    motions = relative_motions(flow.start, displacement, flow.visible, handle(item))
    degrees, metres = errors(compose(grasp, motions), true_poses(item, grasp))
    assert degrees < 0.5 and metres < 0.003


def test_what_is_no_joint_stays_free():
    """A cup that is lifted, carried and tilted."""
    generator = torch.Generator().manual_seed(3)
    start = 0.05 * torch.randn(200, 3, generator=generator)
    share = torch.linspace(1 / 32, 1, 32)
    turn = roma.rotvec_to_rotmat(share[:, None] * torch.tensor([1.2, 0.0, 0.0]))
    path = torch.stack((0.3 * share, 0.05 * share**2, 0.2 * (math.pi * share).sin()), dim=-1)
    truth = pose_from(turn, path)
    displacement = (transform_points(truth, start.expand(32, -1, -1)) - start).transpose(0, 1)
    motions = relative_motions(start, displacement, torch.ones(200, 32), torch.zeros(3))
    found = compose(torch.eye(4), motions)
    assert errors(found, truth[3::4]) < (0.1, 1e-3)


def test_decoding_follows_a_turned_world():
    item = Furniture()
    flow = true_flow(item, 300, 0)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix()).float()
    there = pose_from(turn, torch.tensor([0.4, -0.2, 0.7]))
    motions = relative_motions(flow.start, flow.displacement, flow.visible, handle(item))
    turned = relative_motions(
        transform_points(there, flow.start),
        flow.displacement @ turn.T,
        flow.visible,
        transform_points(there, handle(item)[None])[0],
    )
    assert torch.allclose(turned @ there, there @ motions, atol=1e-3)


def test_unseen_tracks_do_not_count():
    item = Furniture(kind="drawer")
    flow = true_flow(item, 300, 0)
    moves = flow.displacement[:, -1].norm(dim=-1) > 1e-4
    hidden = moves & (torch.arange(300) % 2 == 0)
    displacement = torch.where(hidden[:, None, None], torch.tensor([0.0, 0.0, 0.3]), flow.displacement)
    visible = torch.where(hidden[:, None], 0.0, flow.visible)
    config = DecodeConfig(tolerance=0.0, joint="none")
    motions = relative_motions(flow.start, displacement, visible, handle(item), config)
    assert errors(compose(torch.eye(4), motions), true_poses(item, torch.eye(4))) < (0.1, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_joint_is_told_by_its_axis(kind):
    item = Furniture(kind=kind, hinge="right")
    flow = true_flow(item, 400, 0)
    joint = joint_from_motions(relative_motions(flow.start, flow.displacement, flow.visible, handle(item)))
    point, axis = (torch.from_numpy(value).float() for value in item.axis)
    assert joint.kind == ("prismatic" if kind == "drawer" else "revolute")
    assert float(joint.axis @ axis) > 0.9999
    assert float(joint.amount[-1]) == pytest.approx(item.travel, rel=0.01)
    if kind != "drawer":
        assert float(torch.linalg.cross(joint.point - point, axis).norm()) < 2e-3 and abs(joint.pitch) < 1e-3
    truth = np.stack([joint_motion(item, float(amount)) for amount in joint.amount])
    assert torch.allclose(joint.motions(), torch.from_numpy(truth).float(), atol=2e-3)


def test_the_phases_of_grasp_and_push():
    item = Furniture()
    motions = torch.eye(4).repeat(8, 1, 1)
    trajectory = decode_trajectory(grasp_at(item), 0.012, motions)
    assert trajectory.labels == ("pregrasp", "approach", "grasp", *["move"] * 8, "release", "retreat")
    assert trajectory.opening.tolist() == pytest.approx([0.032, 0.032, *[0.0] * 9, 0.032, 0.032])
    away = trajectory.poses[1, :3, 3] - trajectory.poses[0, :3, 3]
    assert torch.allclose(away, 0.1 * trajectory.poses[0, :3, 2])
    normal = torch.tensor([0.0, -1.0, 0.0])
    pushed = decode_trajectory(push_pose(handle(item), -normal), 0.0, motions, DecodeConfig(mode="push"))
    assert pushed.labels == ("pregrasp", "approach", *["move"] * 8, "retreat")
    assert float(pushed.opening.max()) == 0.0
    assert torch.allclose(pushed.poses[0, :3, 3], handle(item) + 0.1 * normal)
    assert torch.allclose(torch.linalg.det(pushed.poses[:, :3, :3]), torch.ones(11))
    tips = push_pose(handle(item), -normal, tip=0.009)
    assert torch.allclose(tips[:3, 3] + 0.009 * tips[:3, 2], handle(item)), "the tips touch, not what lies between them"
    down = push_pose(torch.zeros(3), torch.tensor([0.0, 0.0, -1.0]))
    assert torch.allclose(down[:3, 2], torch.tensor([0.0, 0.0, -1.0])) and bool(torch.isfinite(down).all())


def test_a_part_is_pushed_the_way_it_goes():
    item = Furniture("laptop")
    open_lid, close = (torch.from_numpy(joint_motion(item, angle)).float() for angle in (1.2, -0.1))
    edge = (open_lid @ torch.cat((handle(item), torch.ones(1))))[:3]
    way = push_direction(edge, close[None])
    assert float(way @ torch.tensor([0.0, -1.0, 0.0])) > 0.8 and float(way[2]) < 0.0, "forwards and down"
    hinge = torch.from_numpy(item.axis[0]).float()
    assert abs(float(way @ (edge - hinge) / (edge - hinge).norm())) < 0.06, "across the lid"


def test_what_cannot_be_decoded_is_refused():
    item = Furniture()
    flow, grip = true_flow(item, 300, 0), handle(item)
    with pytest.raises(AfieldError, match="tracks of the flow are visible"):
        relative_motions(flow.start, flow.displacement, 0 * flow.visible, grip)
    with pytest.raises(AfieldError, match="at least 1 mm"):
        relative_motions(flow.start, 0 * flow.displacement, flow.visible, grip)
    with pytest.raises(AfieldError, match="32 steps cannot be divided into 64"):
        relative_motions(flow.start, flow.displacement, flow.visible, grip, DecodeConfig(waypoints=64))
    gone = flow.visible.clone()
    gone[:, 20:] = 0.0
    with pytest.raises(AfieldError, match="fewer than three moving tracks"):
        relative_motions(flow.start, flow.displacement, gone, grip)
    with pytest.raises(AfieldError, match=r"opens 8\.0 cm, but 12\.0 cm"):
        decode_trajectory(torch.eye(4), 0.12, torch.eye(4).repeat(8, 1, 1))
