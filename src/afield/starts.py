"""Where the search begins: hand configurations near the parts of the target scene that matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afield.demonstration import Demonstration
from afield.geometry import pose_from, rigid_registration, rotation_about_axis
from afield.hand import Hand
from afield.scene import Scene


@dataclass(frozen=True)
class StartConfig:
    """How the first hand configurations are drawn."""

    carried: float = 0.2
    """Share of starts that are the demonstration carried along by the alignment of the two objects, where there is one."""
    matched: float = 0.3
    """Share of starts that carry the demonstration along with points of its region that look alike in the target scene."""
    like_demonstration: float = 0.35
    """Share of starts that are the demonstration turned about the vertical; the rest look at the scene from anywhere above."""
    tilt: float = math.radians(30.0)
    """Largest random tilt of every start, in radians."""
    shift: float = 0.01
    """Standard deviation of the places of carried starts along each axis, in metres."""
    joint_noise: float = 0.1
    """Standard deviation of the joint angles around the demonstrated ones, in radians."""
    random_joints: bool = False
    """Draw joint angles uniformly within their limits, as the paper does."""


def sample_starts(
    demonstration: Demonstration,
    shown: Scene,
    scene: Scene,
    hand: Hand,
    count: int,
    config: StartConfig,
    generator: torch.Generator,
    carried: Float[Tensor, "d"] | None = None,
) -> Float[Tensor, "count d"]:
    """Draw hand configurations that hold points of the target scene as the demonstration held its region.

    Carried starts vary the hand that was carried along with the object as a whole. Matched starts do so as well:
    three points of the region and three that look like them fix a motion. Every other start puts the centre of the
    demonstrated region, seen from the hand, on a random point of `scene`. The hand is turned like the demonstration plus a
    random yaw, or its palm looks at the point from a random direction above, with a random roll.

    Args:
        demonstration: the demonstration to repeat.
        shown: its scene with the features that are compared.
        scene: target points to start from, with such features; after the relevance gate these are the promising ones.
        hand: the hand.
        count: number of starts.
        config: see `StartConfig`.
        generator: a CPU generator, so that every device draws the same starts.
        carried: the demonstrated hand on the target's corresponding part, where it is known.

    Returns:
        Hand configurations in the target scene's world frame, on the device of `scene`.
    """
    pose, joints = hand.split(demonstration.beta.cpu())
    region = demonstration.scene.points[demonstration.region(hand)].cpu()
    held_hand = (region.mean(dim=0) - pose[:3, 3]) @ pose[:3, :3]

    motion = torch.zeros(0, 4, 4)
    if config.matched > 0:
        held = replace(demonstration, scene=shown).region(hand)  # fields may have dropped points
        motion = matched_motions(shown, held, scene, round(count * config.matched), generator)
    moved = 0 if carried is None else round(count * config.carried)
    free = count - len(motion) - moved
    like = min(free, round(count * config.like_demonstration))
    up = torch.tensor([0.0, 0.0, 1.0])
    yaw = (torch.rand(like, generator=generator) + torch.arange(like)) * (2 * math.pi / max(like, 1))
    turned = rotation_about_axis(up.expand(like, 3), yaw) @ pose[:3, :3]
    there, open_joints = hand.split(demonstration.beta.cpu() if carried is None else carried.cpu())
    rotation = torch.cat((there[:3, :3].expand(moved, 3, 3), turned, palm_towards(hand, free - like, generator)))
    axis = torch.nn.functional.normalize(torch.randn(moved + free, 3, generator=generator), dim=-1)
    rotation = rotation_about_axis(axis, config.tilt * torch.rand(moved + free, generator=generator)) @ rotation

    anchor = scene.points.cpu()[torch.randint(len(scene.points), (free,), generator=generator)]
    if moved:
        spot = there[:3, :3] @ held_hand + there[:3, 3]
        anchor = torch.cat((spot + config.shift * torch.randn(moved, 3, generator=generator), anchor))
    translation = anchor - (rotation @ held_hand)
    rotation = torch.cat((motion[:, :3, :3] @ pose[:3, :3], rotation))
    translation = torch.cat(((motion @ pose)[:, :3, 3], translation))
    limits = hand.limits.cpu()
    if config.random_joints:
        angles = limits[:, 0] + (limits[:, 1] - limits[:, 0]) * torch.rand(count, len(limits), generator=generator)
    else:
        angles = joints.repeat(count, 1)
        angles[len(motion) : len(motion) + moved] = open_joints
        angles = angles + config.joint_noise * torch.randn(count, len(limits), generator=generator)
    angles = angles.clamp(limits[:, 0], limits[:, 1])
    return hand.join(pose_from(rotation, translation).to(scene.points), angles.to(scene.points))


def palm_towards(hand: Hand, count: int, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Rotations whose palm looks down along random directions of the upper half sphere, with a random roll."""
    view = torch.randn(count, 3, generator=generator)
    view[:, 2] = -view[:, 2].abs()
    view = torch.nn.functional.normalize(view, dim=-1)
    side = torch.randn(count, 3, generator=generator)
    side = torch.nn.functional.normalize(side - (side * view).sum(dim=-1, keepdim=True) * view, dim=-1)
    normal, finger = hand.palm_normal.cpu(), hand.finger_direction.cpu()
    if float(torch.linalg.cross(normal, finger).norm()) < 1e-3:  # a gripper looks along its fingers
        finger = torch.eye(3)[int(normal.abs().argmin())].to(normal)
    finger = torch.nn.functional.normalize(finger - (finger @ normal) * normal, dim=0)
    hand_axes = torch.stack((normal, finger, torch.linalg.cross(normal, finger)), dim=-1)
    world_axes = torch.stack((view, side, torch.linalg.cross(view, side)), dim=-1)
    return world_axes @ hand_axes.T


