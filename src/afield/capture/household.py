"""What a hand moves in the demonstration videos: furniture with a joint, a laptop, a cup and a bottle, all built here.

Each thing stands on the table (z = 0) in the middle of the world and looks along -y. `amount` says how far it has moved: the
joint's position for furniture, the lid's angle for a laptop, and metres of height for what is lifted.
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from afield.capture.furniture import BODY, PART, Furniture, add_furniture, joint_motion
from afield.capture.furniture_model import Corner
from afield.capture.objects import TABLE_GROUP

MOVING = f"{BODY}_{PART}"
"""Name of the body that moves."""


@runtime_checkable
class Thing(Protocol):
    """Something that a hand can move."""

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height at rest, in metres."""
        ...

    def add(self, spec: mujoco.MjSpec) -> None:
        """Add it to a world; the body `MOVING` is what moves, and is a mocap body unless it hangs on a joint."""
        ...

    def motion(self, amount: float) -> Float[np.ndarray, "4 4"]:
        """Where the moving part is in the world, relative to `amount` 0."""
        ...


@dataclass(frozen=True)
class FurnitureThing:
    """A microwave, a cabinet or a drawer."""

    item: Furniture

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height at rest, in metres."""
        return self.item.width, self.item.depth, self.item.height

    def add(self, spec: mujoco.MjSpec) -> None:
        """Add it to a world."""
        add_furniture(spec, self.item)

    def motion(self, amount: float) -> Float[np.ndarray, "4 4"]:
        """As the joint moves."""
        return joint_motion(self.item, amount)


@dataclass(frozen=True)
class Laptop:
    """A keyboard with a lid that is hinged at the back; at `amount` 0 the lid stands upright, closing is positive."""

    width: float = 0.34
    depth: float = 0.24
    thick: float = 0.014
    color: tuple[float, float, float] = (0.62, 0.64, 0.68)
    seed: int = 0

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height with the open lid, in metres."""
        return self.width, self.depth, self.depth

    @property
    def hinge(self) -> Float[np.ndarray, "3"]:
        """A point on the hinge's axis, which runs along x."""
        return np.array([0.0, self.depth / 2, self.thick])

    def add(self, spec: mujoco.MjSpec) -> None:
        """Add it to a world."""
        x, y, t = self.width / 2, self.depth / 2, self.thick
        base, lid = spec.worldbody.add_body(name=BODY), spec.worldbody.add_body(name=MOVING, mocap=True)
        shell = speckled(spec, "laptop_shell", self.color, self.seed)
        keys = printed(spec, "laptop_keys", (0.15, 0.15, 0.17), self.seed + 1)
        screen = printed(spec, "laptop_screen", (0.25, 0.35, 0.55), self.seed + 2)
        box(base, (-x, -y, 0), (x, y, t), shell)
        box(base, (-0.9 * x, -0.2 * y, t), (0.9 * x, 0.8 * y, t + 0.002), keys)
        box(lid, (-x, y - 0.004, t), (x, y + 0.008, t + 2 * y), shell)
        box(lid, (-0.93 * x, y - 0.006, t + 0.016), (0.93 * x, y - 0.004, 1.94 * y), screen)

    def motion(self, amount: float) -> Float[np.ndarray, "4 4"]:
        """The lid turns about the hinge, towards -y."""
        motion = np.eye(4)
        motion[:3, :3] = Rotation.from_rotvec([amount, 0.0, 0.0]).as_matrix()
        motion[:3, 3] = self.hinge - motion[:3, :3] @ self.hinge
        return motion


@dataclass(frozen=True)
class Vessel:
    """A cup, or a bottle if it is high: it goes up, and a little towards the viewer."""

    radius: float = 0.038
    height: float = 0.10
    color: tuple[float, float, float] = (0.75, 0.35, 0.25)
    neck: bool = False
    """Bottles have one."""
    seed: int = 0

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height, in metres."""
        return 2 * self.radius, 2 * self.radius, self.height * (1.3 if self.neck else 1.0)

    def add(self, spec: mujoco.MjSpec) -> None:
        """Add it to a world."""
        body = spec.worldbody.add_body(name=MOVING, mocap=True)
        look = printed(spec, "vessel", self.color, self.seed, repeat=(3.0, 1.0))
        plain = speckled(spec, "vessel_plain", self.color, self.seed + 1)
        tube(body, self.radius, 0.0, self.height, look)
        tube(body, 0.92 * self.radius, self.height, self.height + 0.002, plain)
        if self.neck:
            tube(body, 0.4 * self.radius, self.height, 1.3 * self.height, plain)

    def motion(self, amount: float) -> Float[np.ndarray, "4 4"]:
        """Up by `amount`, and towards -y by a third of it."""
        motion = np.eye(4)
        motion[:3, 3] = [0.0, -amount / 3, amount]
        return motion


def box(body: mujoco.MjsBody, low: Corner, high: Corner, material: str) -> None:
    """A box between two corners."""
    a, b = np.array(low), np.array(high)
    geom = body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(b - a) / 2, pos=(a + b) / 2)
    geom.material, geom.group = material, TABLE_GROUP


def tube(body: mujoco.MjsBody, radius: float, low: float, high: float, material: str) -> None:
    """A standing cylinder."""
    geom = body.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[radius, (high - low) / 2, 0])
    geom.pos, geom.material, geom.group = [0, 0, (low + high) / 2], material, TABLE_GROUP


def speckled(spec: mujoco.MjSpec, name: str, color: tuple[float, float, float], seed: int) -> str:
    """A material with fine grain."""
    generator = np.random.default_rng(seed)
    grain = generator.normal(size=(16, 16)).repeat(8, 0).repeat(8, 1) * 0.05 + generator.normal(size=(128, 128)) * 0.05
    return paint(spec, name, np.array(color) * (1 + grain[..., None]), (6.0, 6.0), uniform=True)


def printed(
    spec: mujoco.MjSpec,
    name: str,
    color: tuple[float, float, float],
    seed: int,
    *,
    repeat: tuple[float, float] = (1.0, 1.0),
    marks: int = 60,
    size: int = 512,
) -> str:
    """A material with patches of many colours and sizes on a ground, like print, pictures or wallpaper."""
    generator = np.random.default_rng(seed)
    image = np.broadcast_to(np.array(color), (size, size, 3)) * (1 + 0.04 * generator.normal(size=(size, size, 1)))
    image = np.ascontiguousarray(image, np.float32)
    for _ in range(marks):
        extent = size * 0.02 * math.exp(generator.uniform(0, 2))
        sides = (2 * extent, 2 * extent * generator.uniform(0.2, 1.0))
        place = tuple(generator.uniform(0, size, 2))
        corners = cv2.boxPoints((place, sides, math.degrees(generator.uniform(0, math.pi))))
        tone = 0.55 * np.array(color) * generator.uniform(0.5, 1.6) + 0.45 * generator.uniform(0.05, 0.95, 3)
        cv2.fillConvexPoly(image, np.round(corners).astype(np.int32), tone.tolist())
    return paint(spec, name, image, repeat, uniform=False)


def paint(spec: mujoco.MjSpec, name: str, image: np.ndarray, repeat: tuple[float, float], *, uniform: bool) -> str:
    """A dull material from a picture with colours from 0 to 1."""
    pixels = np.clip(image * 255, 0, 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=width, height=height, nchannel=3)
    texture.data = pixels.tobytes()
    material = spec.add_material(name=name)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.specular, material.shininess = 0.0, 0.0
    material.texuniform, material.texrepeat = uniform, list(repeat)
    return name
