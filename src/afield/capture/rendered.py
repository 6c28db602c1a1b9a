"""Rendered captures: sample objects settle on a table under physics, and four cameras take their pictures.

The ground truth goes into `Observation.extra["simulation"]`, from where the grasp test rebuilds the same world.
"""

# MuJoCo's stubs do not cover its compiled part.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    # MuJoCo picks its OpenGL when it is first imported, and without this it looks for a screen.
    os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from afield.artifacts import read_json
from afield.capture.images import read_color
from afield.errors import AfieldError
from afield.geometry import look_at
from afield.observation import Camera, Observation, View

TABLE_GROUP = 2
"""Geoms of the room and the visual meshes; the renderer shows this group."""
COLLISION_GROUP = 3
"""Convex pieces: felt by physics, hidden from the cameras."""


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
    seed: int = 0
    """Seed of the table texture and of the lamp positions."""


@dataclass(frozen=True)
class PlacedObject:
    """A sample object and where it is put down."""

    folder: Path
    """Folder with `object.json`."""
    position: tuple[float, float] = (0.0, 0.0)
    """World x and y of the object's origin, in meters."""
    yaw: float = 0.0
    """Turn about the vertical, in radians."""


def add_object(spec: mujoco.MjSpec, folder: Path, name: str) -> mujoco.MjsBody:
    """Add a sample object as a free body: textured visual mesh and convex collision pieces with its mass and friction.

    Args:
        spec: the world to add it to.
        folder: object folder with `object.json`.
        name: name of the new body; prefix of its geoms and assets, so it must be new in `spec`.

    Returns:
        The body; its frame is the object frame (z up, origin at the center of the bottom).

    Raises:
        AfieldError: a file of the object is missing or damaged.
    """
    description = read_json(Path(folder) / "object.json")
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=f"{name}_free")
    assets = dict(spec.assets)
    material = None
    try:
        if description.get("texture"):
            texture = read_color(Path(folder) / description["texture"])
            material = _add_texture(spec, assets, f"{name}_texture", texture)
        visual = f"{name}_visual.obj"
        assets[visual] = (Path(folder) / description["visual"]).read_bytes()
        spec.add_mesh(name=visual, file=visual, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        geom = body.add_geom(
            name=visual, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=visual, contype=0, conaffinity=0, mass=0
        )
        geom.group = TABLE_GROUP
        if material:
            geom.material = material
        pieces = [(Path(folder) / piece).read_bytes() for piece in description["collision"]]
    except OSError as error:
        raise AfieldError(
            f"The object {folder} is incomplete: {error.strerror or error} ({error.filename})."
        ) from error
    except KeyError as error:
        raise AfieldError(f"{Path(folder) / 'object.json'} lacks the key {error}.") from error
    for index, piece in enumerate(pieces):
        file = f"{name}_collision_{index:02d}.obj"
        assets[file] = piece
        spec.add_mesh(name=file, file=file)
        geom = body.add_geom(name=file, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=file)
        geom.group, geom.density, geom.condim = COLLISION_GROUP, 400.0, 4
        geom.friction = [float(description["friction"]), 0.005, 0.0001]
    spec.assets = assets
    return body


def settle(objects: Sequence[PlacedObject], config: RenderConfig) -> tuple[mujoco.MjModel, mujoco.MjData, list[str]]:
    """Drop the objects by 2 mm onto the table and let them come to rest.

    Returns:
        The compiled world, its state at rest, and the body names in the order of `objects`.

    Raises:
        AfieldError: an object fell over or left the table, which the placement must avoid.
    """
    spec, names = _world(objects, config)
    model = spec.compile()
    for name, placed in zip(names, objects, strict=True):
        _set_mass(model, name, float(read_json(placed.folder / "object.json")["mass"]))
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    for name, placed in zip(names, objects, strict=True):
        start = model.jnt_qposadr[model.joint(f"{name}_free").id]
        data.qpos[start : start + 3] = [*placed.position, 0.002]
        data.qpos[start + 3 : start + 7] = [math.cos(placed.yaw / 2), 0, 0, math.sin(placed.yaw / 2)]
    for _ in range(int(config.settle_time / model.opt.timestep)):
        mujoco.mj_step(model, data)
    for name in names:
        rotation = data.body(name).xmat.reshape(3, 3)
        tilt = math.degrees(math.acos(min(1.0, float(rotation[2, 2]))))
        if tilt > config.max_tilt or abs(data.body(name).xpos[2]) > 0.05:
            raise AfieldError(
                f"The object '{name}' leans by {tilt:.0f} degrees after settling (allowed: {config.max_tilt:g}); "
                "give it more room or another place."
            )
    return model, data, names


def render_capture(
    name: str,
    objects: Sequence[PlacedObject],
    config: RenderConfig | None = None,
    *,
    target: int = 0,
    masks: bool = False,
    relative_to: Path | None = None,
) -> Observation:
    """Settle `objects` on a table and photograph them from the four corners.

    Args:
        name: name of the observation.
        objects: what lies on the table.
        config: cameras and room.
        target: index of the object of interest.
        masks: add the target's visible pixels to every view.
        relative_to: folder from which the object paths in the ground truth are written; absolute paths without it.

    Returns:
        Four views "camera0" to "camera3", world frame at the table center, z up, the table top at height 0.
    """
    config = config or RenderConfig()
    model, data, names = settle(objects, config)
    poses = [_pose(data, body) for body in names]
    target_body = model.body(names[target]).id
    generator = np.random.default_rng(config.seed)
    lamps = [generator.normal(size=2) * config.lamp_radius / 2 for _ in range(config.shadow_samples)]
    views = []
    with _renderer(model, config) as renderer:
        for index, camera in enumerate(_cameras(config)):
            color, depth, bodies = _photograph(renderer, model, data, index, lamps)
            mask = bodies == target_body if masks else None
            views.append(View(f"camera{index}", camera, color, depth, mask))
    truth: dict[str, Any] = {
        "table_height": 0.0,
        "target": names[target],
        "objects": [
            {
                "name": body,
                "object": _path_text(placed.folder, relative_to),
                "T_world_object": np.round(pose, 6).tolist(),
            }
            for body, placed, pose in zip(names, objects, poses, strict=True)
        ],
    }
    return Observation(tuple(views), name=name, extra={"simulation": truth})


def _renderer(model: mujoco.MjModel, config: RenderConfig) -> mujoco.Renderer:
    try:
        return mujoco.Renderer(model, config.height, config.width)
    except Exception as error:  # each OpenGL binding has its own exceptions
        reason = str(error).strip().splitlines() or [repr(error)]
        raise AfieldError(
            f"Rendering needs a headless OpenGL, but MuJoCo found none ({reason[0]}); install libegl1 or "
            "libosmesa6 and set MUJOCO_GL to egl or osmesa before Python starts."
        ) from error


def _path_text(folder: Path, relative_to: Path | None) -> str:
    return str(Path(folder).resolve()) if relative_to is None else Path(os.path.relpath(folder, relative_to)).as_posix()


def _cameras(config: RenderConfig) -> list[Camera]:
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
    material = _add_texture(spec, assets, "table", table_texture(config.table, config.seed))
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
    for index, camera in enumerate(_cameras(config)):
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


def _add_texture(spec: mujoco.MjSpec, assets: dict[str, bytes], name: str, image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Add an image as texture and material, both called `name`; MuJoCo itself reads PNG but no JPEG."""
    assets[f"{name}.png"] = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=f"{name}.png")
    material = spec.add_material(name=name, specular=0.2, shininess=0.2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    return name


def _set_mass(model: mujoco.MjModel, name: str, mass: float) -> None:
    """Scale mass and inertia of a body, keeping how the pieces share them."""
    body = model.body(name)
    factor = mass / float(body.mass[0])
    body.inertia[:] *= factor
    body.mass[0] = mass


def _pose(data: mujoco.MjData, name: str) -> Float[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3] = data.body(name).xmat.reshape(3, 3)
    pose[:3, 3] = data.body(name).xpos
    return pose


def _photograph(
    renderer: mujoco.Renderer,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    index: int,
    lamps: Sequence[Float[np.ndarray, 2]],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Color with soft shadows, depth in meters, and the body id of every pixel (-1 on none) for camera `index`."""
    option = mujoco.MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[TABLE_GROUP] = 1
    lamp = model.light("lamp")
    home = lamp.pos.copy()
    total = 0.0
    for shift in lamps:
        lamp.pos[:2] = home[:2] + shift
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, f"camera{index}", option)
        total = total + renderer.render().astype(np.float32)
    lamp.pos[:] = home
    mujoco.mj_forward(model, data)
    color = np.clip(np.round(total / len(lamps)), 0, 255).astype(np.uint8)
    renderer.update_scene(data, f"camera{index}", option)
    renderer.enable_depth_rendering()
    depth = renderer.render().copy()
    renderer.disable_depth_rendering()
    renderer.enable_segmentation_rendering()
    geoms = renderer.render()[..., 0].copy()
    renderer.disable_segmentation_rendering()
    bodies = np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], -1)
    return color, np.where(depth < model.vis.map.zfar * 0.99, depth, 0).astype(np.float32), bodies


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