def matched_motions(
    shown: Scene,
    region: Bool[Tensor, "n"],
    scene: Scene,
    count: int,
    generator: torch.Generator,
    *,
    hypotheses: int = 2000,
    best: int = 8,
) -> Float[Tensor, "k 4 4"]:
    """Rigid motions that carry the demonstrated region onto points of the target scene that look alike.

    Three points of the region are drawn, each with one of its most similar target points; triangles whose sides differ by
    more than a third are dropped, the others fix a motion. Motions that bring many points of the region close to similar
    target points come first.

    Args:
        shown: the demonstrated scene.
        region: which of its points the hand held.
        scene: the target scene, with features of the same space.
        count: how many motions are wanted.
        generator: a CPU generator.
        hypotheses: how many triangles are drawn.
        best: a region point may be matched to this many most similar target points.

    Returns:
        At most `count` motions, fewer where few triangles fit; on the CPU.
    """
    near = region.nonzero()[:, 0].cpu()
    near = near[torch.randperm(len(near), generator=generator)[:96]]
    points, features = shown.points.cpu()[near], shown.features.cpu()[near]
    goal, goal_features = scene.points.cpu(), scene.features.cpu()
    similar = features @ goal_features.T
    candidates = similar.topk(min(best, len(goal)), dim=-1).indices
    corner = torch.randint(len(near), (hypotheses, 3), generator=generator)
    pick = torch.randint(candidates.shape[1], (hypotheses, 3), generator=generator)
    first, second = points[corner], goal[candidates[corner, pick]]
    sides = [(t - t.roll(1, dims=1)).norm(dim=-1) for t in (first, second)]
    fits = (sides[0].amin(dim=-1) > 0.012) & ((sides[0] - sides[1]).abs() < sides[0] / 3).all(dim=-1)
    first, second = first[fits], second[fits]
    if len(first) == 0:
        return torch.zeros(0, 4, 4)
    rotation, translation = rigid_registration(first, second)
    moved = points @ rotation.transpose(-1, -2) + translation[:, None]
    distance, nearest = torch.cdist(moved, goal.expand(len(moved), -1, -1)).min(dim=-1)
    score = ((similar[torch.arange(len(near)), nearest]) * (-distance / 0.01).exp()).mean(dim=-1)
    order = score.argsort(descending=True)[:count]
    return pose_from(rotation[order], translation[order])
