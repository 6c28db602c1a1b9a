"""From a hand description to a compiled MuJoCo model of the hand alone.

Everything that knows MuJoCo's data structures is here: cutting the hand out of its file, holding the fixed joints
still, telling collision shapes from pictures, and reading meshes. The differentiable hand is built from the result.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import trimesh
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.transform import Rotation

from afield.errors import AfieldError
from afield.hand_description import HandDescription, resolve_file, unknown_name

SMALLEST_SHAPE = 0.003
"""Shapes with a smaller bounding radius (metres) are placeholders, such as Shadow's 1 mm boxes at the thumb's axes."""

_MOVABLE = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)


@dataclass(frozen=True)
class HandModel:
    """The hand alone, as MuJoCo sees it: fixed joints welded, the root body at the origin, nothing actuated."""

    description: HandDescription
    spec: mujoco.MjSpec
    model: mujoco.MjModel
    joint_names: tuple[str, ...]
    """Movable joints in the order of the description."""
    body_names: tuple[str, ...]
    """Bodies from the root on, parents before children."""

    @property
    def file(self) -> Path:
        """The MJCF or URDF file."""
        return resolve_file(self.description)

    def collision_geoms(self) -> list[int]:
        """Ids of the geoms that touch things; all geoms if the file marks none of them as colliding."""
        model = self.model
        real = [g for g in range(model.ngeom) if _is_solid(model, g)]
        colliding = [g for g in real if model.geom_contype[g] or model.geom_conaffinity[g]]
        return colliding or real

    def visual_geoms(self) -> list[int]:
        """Ids of the geoms that are only pictures."""
        model = self.model
        touching = set(self.collision_geoms())
        return [g for g in range(model.ngeom) if g not in touching and _is_solid(model, g)]


def load_hand_model(description: HandDescription) -> HandModel:
    """Read the file of a description, cut the hand out of it and compile it.

    Raises:
        AfieldError: MuJoCo cannot read or compile the file, or a body or joint of the description is not in it.
    """
    path = resolve_file(description)
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        spec.compiler.fusestatic = False  # URDF would merge rigidly attached links, and their names would be gone
        _name_everything(spec)
        original = spec.compile()
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise AfieldError(f"MuJoCo cannot read {path}, the file of the hand '{description.name}': {reason}") from error

    _check_bodies(spec, description)
    root = spec.body(description.root) if description.root else _topmost(spec, description.base)
    movable, fixed = _sort_joints(spec, root, description)
    _cut_out(spec, root)
    _weld(spec, original, root, fixed, description)
    _reset_sizes(spec)
    model = spec.compile()
    names = tuple(model.body(i).name for i in range(model.nbody))
    inside = tuple(name for i, name in enumerate(names) if root.name in {names[b] for b in _ancestors(model, i)})
    hand = HandModel(description, spec, model, movable, inside)
    _set_collisions(hand)
    return HandModel(description, spec, spec.compile(), movable, inside)


def geom_pose(model: mujoco.MjModel, geom: int) -> Float[np.ndarray, "4 4"]:
    """`T_body_geom` of a geom."""
    return pose_matrix(model.geom_pos[geom], model.geom_quat[geom])


def pose_matrix(position: Float[np.ndarray, "3"], quat_wxyz: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4 4"]:
    """A pose as 4x4 matrix in float64."""
    matrix = np.eye(4)
    mujoco.mju_quat2Mat(flat := np.zeros(9), np.asarray(quat_wxyz, dtype=np.float64))
    matrix[:3, :3] = flat.reshape(3, 3)
    matrix[:3, 3] = position
    return matrix


def mesh_vertices(model: mujoco.MjModel, geom: int) -> Float[np.ndarray, "v 3"]:
    """Vertices of a mesh geom, in the geom's frame."""
    mesh = int(model.geom_dataid[geom])
    begin, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    return np.asarray(model.mesh_vert[begin : begin + count], dtype=np.float64)


def convex_hull(vertices: Float[np.ndarray, "v 3"]) -> ConvexHull:
    """The convex hull of a mesh; flat meshes are thickened by a hair."""
    try:
        return ConvexHull(vertices)
    except QhullError:
        return ConvexHull(vertices, qhull_options="QJ")


