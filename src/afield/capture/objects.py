"""Objects with a mesh, a texture and convex pieces for physics, as bodies of a MuJoCo world."""

# MuJoCo's stubs do not cover its compiled part.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from afield.artifacts import read_json
from afield.capture.images import read_color
from afield.errors import AfieldError

TABLE_GROUP = 2
"""Geoms of the room and the visual meshes; the renderer shows this group."""
COLLISION_GROUP = 3
"""Convex pieces: felt by physics, hidden from the cameras."""


@dataclass(frozen=True)
class PlacedObject:
    """A sample object and where it is put down."""

    folder: Path
    """Folder with `object.json`."""
    position: tuple[float, float] = (0.0, 0.0)
    """World x and y of the object's origin, in meters."""
    yaw: float = 0.0
    """Turn about the vertical, in radians."""
    quat_wxyz: tuple[float, float, float, float] | None = None
    """Any other orientation in which it is dropped, instead of `yaw`; it may then come to rest on any side."""
    stand: float = 0.0
    """Height in meters of a post under its center of mass, so that a hand can reach below; 0 is no post."""


@dataclass(frozen=True)
class Stand:
    """A fixed post that carries an object."""

    position: tuple[float, float]
    """World x and y of its center, in meters."""
    yaw: float
    """Turn about the vertical, in radians."""
    height: float
    """In meters."""
    half_width: float = 0.022
    """Half the side of its square top, in meters."""


def add_stand(spec: mujoco.MjSpec, stand: Stand, table_height: float) -> None:
    """Put a post on the table."""
    half = stand.half_width
    geom = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[half, half, stand.height / 2])
    geom.pos = [*stand.position, table_height + stand.height / 2]
    geom.quat = [math.cos(stand.yaw / 2), 0, 0, math.sin(stand.yaw / 2)]
    geom.rgba, geom.friction, geom.group = [0.85, 0.83, 0.8, 1], [1.0, 0.005, 0.0001], TABLE_GROUP


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
            material = add_texture(spec, assets, f"{name}_texture", texture)
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
    if "ballast" in description:  # a weight inside, as in toys that are to sit upright
        weight = body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.005, 0, 0], contype=0, conaffinity=0)
        weight.pos, weight.mass, weight.group = description["ballast"]["position"], description["ballast"]["mass"], 4
    spec.assets = assets
    return body


def add_texture(spec: mujoco.MjSpec, assets: dict[str, bytes], name: str, image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Add an image as texture and material, both called `name`; MuJoCo itself reads PNG but no JPEG."""
    assets[f"{name}.png"] = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=f"{name}.png")
    material = spec.add_material(name=name, specular=0.2, shininess=0.2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    return name


def set_mass(model: mujoco.MjModel, name: str, mass: float) -> None:
    """Scale mass and inertia of a body, keeping how the pieces share them."""
    body = model.body(name)
    factor = mass / float(body.mass[0])
    body.inertia[:] *= factor
    body.mass[0] = mass


def body_pose(data: mujoco.MjData, name: str) -> Float[np.ndarray, "4 4"]:
    """Pose of a body in the world."""
    pose = np.eye(4)
    pose[:3, :3] = data.body(name).xmat.reshape(3, 3)
    pose[:3, 3] = data.body(name).xpos
    return pose
