"""Articulated objects out of MJCF files: what stands, what moves along which joint, and what is taken hold of.

A manifest (`--objects`) names the files and the joint; nothing else is assumed of them. Objects are set onto a table, in the
middle of the world, with their front towards -y.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import trimesh
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from afield.artifacts import read_json
from afield.capture.furniture import Furniture, add_camera, add_furniture, add_room, ring_around
from afield.capture.rendered import bodies_of, open_renderer, shoot
from afield.errors import AfieldError
from afield.observation import Camera, Observation, View

HIDDEN_GROUPS = 3
"""Geoms of this group and above are collision shapes that no camera sees (MuJoCo's default)."""


@dataclass(frozen=True)
class ArticulatedObject:
    """One object of a manifest."""

    name: str
    kind: str
    """What it is an instance of: microwave, cabinet, drawer, laptop, ..."""
    joint: str
    travel: float
    """How far the joint goes in a demonstration, in radians or metres; negative joints open towards negative values."""
    files: tuple[str, ...] = ()
    """One MJCF file, or two include files with assets and body, relative to the root."""
    furniture: Mapping[str, Any] | None = None
    """Instead of files: an instance of Afield's own furniture (see `Furniture`)."""
    handle: tuple[str, ...] = ("capsule", "cylinder")
    """What is taken hold of: types or names of visible geoms, or of their meshes, on the moving body."""
    root: str = "."
    """Where the files are: a folder relative to the manifest, or `package:folder` of an installed package."""
    scale: float = 1.0
    yaw: float = 0.0
    """Degrees about +z that turn its front towards -y."""
    closed: float = 0.0
    """Position of the joint before it is opened."""
    twin: str | None = None
    """Name of an entry for another part of the same thing that would serve as well: the other wing of a double door."""
    body: str | None = None
    """Take this body and what hangs on it; everything in the file if None."""
    visible_groups: int = HIDDEN_GROUPS
    """Geoms below this group are seen."""
    flip: bool = False
    """The files have +y up."""
    folder: Path = Path()
    """Of the manifest."""

    @property
    def path(self) -> Path:
        """The folder of its files.

        Raises:
            AfieldError: it is not there.
        """
        root = os.path.expandvars(self.root)
        if "$" in root:
            raise AfieldError(f"'{self.name}' lies under {self.root}; set that variable to where its files are.")
        package, _, inner = root.rpartition(":")
        if not package:
            found = (self.folder / inner).resolve()
        else:
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise AfieldError(
                    f"'{self.name}' needs the package {package}; run: pip install {package.replace('_', '-')}"
                )
            found = Path(next(iter(spec.submodule_search_locations))) / inner
        if not found.is_dir():
            raise AfieldError(f"The files of '{self.name}' should lie in {found}, but there is no such folder.")
        return found


def read_objects(manifest: Path) -> dict[str, ArticulatedObject]:
    """Read a manifest: `{"objects": {name: {kind, files, joint, travel, ...}}}`.

    Raises:
        AfieldError: an entry has an unknown or lacks a needed key.
    """
    known = {field.name for field in fields(ArticulatedObject)} - {"name", "folder"}
    found = {}
    for name, entry in read_json(manifest).get("objects", {}).items():
        strange = sorted(set(entry) - known)
        if strange:
            raise AfieldError(f"{manifest}: '{name}' has the unknown key '{strange[0]}'; known are {sorted(known)}.")
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        try:
            found[name] = ArticulatedObject(name=name, folder=Path(manifest).parent, **lists)
        except TypeError as error:
            raise AfieldError(f"{manifest}: '{name}' is incomplete: {error}") from error
    if not found:
        raise AfieldError(f"{manifest} names no objects.")
    return found


@dataclass(frozen=True)
class Placed:
    """An object compiled into a world with a table, standing on it (z = 0) with its front towards -y."""

    item: ArticulatedObject
    model: Any
    data: Any
    own: tuple[int, ...]
    """Bodies of the object."""
    moving: tuple[int, ...]
    """Those that the joint moves."""
    handle: tuple[int, ...]
    """Visible geoms to take hold of."""
    size: Float[np.ndarray, "3"]
    """Extent of what is visible, in metres."""

    def set(self, opened: float) -> None:
        """Put the joint at `closed + opened`."""
        self.data.qpos[self.model.joint(f"object/{self.item.joint}").qposadr[0]] = self.item.closed + opened
        mujoco.mj_forward(self.model, self.data)

    def motion(self, opened: float) -> Float[np.ndarray, "4 4"]:
        """How the moving part goes when it is opened so far."""
        self.set(0.0)
        before = self._pose()
        self.set(opened)
        after = self._pose()
        self.set(0.0)
        return after @ np.linalg.inv(before)

    def _pose(self) -> Float[np.ndarray, "4 4"]:
        pose = np.eye(4)
        body = self.moving[0]
        pose[:3, :3], pose[:3, 3] = self.data.xmat[body].reshape(3, 3), self.data.xpos[body]
        return pose

    @property
    def axis(self) -> tuple[str, Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Kind of the joint (hinge or slide), a point on its axis, and its direction in which it opens."""
        joint = self.model.joint(f"object/{self.item.joint}")
        slide = int(joint.type[0]) == int(mujoco.mjtJoint.mjJNT_SLIDE)
        direction = self.data.xaxis[joint.id] * np.sign(self.item.travel)
        return "slide" if slide else "hinge", self.data.xanchor[joint.id].copy(), direction.copy()

    def handle_points(self, count: int = 400, seed: int = 0) -> Float[np.ndarray, "k 3"]:
        """Points on the surface of the handle's geoms."""
        spread = np.random.default_rng(seed)
        each = max(8, count // max(1, len(self.handle)))
        return np.concatenate([_geom_points(self.model, self.data, geom, each, spread) for geom in self.handle])


def place(item: ArticulatedObject, *, scale: float = 1.0, cameras: Sequence[Camera] = ()) -> Placed:
    """Compile an object into a world with a table under it.

    Args:
        item: which.
        scale: on top of the object's own.
        cameras: named camera0, camera1, ...

    Raises:
        AfieldError: files or joint are missing, or MuJoCo cannot read them.
    """
    model, data, own = _compile(item, scale, np.zeros(3), ())
    low, high = _bounds(model, data, own, item.visible_groups)
    onto = np.array([-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]])
    model, data, own = _compile(item, scale, onto, cameras)
    moving = tuple(b for b in own if _below(model, b, int(_joint(model, item).bodyid[0])))
    return Placed(item, model, data, own, moving, _handle(model, item, moving), high - low)


def _compile(
    item: ArticulatedObject, scale: float, position: Float[np.ndarray, "3"], cameras: Sequence[Camera]
) -> tuple[Any, Any, tuple[int, ...]]:
    child = _load(item)
    _scale(child, item.scale * scale)
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    add_room(spec, half=1.2)
    upright = Rotation.from_euler("x", 90.0 if item.flip else 0.0, degrees=True)
    quat = (Rotation.from_euler("z", item.yaw, degrees=True) * upright).as_quat()
    frame = spec.worldbody.add_frame(pos=position, quat=[quat[3], *quat[:3]])
    if item.body is None:
        spec.attach(child, prefix="object/", frame=frame)
    elif child.body(item.body) is None:
        raise AfieldError(f"The file of '{item.name}' has no body '{item.body}'.")
    else:
        frame.attach_body(child.body(item.body), "object/", "")
    if cameras:
        spec.visual.global_.offwidth, spec.visual.global_.offheight = cameras[0].width, cameras[0].height
    for index, camera in enumerate(cameras):
        add_camera(spec, camera, f"camera{index}")
    try:
        model = spec.compile()
    except ValueError as error:
        raise AfieldError(f"MuJoCo cannot compile '{item.name}': {' '.join(str(error).split())}") from error
    data = mujoco.MjData(model)
    data.qpos[_joint(model, item).qposadr[0]] = item.closed
    mujoco.mj_forward(model, data)
    return model, data, tuple(b for b in range(1, model.nbody) if model.body(b).name.startswith("object/"))


def _load(item: ArticulatedObject) -> mujoco.MjSpec:
    if item.furniture is not None:
        child = mujoco.MjSpec()
        add_furniture(child, Furniture(**item.furniture))
        return child
    if not item.files:
        raise AfieldError(f"'{item.name}' has neither files nor furniture.")
    root = item.path
    missing = [file for file in item.files if not (root / file).is_file()]
    if missing:
        raise AfieldError(f"'{item.name}' lacks its file {root / missing[0]}.")
    try:
        if len(item.files) == 1:
            child = mujoco.MjSpec.from_file(str(root / item.files[0]))
        else:
            assets, body = (str(root / file) for file in item.files)
            wrapper = f"""<mujoco><compiler angle="radian" meshdir="{root}" texturedir="{root}"/>
                <include file="{assets}"/><worldbody><include file="{body}"/></worldbody></mujoco>"""
            child = mujoco.MjSpec.from_string(wrapper)
    except ValueError as error:
        raise AfieldError(f"MuJoCo cannot read '{item.name}': {' '.join(str(error).split())}") from error
    free = [joint for joint in child.joints if joint.type == mujoco.mjtJoint.mjJNT_FREE]
    for thing in (*child.keys, *child.sensors, *child.cameras, *child.lights, *free):
        child.delete(thing)
    _forget_settings(child)
    return child


def _forget_settings(spec: mujoco.MjSpec) -> None:
    """A file's own solver, sizes and looks give way to the world's; else MuJoCo warns of each difference."""
    plain = mujoco.MjSpec()
    for name in dir(plain):
        if name in ("njmax", "nconmax", "memory") or name.startswith("nuser"):
            setattr(spec, name, getattr(plain, name))
    looks = ("global_", "quality", "map", "scale")
    pairs = [(spec.option, plain.option), (spec.stat, plain.stat)]
    pairs += [(getattr(spec.visual, part), getattr(plain.visual, part)) for part in looks]
    for own, default in pairs:
        for name in dir(default):
            value = getattr(default, name)
            if not name.startswith("_") and isinstance(value, int | float | np.ndarray):
                setattr(own, name, value)


def _scale(spec: mujoco.MjSpec, factor: float) -> None:
    """Make everything larger by a factor; masses are left to follow from the geoms."""
    for body in spec.bodies[1:]:
        body.pos = np.array(body.pos) * factor
    for geom in spec.geoms:
        geom.pos = np.array(geom.pos) * factor
        geom.size = np.array(geom.size) * factor
        geom.fromto = np.array(geom.fromto) * factor
    for mesh in spec.meshes:
        mesh.scale = np.array(mesh.scale) * factor
    for site in spec.sites:
        site.pos, site.size = np.array(site.pos) * factor, np.array(site.size) * factor
    for joint in spec.joints:
        joint.pos = np.array(joint.pos) * factor
        if joint.type == mujoco.mjtJoint.mjJNT_SLIDE:
            joint.range = np.array(joint.range) * factor


def _joint(model: mujoco.MjModel, item: ArticulatedObject) -> Any:
    try:
        return model.joint(f"object/{item.joint}")
    except KeyError as error:
        names = [model.joint(j).name.removeprefix("object/") for j in range(model.njnt)]
        raise AfieldError(f"'{item.name}' has no joint '{item.joint}'; it has {names}.") from error


def _below(model: mujoco.MjModel, body: int, ancestor: int) -> bool:
    while body and body != ancestor:
        body = int(model.body_parentid[body])
    return body == ancestor


def _handle(model: mujoco.MjModel, item: ArticulatedObject, moving: tuple[int, ...]) -> tuple[int, ...]:
    found = []
    for geom in range(model.ngeom):
        if int(model.geom_bodyid[geom]) not in moving or model.geom_group[geom] >= item.visible_groups:
            continue
        kind = mujoco.mjtGeom(int(model.geom_type[geom])).name.removeprefix("mjGEOM_").lower()
        names = {kind, model.geom(geom).name.removeprefix("object/")}
        if kind == "mesh":
            names.add(model.mesh(int(model.geom_dataid[geom])).name.removeprefix("object/"))
        if names & set(item.handle):
            found.append(geom)
    if not found:
        raise AfieldError(f"No visible geom of the moving part of '{item.name}' is one of {list(item.handle)}.")
    return tuple(found)


def _bounds(
    model: mujoco.MjModel, data: mujoco.MjData, own: tuple[int, ...], groups: int
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Extent of the visible geoms."""
    spread = np.random.default_rng(0)
    points = [
        _geom_points(model, data, geom, 300, spread)
        for geom in range(model.ngeom)
        if int(model.geom_bodyid[geom]) in own and model.geom_group[geom] < groups
    ]
    joined = np.concatenate(points)
    return joined.min(axis=0), joined.max(axis=0)


def _geom_points(
    model: mujoco.MjModel, data: mujoco.MjData, geom: int, count: int, spread: np.random.Generator
) -> Float[np.ndarray, "k 3"]:
    """Points on a geom, in the world: on the faces of a mesh, or directions pushed out to a primitive's surface."""
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        first, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(float)
        shape = trimesh.Trimesh(vertices, model.mesh_face[face : face + model.mesh_facenum[mesh]], process=False)
        local = np.asarray(trimesh.sample.sample_surface(shape, 4 * count, seed=int(spread.integers(1 << 30)))[0])
        local = np.concatenate((local, vertices[np.argmin(vertices, axis=0)], vertices[np.argmax(vertices, axis=0)]))
    else:
        direction = spread.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            local = direction / np.abs(direction).max(axis=1, keepdims=True) * size
        elif kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
            along = spread.uniform(-size[1], size[1], size=count)
            ring = direction[:, :2] / np.linalg.norm(direction[:, :2], axis=1, keepdims=True) * size[0]
            local = np.column_stack((ring, along))
        elif kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
            local = direction * size
        else:
            local = direction * size[0]
    return local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]


def ring(placed: Placed, count: int, resolution: int) -> list[Camera]:
    """Cameras evenly around the object, every other one higher."""
    x, y, z = (float(extent) for extent in placed.size)
    return ring_around((x, y, z), count, resolution)


@dataclass(frozen=True)
class Photographs:
    """Pictures of an object, and what only its maker knows of them."""

    observation: Observation
    handle: list[Bool[np.ndarray, "h w"]]
    """Where the handle is seen, for every view."""
    moving: list[Bool[np.ndarray, "h w"]]
    """Where the moving part is seen."""


def photograph_object(placed: Placed, cameras: Sequence[Camera], *, opened: float = 0.0) -> Photographs:
    """Pictures with depth and masks.

    Args:
        placed: compiled with these cameras.
        cameras: all of one size.
        opened: how far the joint is open.
    """
    placed.set(opened)
    model, option = placed.model, mujoco.MjvOption()
    option.geomgroup[:] = [int(group < placed.item.visible_groups) for group in range(6)]
    views, handles, moving = [], [], []
    with open_renderer(model, cameras[0].width, cameras[0].height) as renderer:
        for index, camera in enumerate(cameras):
            color, depth, geoms = shoot(renderer, model, placed.data, f"camera{index}", option)
            bodies = bodies_of(model, geoms)
            views.append(View(f"camera{index}", camera, color, depth, np.isin(bodies, placed.own)))
            handles.append(np.isin(geoms, placed.handle))
            moving.append(np.isin(bodies, placed.moving))
    placed.set(0.0)
    return Photographs(Observation(tuple(views), name=placed.item.name), handles, moving)
