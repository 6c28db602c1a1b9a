"""Furniture with a door or a drawer, built from plain boxes: articulated objects whose geometry and motion are known exactly.

Instances differ in size, in the side of the hinge, in the handle and in their looks, so that a skill learnt on one can be
tried on another. Nothing is downloaded, and nothing is owed to anybody.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from afield.capture.objects import TABLE_GROUP
from afield.geometry import look_at
from afield.observation import Camera, Observation, View

BODY, PART, JOINT, HANDLE = "furniture", "part", "joint", "handle"
"""Names in the MuJoCo model: what stands, what moves, along which joint, and what is taken hold of."""

Kind = Literal["microwave", "cabinet", "drawer"]
Color = tuple[float, float, float]
Corner = Sequence[float | int]


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
    """A standing bar (lying on a drawer), or a knob."""
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
    def travel(self) -> float:
        """How far the joint goes when it is opened in a demonstration: radians, or metres for a drawer."""
        return 0.6 * self.depth if self.kind == "drawer" else math.radians(75.0)

    @property
    def door_width(self) -> float:
        """A microwave leaves a quarter of its front to the buttons."""
        return self.width * (0.75 if self.kind == "microwave" else 1.0)

    @property
    def axis(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """A point on the joint's axis and the axis' direction; opening is positive. A drawer's point has no meaning."""
        front = -self.depth / 2
        if self.kind == "drawer":
            return np.array([0.0, front, self.height / 2]), np.array([0.0, -1.0, 0.0])
        left = -self.width / 2
        if self.hinge == "left":
            return np.array([left, front, 0.0]), np.array([0.0, 0.0, -1.0])
        return np.array([left + self.door_width, front, 0.0]), np.array([0.0, 0.0, 1.0])


def add_furniture(spec: mujoco.MjSpec, furniture: Furniture, name: str = BODY) -> mujoco.MjsBody:
    """Add an instance to a world: the body, and in it the moving part with its joint and handle."""
    item, wall = furniture, furniture.wall
    side = _speckles(spec, f"{name}_side", item.body_color, item.seed)
    front = _speckles(spec, f"{name}_front", item.part_color, item.seed + 1)
    grip = _speckles(spec, f"{name}_grip", item.handle_color, item.seed + 2)
    body = spec.worldbody.add_body(name=name)

    def box(where: mujoco.MjsBody, low: Corner, high: Corner, material: str, label: str) -> None:
        a, b = np.array(low), np.array(high)
        geom = where.add_geom(name=f"{name}_{label}", type=mujoco.mjtGeom.mjGEOM_BOX, size=(b - a) / 2, pos=(a + b) / 2)
        geom.material, geom.group, geom.mass = material, TABLE_GROUP, 0.15
        geom.friction = [1.0, 0.005, 0.0001]

    x, y, z = item.width / 2, item.depth / 2, item.height
    box(body, (-x, -y, 0), (x, y, wall), side, "floor")
    box(body, (-x, -y, z - wall), (x, y, z), side, "roof")
    box(body, (-x, -y, wall), (-x + wall, y, z - wall), side, "left")
    box(body, (x - wall, -y, wall), (x, y, z - wall), side, "right")
    box(body, (-x + wall, y - wall, wall), (x - wall, y, z - wall), side, "back")
    if item.kind == "microwave":
        box(body, (-x + item.door_width, -y - wall, 0), (x, -y, z), side, "panel")
        for row in range(3):
            low = 0.2 * z + row * 0.2 * z
            center = x - 0.125 * item.width
            box(
                body,
                (center - 0.015, -y - wall - 0.004, low),
                (center + 0.015, -y - wall, low + 0.1 * z),
                grip,
                f"key{row}",
            )
    point, axis = item.axis
    part = body.add_body(name=f"{name}_{PART}", pos=point)
    slide = item.kind == "drawer"
    joint = part.add_joint(
        name=f"{name}_{JOINT}",
        type=mujoco.mjtJoint.mjJNT_SLIDE if slide else mujoco.mjtJoint.mjJNT_HINGE,
        axis=axis,
        range=[0.0, 1.3 * item.travel],
    )
    joint.limited, joint.frictionloss, joint.armature = True, 1.0 if slide else 0.05, 0.01
    joint.damping[0] = 2.0 if slide else 0.05

    def local(*corner: float | int) -> tuple[float, ...]:
        return tuple(float(value) for value in np.array(corner) - point)

    right = -x + item.door_width
    box(part, local(-x, -y - wall, 0), local(right, -y, z), front, "door")
    if item.kind == "microwave":
        glass = _speckles(spec, f"{name}_glass", (0.08, 0.09, 0.11), item.seed + 3)
        margin = 0.16 * z
        box(
            part,
            local(-x + margin, -y - wall - 0.002, margin),
            local(right - 2 * margin, -y - wall, z - margin),
            glass,
            "window",
        )
    if slide:
        box(part, local(-x + 2 * wall, -y, wall), local(x - 2 * wall, y - 3 * wall, 2 * wall), front, "tray")
    center, half = handle_box(item)
    low, high = center - half, center + half
    box(part, local(*low), local(*high), grip, HANDLE)
    stem = 0.004 if item.handle == "bar" else 0.006
    along = int(np.argmax(half))
    for index, sign in enumerate((-1, 1) if item.handle == "bar" else (0,)):
        foot = center.copy()
        foot[along] += sign * 0.8 * half[along]
        box(
            part,
            local(foot[0] - stem, float(high[1]), foot[2] - stem),
            local(foot[0] + stem, -y - wall, foot[2] + stem),
            grip,
            f"stem{index}",
        )
    return body