def geom_mesh(model: mujoco.MjModel, geom: int, *, hull: bool = False) -> trimesh.Trimesh:
    """A geom as triangles, in the frame of its body; with `hull`, a mesh is replaced by its convex hull."""
    kind, size = int(model.geom_type[geom]), np.asarray(model.geom_size[geom], dtype=np.float64)
    kinds = mujoco.mjtGeom
    if kind == kinds.mjGEOM_SPHERE:
        shape = trimesh.creation.icosphere(subdivisions=3, radius=size[0])
    elif kind == kinds.mjGEOM_CAPSULE:
        shape = trimesh.creation.capsule(height=2 * size[1], radius=size[0], count=[24, 24])
        shape.apply_translation(-shape.bounds.mean(axis=0))
    elif kind == kinds.mjGEOM_CYLINDER:
        shape = trimesh.creation.cylinder(radius=size[0], height=2 * size[1], sections=48)
    elif kind == kinds.mjGEOM_ELLIPSOID:
        shape = trimesh.creation.icosphere(subdivisions=3)
        shape.apply_scale(size)
    elif kind == kinds.mjGEOM_BOX:
        shape = trimesh.creation.box(extents=2 * size)
    else:
        vertices, mesh = mesh_vertices(model, geom), int(model.geom_dataid[geom])
        begin, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        shape = trimesh.Trimesh(vertices, model.mesh_face[begin : begin + count], process=False)
        shape = trimesh.convex.convex_hull(shape) if hull else shape
    shape.apply_transform(geom_pose(model, geom))
    return shape


def _is_solid(model: mujoco.MjModel, geom: int) -> bool:
    """Whether a geom is a real part of the hand: no plane or height field, no placeholder."""
    kinds = mujoco.mjtGeom
    solid = (
        kinds.mjGEOM_SPHERE,
        kinds.mjGEOM_CAPSULE,
        kinds.mjGEOM_CYLINDER,
        kinds.mjGEOM_ELLIPSOID,
        kinds.mjGEOM_BOX,
        kinds.mjGEOM_MESH,
    )
    return int(model.geom_type[geom]) in solid and float(model.geom_rbound[geom]) >= SMALLEST_SHAPE


def _name_everything(spec: mujoco.MjSpec) -> None:
    """Give names to unnamed bodies, joints and geoms, so that errors and the simulator can speak of them."""
    for number, body in enumerate(spec.bodies):
        body.name = body.name or f"body_{number}"
        for kind, elements in (("joint", body.joints), ("geom", body.geoms)):
            for index, element in enumerate(elements):
                element.name = element.name or f"{body.name}_{kind}{index}"


def _check_bodies(spec: mujoco.MjSpec, description: HandDescription) -> None:
    """Every body that the description names must exist."""
    names = [body.name for body in spec.bodies[1:]]
    named = {
        "base": (description.base,),
        "root": (description.root,) if description.root else (),
        "fingers": tuple(body for finger in description.fingers.values() for body in finger),
        "pads": tuple(description.pads),
        "ignore": description.ignore,
    }
    for entry, bodies in named.items():
        for body in bodies:
            if body not in names:
                place = f"'{entry}' of the hand description '{description.name}'"
                raise AfieldError(unknown_name(body, names, "body", place))
    if description.root and description.root not in {body.name for body in _chain(spec, description.base)}:
        raise AfieldError(
            f"The root body '{description.root}' of the hand '{description.name}' does not carry its base "
            f"'{description.base}'; valid are {', '.join(b.name for b in _chain(spec, description.base))}."
        )


def _chain(spec: mujoco.MjSpec, name: str) -> Iterator[mujoco.MjsBody]:
    """A body and everything above it, without the world."""
    body = spec.body(name)
    while body.name != "world":
        yield body
        body = body.parent


def _topmost(spec: mujoco.MjSpec, base: str) -> mujoco.MjsBody:
    return list(_chain(spec, base))[-1]


