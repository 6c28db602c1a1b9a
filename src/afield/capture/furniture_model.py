"""Furniture with a door, a drawer or a lid, built from plain boxes: articulated objects of known geometry and motion.

Instances differ in size, in the side of the hinge, in the handle and in their looks, so that a skill learnt on one can be
tried on another. Nothing is downloaded, and nothing is owed to anybody. Pictures of them are taken by `furniture.py`.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from afield.capture.objects import TABLE_GROUP
from afield.errors import AfieldError

BODY, PART, JOINT, HANDLE = "furniture", "part", "joint", "handle"
"""Names in the MuJoCo model: what stands, what moves, along which joint, and what is taken hold of."""

LID = 0.008
"""Thickness of a laptop's lid, in metres."""

Kind = Literal["microwave", "cabinet", "drawer", "oven", "laptop"]
Color = tuple[float, float, float]
Corner = Sequence[float | int] | Float[np.ndarray, "3"]


@dataclass(frozen=True)
class Furniture:
    """One instance. It stands on the table (z = 0) in the middle of the world and looks along -y."""

    kind: Kind = "microwave"
    width: float = 0.30
    """Along x, in metres."""
    depth: float = 0.22
    """Along y, in metres."""
    height: float = 0.18
    """Along z, in metres."""
    hinge: Literal["left", "right"] = "left"
    """Seen from the front; a drawer has none."""
    handle: Literal["bar", "knob"] = "bar"
    """A standing bar (lying on a drawer or an oven), or a knob. A laptop has the edge of its lid."""
    handle_length: float = 0.28
    """Half length of a bar, as a share of the height (of the width where it lies)."""
    handle_thickness: float = 0.012
    """Of a bar, in metres."""
    handle_reach: float = 0.028
    """From the front to the middle of the handle, in metres."""
    body_color: Color = (0.80, 0.80, 0.82)
    part_color: Color = (0.25, 0.26, 0.29)
    handle_color: Color = (0.85, 0.83, 0.78)
    seed: int = 0
    """Of the speckles on its sides."""

    @property
    def wall(self) -> float:
        """Thickness of the walls, in metres."""
        return 0.012

    @property
    def slides(self) -> bool:
        """Whether the joint is a slide, and not a hinge."""
        return self.kind == "drawer"

    @property
    def travel(self) -> float:
        """How far the joint goes when it is opened in a demonstration: radians, or metres for a drawer."""
        degrees = {"oven": 50.0, "laptop": 100.0}.get(self.kind, 75.0)
        return 0.6 * self.depth if self.slides else math.radians(degrees)

    @property
    def door_width(self) -> float:
        """A microwave leaves a quarter of its front to the buttons."""
        return self.width * (0.75 if self.kind == "microwave" else 1.0)

    @property
    def plinth(self) -> float:
        """Height of the fixed strip below an oven's door, in metres, without which the open door would hit the table."""
        return 0.05 if self.kind == "oven" else 0.0

    @property
    def axis(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """A point on the joint's axis and the axis' direction; opening is positive. A drawer's point has no meaning."""
        front = -self.depth / 2
        if self.slides:
            return np.array([0.0, front, self.height / 2]), np.array([0.0, -1.0, 0.0])
        if self.kind == "oven":
            return np.array([0.0, front, self.plinth]), np.array([1.0, 0.0, 0.0])
        if self.kind == "laptop":
            return np.array([0.0, self.depth / 2, self.height]), np.array([-1.0, 0.0, 0.0])
        left = -self.width / 2
        if self.hinge == "left":
            return np.array([left, front, 0.0]), np.array([0.0, 0.0, -1.0])
        return np.array([left + self.door_width, front, 0.0]), np.array([0.0, 0.0, 1.0])

    @classmethod
    def random(cls, kind: str, seed: int = 0) -> Furniture:
        """An instance whose proportions, colours, handle and hinge are drawn; a robot on the table can reach all of it."""
        known: Kind | None = next((name for name in _SIZES if name == kind), None)
        if known is None:
            raise AfieldError(f"There is no furniture of kind '{kind}'; choose {', '.join(_SIZES)}.")
        generator = np.random.default_rng([seed, list(_SIZES).index(known)])
        width, depth, height = (round(float(generator.uniform(*limits)), 3) for limits in _SIZES[known])
        body, part, grip = (_COLORS[int(index)] for index in generator.choice(len(_COLORS), 3, replace=False))
        return cls(
            known,
            width,
            depth,
            height,
            "left" if generator.random() < 0.5 else "right",
            "bar" if generator.random() < 0.7 else "knob",
            round(float(generator.uniform(0.16, 0.32)), 3),
            round(float(generator.uniform(0.009, 0.016)), 4),
            round(float(generator.uniform(0.026, 0.036)), 4),
            body,
            part,
            grip,
            int(generator.integers(1 << 16)),
        )


_SIZES: dict[Kind, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "microwave": ((0.28, 0.40), (0.20, 0.28), (0.17, 0.25)),
    "cabinet": ((0.22, 0.32), (0.18, 0.26), (0.24, 0.36)),
    "drawer": ((0.26, 0.40), (0.22, 0.30), (0.15, 0.22)),
    "oven": ((0.30, 0.40), (0.22, 0.28), (0.26, 0.34)),
    "laptop": ((0.26, 0.36), (0.19, 0.25), (0.018, 0.026)),
}
"""Limits of width, depth and height in metres."""
_COLORS: tuple[Color, ...] = (
    (0.80, 0.80, 0.82), (0.25, 0.26, 0.29), (0.85, 0.83, 0.78), (0.55, 0.36, 0.22), (0.74, 0.60, 0.42),
    (0.62, 0.18, 0.16), (0.20, 0.34, 0.52), (0.28, 0.44, 0.33), (0.86, 0.72, 0.35), (0.50, 0.52, 0.56),
)  # fmt: skip


@dataclass(frozen=True)
class PlacedFurniture:
    """An instance on a table: what a capture remembers, and what physics rebuilds."""

    item: Furniture
    x: float = 0.0
    """Of its middle in the world, in metres."""
    y: float = 0.0
    """Of its middle in the world, in metres."""
    yaw: float = 0.0
    """About the vertical, in radians; at 0 it looks along -y."""
    opened: float = 0.0
    """Position of its joint at first: radians, or metres for a drawer."""

    @property
    def T_world_furniture(self) -> Float[np.ndarray, "4 4"]:
        """Its pose; the table's surface is z = 0."""
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("z", self.yaw).as_matrix()
        pose[:2, 3] = self.x, self.y
        return pose

    def extra(self) -> dict[str, Any]:
        """The entry `furniture` of `Observation.extra`."""
        return {**asdict(self.item), "x": self.x, "y": self.y, "yaw": self.yaw, "opened": self.opened}


def add_furniture(spec: mujoco.MjSpec, furniture: Furniture | PlacedFurniture, name: str = BODY) -> mujoco.MjsBody:
    """Add an instance to a world: the body, and in it the moving part with its joint and handle.

    The joint resists as in a kitchen: 5 N in a drawer, 1 Nm (about 4 N at the handle) in a door, 0.3 Nm in a lid.
    """
    placed = furniture if isinstance(furniture, PlacedFurniture) else PlacedFurniture(furniture)
    item, half = placed.item, placed.yaw / 2
    turn = [math.cos(half), 0.0, 0.0, math.sin(half)]
    body = spec.worldbody.add_body(name=name, pos=[placed.x, placed.y, 0.0], quat=turn)
    grip = add_material(spec, f"{name}_grip", item.handle_color, item.seed + 2)
    _add_frame(spec, body, item, name, grip)
    point, axis = item.axis
    part = body.add_body(name=f"{name}_{PART}", pos=point)
    # Door and frame touch without pressing; MuJoCo would let them rub, because a fixed parent does not count as one.
    spec.add_exclude(bodyname1=body.name, bodyname2=part.name)
    # A spec counts angles in degrees unless told otherwise.
    unit = 180.0 / math.pi if spec.compiler.degree and not item.slides else 1.0
    joint = part.add_joint(
        name=f"{name}_{JOINT}",
        type=mujoco.mjtJoint.mjJNT_SLIDE if item.slides else mujoco.mjtJoint.mjJNT_HINGE,
        axis=axis,
        range=[0.0, 1.3 * item.travel * unit],
    )
    joint.limited, joint.armature = True, 0.01
    joint.frictionloss = {"drawer": 5.0, "laptop": 0.3}.get(item.kind, 1.0)
    joint.damping[0] = 5.0 if item.slides else 0.2
    _add_part(spec, part, item, name, grip)
    return body


def _add_frame(spec: mujoco.MjSpec, body: mujoco.MjsBody, item: Furniture, name: str, grip: str) -> None:
    """What stands still."""
    side = add_material(spec, f"{name}_side", item.body_color, item.seed)
    x, y, z, wall = item.width / 2, item.depth / 2, item.height, item.wall
    if item.kind == "laptop":
        _box(body, (-x, -y, 0), (x, y, z), side, f"{name}_floor")
        keys = add_material(spec, f"{name}_keys", (0.12, 0.12, 0.13), item.seed + 3)
        _box(body, (-0.85 * x, -0.1 * y, z), (0.85 * x, 0.8 * y, z + 0.001), keys, f"{name}_keys")
        return
    _box(body, (-x, -y, 0), (x, y, wall), side, f"{name}_floor")
    _box(body, (-x, -y, z - wall), (x, y, z), side, f"{name}_roof")
    _box(body, (-x, -y, wall), (-x + wall, y, z - wall), side, f"{name}_left")
    _box(body, (x - wall, -y, wall), (x, y, z - wall), side, f"{name}_right")
    _box(body, (-x + wall, y - wall, wall), (x - wall, y, z - wall), side, f"{name}_back")
    if item.kind == "oven":
        _box(body, (-x, -y - wall, 0), (x, -y, item.plinth), side, f"{name}_plinth")
    if item.kind == "microwave":
        _box(body, (-x + item.door_width, -y - wall, 0), (x, -y, z), side, f"{name}_panel")
        center = x - 0.125 * item.width
        for row in range(3):
            low, high = 0.2 * z + row * 0.2 * z, 0.3 * z + row * 0.2 * z
            first, last = (center - 0.015, -y - wall - 0.004, low), (center + 0.015, -y - wall, high)
            _box(body, first, last, grip, f"{name}_key{row}")


def _add_part(spec: mujoco.MjSpec, part: mujoco.MjsBody, item: Furniture, name: str, grip: str) -> None:
    """What moves; the part's frame lies at the joint."""
    front = add_material(spec, f"{name}_front", item.part_color, item.seed + 1)
    x, y, z, wall = item.width / 2, item.depth / 2, item.height, item.wall
    point, right = item.axis[0], -x + item.door_width

    def box(low: Corner, high: Corner, material: str, label: str) -> None:
        """A box of the part by its corners in the furniture's frame."""
        _box(part, np.array(low) - point, np.array(high) - point, material, f"{name}_{label}")

    center, half = handle_box(item)
    if item.kind == "laptop":
        box((-x, -y, z), (x, y, z + LID), front, "door")
        box(center - half, center + half, grip, HANDLE)
        return
    # A real door hangs a little above the floor; one that touches the table would rub on it.
    box((-x, -y - wall, max(item.plinth, 0.003)), (right, -y, z), front, "door")
    if item.kind in ("microwave", "oven"):
        glass = add_material(spec, f"{name}_glass", (0.08, 0.09, 0.11), item.seed + 3)
        margin = 0.16 * z
        top = z - (1.4 * margin if item.kind == "oven" else margin)
        side = -x + margin, right - (1.0 if item.kind == "oven" else 2.0) * margin
        box((side[0], -y - wall - 0.002, item.plinth + margin), (side[1], -y - wall, top), glass, "window")
    if item.slides:
        box((-x + 2 * wall, -y, wall), (x - 2 * wall, y - 3 * wall, 2 * wall), front, "tray")
    box(center - half, center + half, grip, HANDLE)
    stem = 0.004 if item.handle == "bar" else 0.006
    along = int(np.argmax(half))
    for index, sign in enumerate((-1, 1) if item.handle == "bar" else (0,)):
        foot = center.copy()
        foot[along] += sign * 0.8 * half[along]
        low = (foot[0] - stem, center[1] + half[1], foot[2] - stem)
        box(low, (foot[0] + stem, -y - wall, foot[2] + stem), grip, f"stem{index}")


def _box(where: mujoco.MjsBody, low: Corner, high: Corner, material: str, name: str) -> None:
    a, b = np.array(low, dtype=float), np.array(high, dtype=float)
    geom = where.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=(b - a) / 2, pos=(a + b) / 2)
    geom.material, geom.group, geom.mass = material, TABLE_GROUP, 0.15
    geom.friction = [1.0, 0.005, 0.0001]


