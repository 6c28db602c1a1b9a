"""Nine of the paper's thirteen tasks, each with several instances: what is moved, where to, and how a hand holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from afield.capture.furniture import Furniture, handle_box
from afield.capture.furniture_model import Corner
from afield.capture.household import FurnitureThing, Laptop, Thing, Vessel
from afield.capture.human_hand import CUP, GRIP, PUSH, HandShape, bend_hand
from afield.errors import AfieldError


@dataclass(frozen=True)
class HandTask:
    """One demonstration to be rendered."""

    name: str
    narration: str
    thing: Thing
    start: float
    """How far the thing has moved when the video begins, see `household`."""
    end: float
    shape: HandShape
    """Of the hand while it holds or pushes."""
    touch: Float[np.ndarray, "3"]
    """Where the hand holds the thing while `amount` is 0, in metres in the world."""
    anchor: Float[np.ndarray, "3"]
    """The point of the hand that goes there, in the hand's frame."""
    rotation: Float[np.ndarray, "3 3"]
    """Orientation of the hand in the world while `amount` is 0."""
    follow: float = 1.0
    """Share of the thing's rotation that the hand follows; the rest turns within the grip."""
    keep: bool = False
    """The video ends before the hand lets go, for what was lifted would fall."""

    def hand_pose(self, amount: float) -> Float[np.ndarray, "4 4"]:
        """`T_world_hand` while the hand is in contact."""
        motion = self.thing.motion(amount)
        turn = Rotation.from_rotvec(self.follow * Rotation.from_matrix(motion[:3, :3]).as_rotvec()).as_matrix()
        pose = np.eye(4)
        pose[:3, :3] = turn @ self.rotation
        pose[:3, 3] = motion[:3, :3] @ self.touch + motion[:3, 3] - pose[:3, :3] @ self.anchor
        return pose


def hand_rotation(fingers: Corner, palm: Corner) -> Float[np.ndarray, "3 3"]:
    """Orientation of the hand from where its fingers point and where its palm looks."""
    y = -np.array(fingers, float) / np.linalg.norm(fingers)
    x = -np.array(palm, float)
    x = x - (x @ y) * y
    x /= np.linalg.norm(x)
    return np.stack((x, y, np.cross(x, y)), axis=1)


def _furniture(kind: Any, seed: int) -> Furniture:
    generator = np.random.default_rng(1000 + seed)
    scale = generator.uniform(0.92, 1.1, 3)
    width, depth, height = {
        "microwave": (0.46, 0.30, 0.28),
        "cabinet": (0.32, 0.26, 0.38),
        "drawer": (0.40, 0.34, 0.18),
    }[kind]
    body, part = generator.uniform(0.35, 0.85, 3), generator.uniform(0.2, 0.7, 3)
    return Furniture(
        kind=kind,
        width=width * scale[0],
        depth=depth * scale[1],
        height=height * scale[2],
        hinge="left",
        handle="bar",
        body_color=(float(body[0]), float(body[1]), float(body[2])),
        part_color=(float(part[0]), float(part[1]), float(part[2])),
        seed=10 * seed,
    )


def _clear_of(front: float, task: HandTask, gap: float) -> HandTask:
    """The same task with the hand drawn back along -y until it stays `gap` metres before the plane y = `front` at rest."""
    pose = task.hand_pose(0.0)
    reach = float((bend_hand(task.shape).vertices @ pose[:3, :3].T + pose[:3, 3])[:, 1].max())
    shift = pose[:3, :3].T @ np.array([0.0, front - gap - reach, 0.0])
    return replace(task, anchor=task.anchor - shift)


FULL_TURN = math.radians(65.0)
ACROSS = np.array([-0.024, -0.046, 0.010])
"""In the hand's frame: the middle of a bar around which the fingers close."""
AROUND = np.array([-0.050, -0.054, 0.010])
"""In the hand's frame: the middle of something as thick as a cup."""