def _sort_joints(
    spec: mujoco.MjSpec, root: mujoco.MjsBody, description: HandDescription
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Which joints move, in which order, and where all others are held."""
    above = {joint.name for body in _chain(spec, description.base) for joint in body.joints}
    inside = [joint for body in (root, *root.find_all("body")) for joint in body.joints]
    valid = [joint.name for joint in inside if joint.type in _MOVABLE]
    for entry in ("joints", "fixed", "neutral"):
        for name in getattr(description, entry) or ():
            if name not in valid:
                place = f"'{entry}' of the hand description '{description.name}'"
                raise AfieldError(unknown_name(name, valid, "joint", place))
    movable = description.joints
    if movable is None:
        movable = tuple(name for name in valid if name not in description.fixed and name not in above)
    for name in movable:
        if name in above or name in description.fixed or movable.count(name) > 1:
            why = "moves its base" if name in above else "is named twice or also fixed"
            raise AfieldError(
                f"The joint '{name}' of the hand '{description.name}' cannot be optimized, because it {why}; "
                f"valid are the joints below '{description.base}': {', '.join(n for n in valid if n not in above)}."
            )
    for joint in inside:
        if joint.type not in _MOVABLE and not (joint.type == mujoco.mjtJoint.mjJNT_FREE and joint.name in above):
            raise AfieldError(
                f"The joint '{joint.name}' of the hand '{description.name}' is a ball or free joint; "
                "only hinges and slides can be optimized."
            )
    held = {name: description.fixed.get(name, 0.0) for name in valid if name not in movable}
    return movable, held


def _cut_out(spec: mujoco.MjSpec, root: mujoco.MjsBody) -> None:
    """Delete everything but the hand; the bodies above its root stay as empty frames at the origin.

    Tendons and equalities go too: the hand's joints are optimized independently (as in the paper), so the simulated
    hand must be able to reach what was optimized.
    """
    for elements in (spec.actuators, spec.sensors, spec.keys, spec.equalities, spec.tendons):
        for element in list(elements):
            spec.delete(element)
    above = [*_chain(spec, root.name)]
    kept = {body.name for body in above}
    for body in (*above[1:], spec.worldbody):
        for child in list(body.bodies):
            if child.name not in kept:
                spec.delete(child)
        for element in [*body.geoms, *body.sites, *body.cameras, *body.lights, *body.joints]:
            spec.delete(element)
    for body in above:
        _place(body, np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))
        body.mocap = False
    for joint in list(root.joints):
        if joint.type == mujoco.mjtJoint.mjJNT_FREE:
            spec.delete(joint)


def _place(body: mujoco.MjsBody, position: Float[np.ndarray, "3"], quat_wxyz: Float[np.ndarray, "4"]) -> None:
    """Put a body at a pose of its parent's frame, whatever the file said about it."""
    body.pos, body.quat = position, quat_wxyz
    body.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT
    frame = body.frame
    while frame is not None:
        frame.pos, frame.quat = np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
        frame.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT
        frame = frame.frame


def _weld(
    spec: mujoco.MjSpec,
    original: mujoco.MjModel,
    root: mujoco.MjsBody,
    fixed: dict[str, float],
    description: HandDescription,
) -> None:
    """Turn the fixed joints into rigid connections at their angle."""
    for body in (root, *root.find_all("body")):
        pose, moved = np.eye(4), False
        for joint in list(body.joints):
            if joint.name not in fixed:
                moved = True
                continue
            step = _joint_motion(original, joint.name, fixed[joint.name])
            spec.delete(joint)
            if np.allclose(step, np.eye(4), atol=1e-12):
                continue
            if body.name == root.name:  # the root stands at the origin, however it was turned
                continue
            if moved or body.frame is not None:
                raise AfieldError(
                    f"A fixed joint of the body '{body.name}' of the hand '{description.name}' comes after a moving "
                    "joint of the same body, or the body stands in a <frame>; then it can only be fixed at its zero."
                )
            pose = pose @ step
        if not np.allclose(pose, np.eye(4)):
            index = original.body(body.name).id
            turned = pose_matrix(original.body_pos[index], original.body_quat[index]) @ pose
            quat = Rotation.from_matrix(turned[:3, :3]).as_quat(scalar_first=True)
            _place(body, turned[:3, 3], quat)


def _joint_motion(model: mujoco.MjModel, name: str, value: float) -> Float[np.ndarray, "4 4"]:
    """How a joint at `value` moves its body, in the body's frame."""
    joint = model.joint(name).id
    basis = joint_basis(model, joint)
    delta = value - float(model.qpos0[model.jnt_qposadr[joint]])
    return np.einsum("k,kij->ij", np.array([1.0, np.sin(delta), 1 - np.cos(delta), delta]), basis)


def joint_basis(model: mujoco.MjModel, joint: int) -> Float[np.ndarray, "4 4 4"]:
    """Matrices B with motion = B0 + sin(q) B1 + (1 - cos(q)) B2 + q B3, for a hinge or slide moved by q from its zero.

    This is Rodrigues' formula about an axis through the joint's anchor: x -> anchor + R (x - anchor).
    """
    axis, anchor = np.asarray(model.jnt_axis[joint]), np.asarray(model.jnt_pos[joint])
    basis = np.zeros((4, 4, 4))
    basis[0] = np.eye(4)
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
        basis[3, :3, 3] = axis
        return basis
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    for row, matrix in ((1, cross), (2, cross @ cross)):
        basis[row, :3, :3] = matrix
        basis[row, :3, 3] = -matrix @ anchor
    return basis


def _reset_sizes(spec: mujoco.MjSpec) -> None:
    """Drop sizes and solver options: they belong to a world, and would clash when one attaches the hand."""
    for name in dir(spec):
        if name.startswith("nuser_") or name in ("njmax", "nconmax"):
            setattr(spec, name, -1)
    fresh = mujoco.MjSpec().option
    for name in dir(fresh):
        if not name.startswith("_"):
            setattr(spec.option, name, getattr(fresh, name))


def _ancestors(model: mujoco.MjModel, body: int) -> Iterator[int]:
    """A body and its parents, up to but without the world."""
    while body:
        yield body
        body = int(model.body_parentid[body])


def _set_collisions(hand: HandModel) -> None:
    """Let every collision shape meet objects of type 1, and no other geom; keep the hand's own rules."""
    touching = {hand.model.geom(g).name for g in hand.collision_geoms()}
    for geom in hand.spec.geoms:
        if geom.name in touching:
            geom.contype |= 1
        else:
            geom.contype, geom.conaffinity = 0, 0
