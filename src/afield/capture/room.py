"""A room with a table, four corner cameras, and objects that come to rest on the table under physics."""

# MuJoCo's stubs do not cover its compiled part.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np
import torch
from jaxtyping import UInt8

from afield.artifacts import read_json
from afield.capture.objects import TABLE_GROUP, PlacedObject, Stand, add_object, add_stand, add_texture, set_mass
from afield.errors import AfieldError
from afield.geometry import look_at
from afield.observation import Camera


@dataclass(frozen=True)
class RenderConfig:
    """Cameras, room and physics of a rendered capture."""

    width: int = 1280
    """Image width in pixels."""
    height: int = 720
    """Image height in pixels."""
    fov: float = 28.0
    """Vertical field of view in degrees; 28 shows a workspace of about 0.7 m."""
    camera_square: float = 1.0
    """Side of the square at whose corners the cameras hang, in meters."""
    camera_height: float = 1.0
    """Height of the cameras above the table, in meters."""
    look_height: float = 0.04
    """Height above the table center that the cameras look at, in meters."""
    table: str = "wood"
    """Table top: "wood" or "cloth"."""
    table_size: float = 1.8
    """Side of the square table top, in meters."""
    shadow_samples: int = 12
    """Lamp positions that are averaged into soft shadows."""
    lamp_radius: float = 0.25
    """Radius of the ceiling lamp in meters; larger lamps give softer shadows."""
    settle_time: float = 2.0
    """Seconds of physics before the pictures."""
    max_tilt: float = 8.0
    """Degrees by which an object may lean after settling; more counts as fallen over."""
    max_tilt_on_stand: float = 25.0
    """The same for a tool on a post, whose underside is seldom flat."""
    max_speed: float = 0.05
    """An object still faster than this after settling is not at rest, in meters or radians per second."""
    seed: int = 0
    """Seed of the table texture and of the lamp positions."""


MOST_MOVED = 0.05
"""An object that stands upright may rise or fall by so many metres while it comes to rest."""


@dataclass(frozen=True)
class Room:
    """Objects at rest on the table."""

    model: mujoco.MjModel
    data: mujoco.MjData
    names: list[str]
    """Body names, in the order of the objects."""
    stands: list[Stand]


def settle(objects: Sequence[PlacedObject], config: RenderConfig) -> Room:
    """Drop the objects by 2 mm onto the table and let them come to rest.

    Raises:
        AfieldError: an object fell over, left the table or does not come to rest, which the placement must avoid.
    """
    spec, names = _world(objects, config)
    stands = _stands(spec.compile(), objects, names)
    for stand in stands:
        add_stand(spec, stand, 0.0)
    model = spec.compile()
    for name, placed in zip(names, objects, strict=True):
        set_mass(model, name, float(read_json(placed.folder / "object.json")["mass"]))
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    heights = []
    for name, placed in zip(names, objects, strict=True):
        start = model.jnt_qposadr[model.joint(f"{name}_free").id]
        turn = placed.quat_wxyz or (math.cos(placed.yaw / 2), 0.0, 0.0, math.sin(placed.yaw / 2))
        data.qpos[start + 3 : start + 7] = turn
        heights.append(placed.stand + 0.002 - _lowest(model, name, turn))
        data.qpos[start : start + 3] = [*placed.position, heights[-1]]
    mujoco.mj_step(model, data, int(config.settle_time / model.opt.timestep))
    for _ in range(8):  # a tool that rocks on its post gets a little longer
        if float(np.abs(data.qvel).max()) < config.max_speed:
            break
        mujoco.mj_step(model, data, int(0.5 / model.opt.timestep))
    for name, placed, height in zip(names, objects, heights, strict=True):
        _check_rest(model, data, name, placed, height, config)
    return Room(model, data, names, stands)


