"""Where the search begins: hand configurations near the parts of the target scene that matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from afield.demonstration import Demonstration
from afield.geometry import pose_from, rotation_about_axis
from afield.hand import Hand
from afield.scene import Scene


@dataclass(frozen=True)
class StartConfig:
    """How the first hand configurations are drawn."""

    like_demonstration: float = 0.5
    """Share of starts that are the demonstration turned about the vertical; the rest look at the scene from anywhere above."""
    tilt: float = math.radians(30.0)
    """Largest random tilt of every start, in radians."""
    joint_noise: float = 0.1
    """Standard deviation of the joint angles around the demonstrated ones, in radians."""
    random_joints: bool = False
    """Draw joint angles uniformly within their limits, as the paper does."""


def sample_starts(
    demonstration: Demonstration,
    scene: Scene,
    hand: Hand,
    count: int,
    config: StartConfig,
    generator: torch.Generator,
) -> Float[Tensor, "count d"]:
    """Draw hand configurations that hold points of the target scene as the demonstration held its region.

    Every start puts the centre of the demonstrated region, seen from the hand, on a random point of `scene`. The hand is
    turned like the demonstration plus a random yaw, or its palm looks at the point from a random direction above, with a
    random roll.

    Args:
        demonstration: the demonstration to repeat.
        scene: target points to start from; after the relevance gate these are the promising ones.
        hand: the hand.
        count: number of starts.
        config: see `StartConfig`.
        generator: a CPU generator, so that every device draws the same starts.

    Returns:
        Hand configurations in the target scene's world frame, on the device of `scene`.
    """
    pose, joints = hand.split(demonstration.beta.cpu())
    region = demonstration.scene.points[demonstration.region(hand)].cpu()
    held_hand = (region.mean(dim=0) - pose[:3, 3]) @ pose[:3, :3]

    like = round(count * config.like_demonstration)
    up = torch.tensor([0.0, 0.0, 1.0])
    yaw = (torch.rand(like, generator=generator) + torch.arange(like)) * (2 * math.pi / max(like, 1))
    turned = rotation_about_axis(up.expand(like, 3), yaw) @ pose[:3, :3]
    rotation = torch.cat((turned, palm_towards(hand, count - like, generator)))
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    rotation = rotation_about_axis(axis, config.tilt * torch.rand(count, generator=generator)) @ rotation

    anchor = scene.points.cpu()[torch.randint(len(scene.points), (count,), generator=generator)]
    translation = anchor - (rotation @ held_hand)
    limits = hand.limits.cpu()
    if config.random_joints:
        angles = limits[:, 0] + (limits[:, 1] - limits[:, 0]) * torch.rand(count, len(limits), generator=generator)
    else:
        angles = joints + config.joint_noise * torch.randn(count, len(limits), generator=generator)
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
