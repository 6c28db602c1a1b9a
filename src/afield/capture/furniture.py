"""Pictures and points of furniture: from a ring of cameras, as a skill is learnt, and from one RGB-D camera, as a robot sees it.

Drawing needs a process that was started with the variables of `opengl_environment` (`draw_elsewhere`).
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

import mujoco
import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from torch import Tensor

from afield.capture.furniture_model import BODY as BODY
from afield.capture.furniture_model import HANDLE as HANDLE
from afield.capture.furniture_model import JOINT as JOINT
from afield.capture.furniture_model import PART as PART
from afield.capture.furniture_model import Furniture as Furniture
from afield.capture.furniture_model import Kind as Kind
from afield.capture.furniture_model import PlacedFurniture as PlacedFurniture
from afield.capture.furniture_model import add_furniture as add_furniture
from afield.capture.furniture_model import add_material
from afield.capture.furniture_model import handle_box as handle_box
from afield.capture.furniture_model import joint_motion as joint_motion
from afield.capture.objects import TABLE_GROUP
from afield.capture.rendered import bodies_of, open_renderer, shoot
from afield.errors import AfieldError
from afield.geometry import look_at
from afield.observation import Camera, Observation, View

MOST_SIDEWAYS = math.radians(60.0)
"""A camera farther from the front than this does not see handle and front well enough."""


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


def world_from_extra(extra: Mapping[str, Any]) -> PlacedFurniture:
    """The furniture that a capture remembers.

    Args:
        extra: of an observation.

    Raises:
        AfieldError: there is no entry `furniture`, or it is incomplete or wrong (with the entry that is).
    """
    entry = extra.get("furniture")
    if not isinstance(entry, Mapping):
        raise AfieldError("The capture remembers no furniture (no entry 'furniture'), so nothing can be simulated.")
    place = ("x", "y", "yaw", "opened")
    known = [field.name for field in fields(Furniture)]
    for name in entry:
        if name not in known and name not in place:
            raise AfieldError(f"The capture's entry 'furniture' has an unknown '{name}'.")
    for name in (*place, "kind"):
        if name not in entry:
            raise AfieldError(f"The capture's entry 'furniture' lacks '{name}'.")
    values = {name: _checked(name, value) for name, value in entry.items()}
    numbers = {name: values.pop(name) for name in place}
    return PlacedFurniture(Furniture(**values), **numbers)


_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": get_args(Kind), "hinge": ("left", "right"), "handle": ("bar", "knob"),
}  # fmt: skip


def _checked(name: str, value: object) -> Any:
    """One entry of a remembered instance."""
    if name in _CHOICES:
        if value in _CHOICES[name]:
            return value
        raise AfieldError(f"The furniture's {name} is {value!r}; it must be one of {', '.join(_CHOICES[name])}.")
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    good = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    if name.endswith("_color"):
        if good and len(numbers) == 3:
            return tuple(float(x) for x in numbers)
    elif name == "seed" and isinstance(value, int):
        return value
    elif good and isinstance(value, int | float) and (value > 0 or name in ("x", "y", "yaw", "opened")):
        return float(value)
    raise AfieldError(f"The capture's entry 'furniture' is wrong at '{name}': {value!r}.")


def ring_cameras(
    item: Furniture, count: int, resolution: int, *, distance: float = 3.0, elevation: float = 25.0
) -> list[Camera]:
    """Cameras evenly around an instance, every other one higher; `distance` is in half diagonals."""
    return ring_around((item.width, item.depth, item.height), count, resolution, distance=distance, elevation=elevation)


def ring_around(
    size: tuple[float, float, float], count: int, resolution: int, *, distance: float = 3.0, elevation: float = 25.0
) -> list[Camera]:
    """`ring_cameras` around anything of this size (x, y, z in metres) that stands in the middle of the world."""
    half = math.hypot(*size) / 2
    middle = torch.tensor([0.0, 0.0, size[2] / 2])
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


def front_camera(
    placed: PlacedFurniture,
    *,
    sideways: float = 0.3,
    distance: float = 0.65,
    above: float = 0.25,
    size: tuple[int, int] = (640, 480),
    fov: float = 55.0,
) -> Camera:
    """A camera in front of an instance, as on a robot or a tripod.

    Args:
        placed: what it looks at.
        sideways: from straight ahead, in radians, at most 60 degrees; positive is on the instance's +x side.
        distance: from the middle of the front, horizontally, in metres.
        above: how much higher it is than the middle, in metres.
        size: width and height in pixels.
        fov: vertical field of view in degrees.

    Raises:
        AfieldError: it would not see the front.
    """
    if abs(sideways) > MOST_SIDEWAYS + 1e-6 or not 0.2 <= distance <= 2.0:
        raise AfieldError(
            f"A camera {math.degrees(sideways):.0f} degrees sideways at {distance:g} m does not see the front; at most 60 "
            "degrees and 0.2 to 2 m are possible."
        )
    item, pose = placed.item, torch.from_numpy(placed.T_world_furniture).float()
    middle = torch.tensor([0.0, -item.depth / 2, item.height / 2])
    away = torch.tensor([math.sin(sideways), -math.cos(sideways), 0.0])
    place = middle + distance * away + torch.tensor([0.0, 0.0, above])
    eye, goal = (pose[:3, :3] @ point + pose[:3, 3] for point in (place, middle))
    width, height = size
    focal = height / 2 / math.tan(math.radians(fov) / 2)
    look = look_at(eye, goal, torch.tensor([0.0, 0.0, 1.0]))
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2, look)


def random_scene(item: Furniture, seed: int, *, opened: float = 0.0) -> tuple[PlacedFurniture, Camera]:
    """An instance somewhere on the table, and a camera up to 60 degrees from its front, 0.5 to 0.8 m away, slightly above."""
    draw = np.random.default_rng(seed).uniform
    x, y, yaw = (round(float(draw(-limit, limit)), 4) for limit in (0.15, 0.15, math.radians(40.0)))
    placed = PlacedFurniture(item, x, y, yaw, opened)
    sideways = float(draw(-0.95, 0.95)) * MOST_SIDEWAYS
    return placed, front_camera(placed, sideways=sideways, distance=float(draw(0.5, 0.8)), above=float(draw(0.15, 0.4)))


def photograph_scene(placed: PlacedFurniture, camera: Camera, *, name: str = "scene") -> Observation:
    """What one RGB-D camera sees of an instance on a table; `extra` remembers the instance, for physics.

    Raises:
        AfieldError: the camera does not see it.
    """
    observation, _ = _photograph(placed, [camera], name)
    mask = observation.views[0].mask
    if mask is None or not mask.any():
        raise AfieldError(f"The camera of the scene '{name}' does not see the {placed.item.kind}.")
    return replace(observation, extra={"furniture": placed.extra()})


def photograph_furniture(
    item: Furniture, cameras: list[Camera], *, opened: float = 0.0, name: str = "furniture"
) -> tuple[Observation, list[Bool[np.ndarray, "h w"]]]:
    """Pictures with depth and masks of an instance in the middle of a table, and where its handle is seen.

    Args:
        item: what is shown.
        cameras: all of one size.
        opened: position of the joint.
        name: of the observation.
    """
    return _photograph(PlacedFurniture(item, opened=opened), cameras, name)


def _photograph(
    placed: PlacedFurniture, cameras: Sequence[Camera], name: str
) -> tuple[Observation, list[Bool[np.ndarray, "h w"]]]:
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth, spec.visual.global_.offheight = cameras[0].width, cameras[0].height
    add_kitchen(spec, placed)
    for index, camera in enumerate(cameras):
        add_camera(spec, camera, f"camera{index}")
    model = spec.compile()
    data = mujoco.MjData(model)
    data.joint(f"{BODY}_{JOINT}").qpos[0] = placed.opened
    mujoco.mj_forward(model, data)
    own = [model.body(BODY).id, model.body(f"{BODY}_{PART}").id]
    handle = model.geom(f"{BODY}_{HANDLE}").id
    views, handles = [], []
    with open_renderer(model, cameras[0].width, cameras[0].height) as renderer:
        for index, camera in enumerate(cameras):
            color, depth, geoms = shoot(renderer, model, data, f"camera{index}")
            views.append(View(f"camera{index}", camera, color, depth, np.isin(bodies_of(model, geoms), own)))
            handles.append(geoms == handle)
    return Observation(tuple(views), name=name), handles


def add_kitchen(spec: mujoco.MjSpec, placed: PlacedFurniture, *, half: float = 0.8) -> None:
    """`add_room`, and an instance on its table."""
    add_room(spec, half=half)
    add_furniture(spec, placed)


def add_room(spec: mujoco.MjSpec, *, half: float = 0.8) -> None:
    """Lamps, and a wooden table whose surface is z = 0.

    Args:
        spec: to which all is added.
        half: half the side of the table, in metres.
    """
    spec.visual.map.znear = 0.02
    # Lamps stay where they are: a light that moves with the camera would change the colours from view to view.
    head = spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [0.5] * 3, [0.0] * 3, [0.0] * 3
    for index, (place, power) in enumerate((((0.5, -0.9, 1.8), 0.45), ((-1.2, 0.8, 1.4), 0.25))):
        lamp = spec.worldbody.add_light(name=f"lamp{index}", pos=place, dir=[-x for x in place], diffuse=[power] * 3)
        lamp.castshadow, lamp.specular = False, [0.0] * 3
    wood = add_material(spec, "table", (0.62, 0.48, 0.34), 7)
    box = mujoco.mjtGeom.mjGEOM_BOX
    table = spec.worldbody.add_geom(name="table", type=box, size=[half, half, 0.02], pos=[0, 0, -0.02])
    table.material, table.group = wood, TABLE_GROUP


def add_camera(spec: mujoco.MjSpec, camera: Camera, name: str) -> None:
    """MuJoCo's cameras look along -z with y up."""
    rotation = camera.T_world_camera[:3, :3].double() @ torch.diag(torch.tensor([1.0, -1.0, -1.0])).double()
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, rotation.numpy().flatten())
    found = spec.worldbody.add_camera(name=name, pos=camera.position.double().numpy(), quat=quat)
    found.fovy = math.degrees(2 * math.atan(camera.height / 2 / camera.fy))