def _stands(model: mujoco.MjModel, objects: Sequence[PlacedObject], names: Sequence[str]) -> list[Stand]:
    """A post under the center of mass of every object that asks for one."""
    found = []
    for name, placed in zip(names, objects, strict=True):
        if placed.stand > 0:
            x, y, _ = model.body(name).ipos
            cosine, sine = math.cos(placed.yaw), math.sin(placed.yaw)
            center = placed.position[0] + cosine * x - sine * y, placed.position[1] + sine * x + cosine * y
            found.append(Stand(center, placed.yaw, placed.stand))
    return found


def _lowest(model: mujoco.MjModel, name: str, quat_wxyz: Sequence[float]) -> float:
    """Height of an object's lowest collision vertex above its origin in some orientation, in meters."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, np.asarray(quat_wxyz, dtype=float))
    heights = []
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] == model.body(name).id and model.geom_contype[geom]:
            mesh = int(model.geom_dataid[geom])
            first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
            own = np.zeros(9)
            mujoco.mju_quat2Mat(own, model.geom_quat[geom])
            vertices = model.mesh_vert[first : first + count] @ own.reshape(3, 3).T + model.geom_pos[geom]
            heights.append(float((vertices @ rotation.reshape(3, 3)[2]).min()))
    return min(heights, default=0.0)


def _check_rest(
    model: mujoco.MjModel, data: mujoco.MjData, name: str, placed: PlacedObject, height: float, config: RenderConfig
) -> None:
    """Whether it lies still where it was put; `height` is where its origin was before it fell.

    Raises:
        AfieldError: it does not.
    """
    joint = model.joint(f"{name}_free")
    speed = float(np.abs(data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6]).max())
    position = data.body(name).xipos
    if position[2] < 0 or max(abs(position[0]), abs(position[1])) > config.table_size / 2 or speed > config.max_speed:
        raise AfieldError(
            f"The object '{name}' does not come to rest on the table; give it more room or another place."
        )
    tilt = math.degrees(math.acos(min(1.0, float(data.body(name).xmat[8]))))
    moved = abs(float(data.body(name).xpos[2]) - height)
    allowed = config.max_tilt if placed.stand == 0 else config.max_tilt_on_stand
    if placed.quat_wxyz is None and tilt > allowed:
        raise AfieldError(
            f"The object '{name}' leans by {tilt:.0f} degrees after settling (allowed: {allowed:g}); "
            "give it more room or another place."
        )
    if placed.quat_wxyz is None and moved > MOST_MOVED:
        raise AfieldError(
            f"The object '{name}' ends {100 * moved:.0f} cm above or below where it was put (allowed: {100 * MOST_MOVED:g}); "
            "give it more room or another place."
        )


def corner_cameras(config: RenderConfig) -> list[Camera]:
    """Four cameras at the corners of a square above the table, looking at its center (appendix B)."""
    focal = config.height / 2 / math.tan(math.radians(config.fov) / 2)
    half = config.camera_square / 2
    aim = torch.tensor([0.0, 0.0, config.look_height])
    return [
        Camera(
            width=config.width,
            height=config.height,
            fx=focal,
            fy=focal,
            cx=(config.width - 1) / 2,
            cy=(config.height - 1) / 2,
            T_world_camera=look_at(
                torch.tensor([x * half, y * half, config.camera_height]), aim, torch.tensor([0.0, 0.0, 1.0])
            ),
        )
        for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def _world(objects: Sequence[PlacedObject], config: RenderConfig) -> tuple[mujoco.MjSpec, list[str]]:
    """The room, the table, the cameras and the objects, the latter named after their folders."""
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.002
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.global_.offwidth, spec.visual.global_.offheight = config.width, config.height
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 4096, 8
    spec.visual.map.znear, spec.visual.map.zfar = 0.05, 10.0
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.30] * 3, [0.16] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.stat.extent, spec.stat.center = 1.0, [0, 0, 0]
    spec.worldbody.add_light(
        name="lamp",
        pos=[0.15, -0.1, 1.9],
        dir=[-0.08, 0.05, -1],
        diffuse=[0.5, 0.49, 0.47],
        specular=[0.06] * 3,
        cutoff=80,
        exponent=2,
        castshadow=True,
    )
    spec.worldbody.add_light(
        name="window",
        pos=[-1.5, 1.8, 1.6],
        dir=[0.6, -0.7, -0.6],
        diffuse=[0.17, 0.18, 0.2],
        specular=[0.0] * 3,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        castshadow=False,
    )
    assets: dict[str, bytes] = {}
    half = config.table_size / 2
    material = add_texture(spec, assets, "table", table_texture(config.table, config.seed))
    spec.assets = assets
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[half, half, 0.02],
        pos=[0, 0, -0.02],
        material=material,
        friction=[1.0, 0.005, 0.0001],
        condim=4,
        group=TABLE_GROUP,
    )
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[6, 6, 0.1],
        pos=[0, 0, -0.75],
        rgba=[0.55, 0.53, 0.5, 1],
        group=TABLE_GROUP,
    )
    names = _unique_names(objects)
    for name, placed in zip(names, objects, strict=True):
        add_object(spec, placed.folder, name)
    for index, camera in enumerate(corner_cameras(config)):
        _add_camera(spec, f"camera{index}", camera, config)
    return spec, names


def _unique_names(objects: Sequence[PlacedObject]) -> list[str]:
    names: list[str] = []
    for placed in objects:
        base = placed.folder.name
        count = sum(name == base or name.startswith(f"{base}_") for name in names)
        names.append(base if count == 0 else f"{base}_{count + 1}")
    return names


def _add_camera(spec: mujoco.MjSpec, name: str, camera: Camera, config: RenderConfig) -> None:
    # MuJoCo's cameras look along -z with y up (OpenGL), ours along +z with y down.
    rotation = camera.T_world_camera[:3, :3].double().numpy() @ np.diag([1.0, -1.0, -1.0])
    quat_wxyz = np.zeros(4)
    mujoco.mju_mat2Quat(quat_wxyz, rotation.ravel())
    spec.worldbody.add_camera(name=name, pos=camera.position.tolist(), quat=quat_wxyz, fovy=config.fov)


def table_texture(kind: str, seed: int, size: int = 1024) -> UInt8[np.ndarray, "size size 3"]:
    """A procedural table top: "wood" (planks with grain) or "cloth" (a plain weave with checks).

    The relief is kept soft: fine noise would make up most of the bytes of the pictures.
    """
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    if kind == "wood":
        planks = 9
        plank = np.minimum((x * planks).astype(int), planks - 1)
        tint = generator.uniform(0.88, 1.08, planks)[plank]
        phase = generator.uniform(0, 20, planks)[plank]
        noise = cv2.resize(
            generator.normal(size=(10, 60)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
        rings = np.sin(2 * math.pi * (x * planks * 4 + 0.6 * np.sin(2.2 * y * math.pi + phase) + 0.45 * noise))
        joint = 1 - 0.3 * np.exp(-((((x * planks) % 1 - 0.5) ** 2 - 0.25) ** 2) / 2e-5)
        color = np.array([176.0, 132.0, 90.0]) * (tint * joint * (1 + 0.055 * rings + 0.035 * noise))[..., None]
    elif kind == "cloth":
        checks = 0.5 + 0.25 * (np.sin(2 * math.pi * x * 14) > 0) + 0.25 * (np.sin(2 * math.pi * y * 14) > 0)
        soft = cv2.GaussianBlur(checks.astype(np.float32), (0, 0), 2)
        color = np.array([196.0, 202.0, 196.0]) * soft[..., None] + np.array([60.0, 88.0, 110.0]) * (
            1 - soft[..., None]
        )
    else:
        raise AfieldError(f"Unknown table top '{kind}'; valid are 'wood' and 'cloth'.")
    return np.clip(color, 0, 255).astype(np.uint8)