def handle_box(item: Furniture) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Middle and half size of the handle at rest, in metres."""
    front = -item.depth / 2 - item.wall - 0.028
    if item.kind == "drawer":
        half = np.array([0.18 * item.width, 0.006, 0.006]) if item.handle == "bar" else np.array([0.011, 0.008, 0.011])
        return np.array([0.0, front, item.height / 2]), half
    right = -item.width / 2 + item.door_width
    edge = right - 0.03 if item.hinge == "left" else -item.width / 2 + 0.03
    half = np.array([0.006, 0.006, 0.28 * item.height]) if item.handle == "bar" else np.array([0.011, 0.008, 0.011])
    return np.array([edge, front, item.height / 2]), half


def joint_motion(item: Furniture, amount: float) -> Float[np.ndarray, "4 4"]:
    """How the part moves in the world when the joint is opened by `amount` (radians, metres for a drawer)."""
    point, axis = item.axis
    motion = np.eye(4)
    if item.kind == "drawer":
        motion[:3, 3] = amount * axis
        return motion
    turn = Rotation.from_rotvec(amount * axis).as_matrix()
    motion[:3, :3], motion[:3, 3] = turn, point - turn @ point
    return motion


def surface_points(item: Furniture, count: int, seed: int = 0) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, "n"]]:
    """Points evenly on the outer surface at rest, and which of them belong to the moving part."""
    spec = mujoco.MjSpec()
    add_furniture(spec, item)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    part = model.body(f"{BODY}_{PART}").id
    boxes = []
    for geom in range(model.ngeom):
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = data.geom_xmat[geom].reshape(3, 3), data.geom_xpos[geom]
        boxes.append(trimesh.creation.box(2 * model.geom_size[geom], place))
    points, owner = [], []
    generator = np.random.default_rng(seed)
    area = np.array([box.area for box in boxes])
    for index, box in enumerate(boxes):
        amount = max(1, round(3 * count * area[index] / area.sum()))
        found = trimesh.sample.sample_surface(box, amount, seed=int(generator.integers(1 << 30)))[0]
        points.append(np.asarray(found))
        owner.append(np.full(len(points[-1]), index))
    place, mine = np.concatenate(points), np.concatenate(owner)
    hidden = np.zeros(len(place), dtype=bool)
    for index in range(len(boxes)):
        local = (place - data.geom_xpos[index]) @ data.geom_xmat[index].reshape(3, 3)
        inside = np.all(np.abs(local) < model.geom_size[index] + 1e-4, axis=1)
        hidden |= inside & (mine != index)
    # The hollow behind the door, and the faces that door and frame turn to each other.
    low = np.array([-item.width / 2 + 1e-3, -item.depth / 2 - 1e-4, 1e-3])
    high = np.array([item.width / 2 - 1e-3, item.depth / 2 - 1e-3, item.height - 1e-3])
    hidden |= np.all((place > low) & (place < high), axis=1)
    keep = np.flatnonzero(~hidden)
    keep = generator.permutation(keep)[:count]
    moves = np.array([int(model.geom_bodyid[index]) == part for index in range(len(boxes))])
    return torch.from_numpy(place[keep]).float(), torch.from_numpy(moves[mine[keep]])


def ring_cameras(
    item: Furniture, count: int, resolution: int, *, distance: float = 3.0, elevation: float = 25.0
) -> list[Camera]:
    """Cameras evenly around an instance, every other one higher; `distance` is in half diagonals."""
    half = math.sqrt(item.width**2 + item.depth**2 + item.height**2) / 2
    middle = torch.tensor([0.0, 0.0, item.height / 2])
    focal = 0.5 * resolution * distance / 1.15
    cameras = []
    for index in range(count):
        turn = 2 * math.pi * index / count - math.pi / 2
        lift = math.radians(elevation + (18.0 if index % 2 else -12.0))
        away = torch.tensor([math.cos(turn) * math.cos(lift), math.sin(turn) * math.cos(lift), math.sin(lift)])
        pose = look_at(middle + distance * half * away, middle, torch.tensor([0.0, 0.0, 1.0]))
        center = (resolution - 1) / 2
        cameras.append(Camera(resolution, resolution, focal, focal, center, center, pose))
    return cameras


def photograph_furniture(
    item: Furniture, cameras: list[Camera], *, opened: float = 0.0, name: str = "furniture"
) -> tuple[Observation, list[Bool[np.ndarray, "h w"]]]:
    """Pictures with depth and masks of an instance on a table, and where its handle is seen.

    Args:
        item: what is shown.
        cameras: all of one size.
        opened: position of the joint.
        name: of the observation.
    """
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth, spec.visual.global_.offheight = cameras[0].width, cameras[0].height
    spec.visual.map.znear = 0.02
    # Lamps stay where they are: a light that moves with the camera would change the colours from view to view.
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse, spec.visual.headlight.specular = (
        [0.5] * 3,
        [0.0] * 3,
        [0.0] * 3,
    )
    for index, (place, power) in enumerate((((0.5, -0.9, 1.8), 0.45), ((-1.2, 0.8, 1.4), 0.25))):
        lamp = spec.worldbody.add_light(name=f"lamp{index}", pos=place, dir=[-x for x in place], diffuse=[power] * 3)
        lamp.castshadow, lamp.specular = False, [0.0] * 3
    wood = _speckles(spec, "table", (0.62, 0.48, 0.34), 7)
    table = spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.8, 0.8, 0.02], pos=[0, 0, -0.02]
    )
    table.material, table.group = wood, TABLE_GROUP
    add_furniture(spec, item)
    for index, camera in enumerate(cameras):
        _add_camera(spec, camera, f"camera{index}")
    model = spec.compile()
    data = mujoco.MjData(model)
    data.joint(f"{BODY}_{JOINT}").qpos[0] = opened
    mujoco.mj_forward(model, data)
    own = {model.body(BODY).id, model.body(f"{BODY}_{PART}").id}
    handle = {model.geom(f"{BODY}_{HANDLE}").id}
    views, handles = [], []
    with mujoco.Renderer(model, cameras[0].height, cameras[0].width) as renderer:
        for index, camera in enumerate(cameras):
            renderer.update_scene(data, f"camera{index}")
            color = renderer.render().copy()
            renderer.enable_depth_rendering()
            depth = renderer.render().copy()
            renderer.disable_depth_rendering()
            renderer.enable_segmentation_rendering()
            geoms = renderer.render()[..., 0].copy()
            renderer.disable_segmentation_rendering()
            bodies = np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], -1)
            depth = np.where((geoms >= 0) & (depth < 20.0), depth, 0.0).astype(np.float32)
            views.append(View(f"camera{index}", camera, color, depth, np.isin(bodies, list(own))))
            handles.append(np.isin(geoms, list(handle)))
    return Observation(tuple(views), name=name), handles


def _add_camera(spec: mujoco.MjSpec, camera: Camera, name: str) -> None:
    """MuJoCo's cameras look along -z with y up."""
    rotation = camera.T_world_camera[:3, :3].double() @ torch.diag(torch.tensor([1.0, -1.0, -1.0])).double()
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, rotation.numpy().flatten())
    found = spec.worldbody.add_camera(name=name, pos=camera.position.double().numpy(), quat=quat)
    found.fovy = math.degrees(2 * math.atan(camera.height / 2 / camera.fy))


def _speckles(spec: mujoco.MjSpec, name: str, color: Color, seed: int) -> str:
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