def _pull(kind: Any, seed: int) -> HandTask:
    item = _furniture(kind, seed)
    center, _ = handle_box(item)
    lying = kind == "drawer"
    rotation = (
        hand_rotation((-0.55, 0.8, -0.25), (-0.25, -0.2, -1))
        if lying
        else hand_rotation((-0.3, 0.95, 0), (-0.95, -0.3, 0))
    )
    end = 0.5 * item.depth if lying else FULL_TURN
    task = HandTask(
        f"open_{kind}", f"open the {kind}", FurnitureThing(item), 0.0, end, GRIP, center, ACROSS, rotation, 0.35
    )
    return _clear_of(-item.depth / 2 - item.wall, task, 0.004)


def _push(kind: Any, seed: int) -> HandTask:
    item = _furniture(kind, seed)
    center, _ = handle_box(item)
    front = -item.depth / 2 - item.wall
    spot = (
        np.array([center[0] - 0.06, front, center[2]])
        if kind != "drawer"
        else np.array([0.0, front, 0.8 * item.height])
    )
    pads = bend_hand(PUSH).pads[1:4].mean(axis=0)
    rotation = hand_rotation((-0.2, 0.93, -0.25), (-0.3, 0, -1))
    start = 0.5 * item.depth if kind == "drawer" else math.radians(50.0)
    task = HandTask(
        f"close_{kind}", f"close the {kind}", FurnitureThing(item), start, 0.0, PUSH, spot, pads, rotation, 0.5
    )
    return _clear_of(front, task, 0.0)


def _laptop(seed: int) -> HandTask:
    generator = np.random.default_rng(2000 + seed)
    color = generator.uniform(0.4, 0.8, 3)
    item = Laptop(
        width=0.34 * float(generator.uniform(0.92, 1.1)),
        color=(float(color[0]), float(color[1]), float(color[2])),
        seed=seed,
    )
    edge = np.array([0.25 * item.width, item.depth / 2 + 0.002, item.thick + item.depth])
    rotation = hand_rotation((-0.1, 0.97, 0.1), (0, 0.1, -1))
    anchor = np.array([-0.036, -0.052, 0.008])
    return HandTask(
        "close_laptop", "close the laptop lid", item, 0.0, math.radians(75.0), GRIP, edge, anchor, rotation, 0.5
    )


def _vessel(name: str, seed: int) -> HandTask:
    generator = np.random.default_rng(3000 + seed)
    bottle = name == "bottle"
    color = generator.uniform(0.3, 0.85, 3)
    item = Vessel(
        radius=0.034 if bottle else 0.041,
        height=float(generator.uniform(0.17, 0.2)) if bottle else float(generator.uniform(0.10, 0.12)),
        color=(float(color[0]), float(color[1]), float(color[2])),
        neck=bottle,
        seed=seed,
    )
    rotation = hand_rotation((-0.35, 0.94, 0), (-0.94, -0.35, 0))
    touch = np.array([0.0, 0.0, 0.6 * item.height])
    return HandTask(f"pick_{name}", f"pick up the {name}", item, 0.0, 0.16, CUP, touch, AROUND, rotation, keep=True)


TASKS: Mapping[str, Callable[[int], HandTask]] = {
    "open_microwave": lambda seed: _pull("microwave", seed),
    "close_microwave": lambda seed: _push("microwave", seed),
    "open_drawer": lambda seed: _pull("drawer", seed),
    "close_drawer": lambda seed: _push("drawer", seed),
    "open_cabinet": lambda seed: _pull("cabinet", seed),
    "close_cabinet": lambda seed: _push("cabinet", seed),
    "close_laptop": _laptop,
    "pick_cup": lambda seed: _vessel("cup", seed),
    "pick_bottle": lambda seed: _vessel("bottle", seed),
}
"""Name to a function of the seed, which chooses the instance."""


def task_by_name(name: str, seed: int = 0) -> HandTask:
    """An instance of a task.

    Raises:
        AfieldError: there is no such task.
    """
    if name not in TASKS:
        raise AfieldError(f"There is no demonstration task '{name}'; choose one of {', '.join(TASKS)}.")
    return TASKS[name](seed)
