"""How a hand comes, closes and lifts: derived from the grasp and the observed points alone, never from true geometry."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from afield.hand import Hand, HandPoints


def closing_step(
    hand: Hand,
    beta: Float[Tensor, "d"],
    scene_points: Float[Tensor, "n 3"],
    depth: float,
    *,
    reach: float = 0.04,
    damping: float = 0.02,
) -> Float[Tensor, "j"]:
    """Joint angles that press the fingers `depth` metres towards what the hand holds; negative depth opens them.

    Every finger point moves towards the middle of the scene points near the hand, by damped least squares on the joints
    with the palm standing still.

    Args:
        hand: the hand.
        beta: the grasp.
        scene_points: observed points, metres, world.
        depth: how far to move, in metres.
        reach: scene points this close to the hand, in metres, are what it holds.
        damping: of the least squares, in metres per radian.

    Returns:
        The new joint angles, within their limits.
    """
    points = finger_points(hand)
    beta = beta.to(scene_points)
    placed = hand.place(points, beta)
    near = torch.cdist(scene_points, placed).amin(dim=-1) < reach
    middle = scene_points[near].mean(dim=0) if bool(near.any()) else hand.place(palm_point(hand), beta)[0]
    direction = torch.nn.functional.normalize(middle - placed, dim=-1)

    def place_joints(joints: Float[Tensor, "j"]) -> Float[Tensor, "q 3"]:
        return hand.place(points, torch.cat((beta[:9], joints)))

    joints = beta[9:]
    jacobian = torch.func.jacfwd(place_joints)(joints).reshape(-1, len(joints))  # few joints, many coordinates
    wanted = (depth * direction).reshape(-1)
    system = jacobian.T @ jacobian + damping**2 * len(points.link) * torch.eye(len(joints)).to(jacobian)
    step = torch.linalg.solve(system, jacobian.T @ wanted)
    limits = hand.limits.to(joints)
    return (joints + step).clamp(limits[:, 0], limits[:, 1])


def pregrasp_and_lift(
    hand: Hand, pose: Float[Tensor, "4 4"], back_off: float, lift: float
) -> tuple[Float[Tensor, "4 4"], Float[Tensor, "4 4"]]:
    """Where the palm is before and after it holds: some metres back along its normal, and straight up."""
    back, up = pose.clone(), pose.clone()
    back[:3, 3] -= back_off * (pose[:3, :3] @ hand.palm_normal.to(pose))
    up[2, 3] += lift
    return back, up


def finger_points(hand: Hand) -> HandPoints:
    """The keypoints on fingers, those that can press; where no fingers are named, all but those of the base."""
    named = {body for bodies in hand.description.fingers.values() for body in bodies}
    named = named or set(hand.link_names) - {hand.description.base}
    fingers = {hand.link_names.index(body) for body in named}
    chosen = [i for i, link in enumerate(hand.keypoints.link.tolist()) if link in fingers]
    index = torch.tensor(chosen, dtype=torch.long, device=hand.keypoints.link.device)
    keypoints = hand.keypoints
    return HandPoints(keypoints.link[index], keypoints.points_link[index], keypoints.normals_link[index])


def palm_point(hand: Hand) -> HandPoints:
    """A point 5 cm in front of the palm."""
    base = torch.tensor([hand.link_names.index(hand.description.base)], device=hand.palm_center.device)
    return HandPoints(base, (hand.palm_center + 0.05 * hand.palm_normal)[None], hand.palm_normal[None])