def handle_box(item: Furniture) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Middle and half size of the handle at rest, in metres."""
    if item.kind == "laptop":
        return np.array([0.0, -item.depth / 2 - 0.002, item.height + LID / 2]), np.array(
            [0.15 * item.width, 0.002, 0.003]
        )
    front, thin = -item.depth / 2 - item.wall - item.handle_reach, item.handle_thickness / 2
    knob = np.array([0.011, 0.008, 0.011])
    if item.kind in ("drawer", "oven"):
        height = item.height / 2 if item.slides else item.height - 0.035
        lying = np.array([item.handle_length * item.width, thin, thin])
        return np.array([0.0, front, height]), lying if item.handle == "bar" else knob
    right = -item.width / 2 + item.door_width
    edge = right - 0.03 if item.hinge == "left" else -item.width / 2 + 0.03
    standing = np.array([thin, thin, item.handle_length * item.height])
    return np.array([edge, front, item.height / 2]), standing if item.handle == "bar" else knob


def joint_motion(item: Furniture, amount: float) -> Float[np.ndarray, "4 4"]:
    """How the part moves in the world when the joint is opened by `amount` (radians, metres for a drawer)."""
    point, axis = item.axis
    motion = np.eye(4)
    if item.slides:
        motion[:3, 3] = amount * axis
        return motion
    turn = Rotation.from_rotvec(amount * axis).as_matrix()
    motion[:3, :3], motion[:3, 3] = turn, point - turn @ point
    return motion


def add_material(spec: mujoco.MjSpec, name: str, color: Color, seed: int) -> str:
    """A material with fine grain and a few soft patches, so that pictures of it have something to hold on to."""
    generator = np.random.default_rng(seed)
    size = 128
    rough = generator.normal(size=(8, 8))
    patches = np.kron(rough, np.ones((size // 8, size // 8)))
    for axis in (0, 1):
        patches = sum(np.roll(patches, shift, axis) for shift in range(-8, 9)) / 17
    grain = 0.35 * patches + 0.12 * generator.normal(size=(size, size))
    image = np.clip((np.array(color) * (1.0 + 0.5 * grain[..., None])) * 255, 0, 255).astype(np.uint8)
    texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=size, height=size, nchannel=3)
    texture.data = image.tobytes()
    material = spec.add_material(name=name)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.specular, material.shininess = 0.0, 0.0
    material.texuniform, material.texrepeat = True, [8.0, 8.0]
    return name
