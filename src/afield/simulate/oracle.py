"""The trajectory of one who knows the furniture: what a decoded trajectory is measured against, and what physics is judged by."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.capture.furniture import Furniture, PlacedFurniture, handle_box, joint_motion
from afield.capture.furniture_model import LID
from afield.errors import AfieldError

Task = Literal["open", "close"]
OPEN = 0.08
"""Distance of the fingers before the grasp, in metres: as wide as the Panda's."""


def ideal_trajectory(
    placed: PlacedFurniture, task: Task = "open", *, back_off: float = 0.10, steps: int = 8
) -> tuple[Float[Tensor, "n 4 4"], Float[Tensor, "n"], tuple[str, ...]]:
    """Take hold of the handle and move it as the joint does; or push the part shut with closed fingers.

    Args:
        placed: the instance and where its joint is at first.
        task: "open" pulls the handle through the whole demonstrated travel, "close" pushes down to zero.
        back_off: the pregrasp is this far behind the grasp, in metres.
        steps: waypoints of the motion.

    Returns:
        Poses T_world_gripper (+z approaches, fingers close along y), distances of the fingers in metres, labels.
    """
    item = placed.item
    if task == "close" and item.kind == "oven":
        raise AfieldError("An oven's door is closed from below, where no gripper fits; its ideal trajectory opens.")
    grasp = _handle_grasp(item) if task == "open" else _push(item)
    end = item.travel if task == "open" else 0.0
    back = grasp.copy()
    back[:3, 3] -= back_off * grasp[:3, 2]
    start = joint_motion(item, placed.opened)
    poses, labels = [start @ back, start @ grasp], ["pregrasp", "grasp"]
    for share in np.arange(1, steps + 1) / steps:
        poses.append(joint_motion(item, placed.opened + share * (end - placed.opened)) @ grasp)
        labels.append("move")
    opening = [OPEN, *[0.0] * (steps + 1)] if task == "open" else [0.0] * (steps + 2)
    world = torch.from_numpy(placed.T_world_furniture @ np.stack(poses)).float()
    return world, torch.tensor(opening), tuple(labels)


def _handle_grasp(item: Furniture) -> Float[np.ndarray, "4 4"]:
    """The fingers close across the handle at rest; the gripper comes from the front, tilted down where the table is near."""
    center, half = handle_box(item)
    lying = half[0] > half[2] or item.kind in ("drawer", "oven")
    # An oven's door turns the gripper upwards while it opens, so it begins looking down. The hand is 21 cm long in the
    # direction in which it closes, and begins 4 cm behind the point between the finger tips.
    room, tilt = 0.02, math.radians({"oven": 35.0, "drawer": 0.0}.get(item.kind, 15.0))
    while lying and center[2] + 0.037 * math.sin(tilt) - 0.105 * math.cos(tilt) < room and tilt < math.radians(60.0):
        tilt += math.radians(5.0)
    approach = np.array([0.0, math.cos(tilt), -math.sin(tilt)])
    closing = np.array([0.0, math.sin(tilt), math.cos(tilt)]) if lying else np.array([1.0, 0.0, 0.0])
    return _pose(center, approach, closing)


def _push(item: Furniture) -> Float[np.ndarray, "4 4"]:
    """The closed finger tips touch the outside of the part at rest, clear of the handle."""
    tip = 0.009  # the fingers reach this far beyond the point between them
    center, half = handle_box(item)
    if item.kind == "laptop":
        point = np.array([0.0, -0.3 * item.depth, item.height + LID + tip])
        return _pose(point, np.array([0.0, 0.0, -1.0]), np.array([1.0, 0.0, 0.0]))
    front = -item.depth / 2 - item.wall
    if item.slides:
        return _pose(
            np.array([0.0, center[1] - half[1] - tip, center[2]]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
        )
    hinge = item.axis[0][0]
    x = hinge + 0.6 * (center[0] - hinge)
    return _pose(np.array([x, front - tip - 0.003, center[2]]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))


def _pose(
    origin: Float[np.ndarray, "3"], approach: Float[np.ndarray, "3"], closing: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3] = np.stack((np.cross(closing, approach), closing, approach), axis=1)
    pose[:3, 3] = origin
    return pose
