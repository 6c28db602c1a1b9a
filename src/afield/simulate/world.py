"""MuJoCo worlds for the grasp test: objects of a capture, or what was seen of them, and a hand that can be moved."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, KDTree, QhullError
from torch import Tensor

from afield.artifacts import read_json
from afield.capture.objects import Stand, add_object, add_stand, set_mass
from afield.errors import AfieldError
from afield.fields.instances import instances
from afield.geometry import matrix_to_quat_wxyz
from afield.hand import Hand
from afield.observation import Observation
from afield.recognition import Recognized
from afield.scene import Scene

OBSERVED_MASS = 0.1
"""Mass in kilograms that is assumed for an object of which only points are known."""
FLOATING = 0.02
"""An observed object whose lowest point is this high above the table, in metres, must lie on something."""
BENEATH = 0.01
"""Points of another object this close to an object's footprint, in metres, and lower, are below it ..."""
CARRYING = 5
"""... and so many of them carry it."""
MOCAP = "hand_target"
CARRIER = "hand_carrier"


@dataclass(frozen=True)
class WorldObject:
    """An object that can be moved."""

    name: str
    T_world_object: Float[np.ndarray, "4 4"]
    """Its first pose."""
    mass: float
    """Kilograms."""
    folder: Path | None = None
    """Folder with `object.json`, for a known object."""
    hull: Float[np.ndarray, "v 3"] | None = None
    """Vertices of its convex hull in metres in its own frame, for an observed one."""
    balls: Float[np.ndarray, "k 3"] | None = None
    """Or the centres of balls that fill its observed surface."""
    radius: float = 0.003
    """Radius of these balls in metres."""


@dataclass(frozen=True)
class World:
    """A table with objects."""

    objects: tuple[WorldObject, ...]
    table_height: float
    """z of the table's surface in metres."""
    target: str | None
    """The object that is to be grasped; the one nearest to the hand if None."""
    geometry: str
    """Where shapes come from: "known" (the objects' own) or "observed" (convex hulls of the points that were seen)."""
    stands: tuple[Stand, ...] = ()
    """Fixed posts that carry objects; in an observed world they are supposed where an object would float."""


@dataclass(frozen=True)
class HandActuation:
    """How the simulated hand is driven."""

    stiffness: float = 4.0
    """Of a finger joint's position servo, in Nm per radian."""
    damping: float = 0.2
    """Of a finger joint, in Nm s per radian."""
    force_limit: float = 1.0
    """Of a finger joint in Nm: about 10 N at a fingertip 10 cm away, what a tendon-driven Shadow Hand can press."""
    slide_stiffness: float = 500.0
    """Of a sliding joint (grippers), in N per metre."""
    slide_force_limit: float = 40.0
    """Of a sliding joint, in N."""
    friction: float = 1.0
    """Sliding friction of the hand's skin (rubber on plastic)."""


def world_from_capture(observation: Observation) -> World:
    """The simulated world that a rendered capture remembers.

    Raises:
        AfieldError: the capture has no `simulation` entry, or it is incomplete.
    """
    simulation = observation.extra.get("simulation")
    if not isinstance(simulation, dict):
        raise AfieldError(
            f"The capture '{observation.name}' has no simulated world; use the observed geometry instead."
        )
    objects = []
    try:
        for entry in simulation["objects"]:
            folder = ((observation.folder or Path()) / entry["object"]).resolve()
            mass = float(read_json(folder / "object.json")["mass"])
            objects.append(WorldObject(entry["name"], np.array(entry["T_world_object"], dtype=float), mass, folder))
        stands = tuple(Stand(**stand) for stand in simulation.get("stands", ()))
        target = simulation.get("target")
        if not objects or (target is not None and target not in {thing.name for thing in objects}):
            raise KeyError(f"no object named {target!r}")
        return World(tuple(objects), float(simulation["table_height"]), target, "known", stands)
    except (KeyError, TypeError, ValueError) as error:
        raise AfieldError(
            f"The simulated world in {observation.folder}/capture.json is incomplete: {error}."
        ) from error


def world_from_scene(
    scene: Scene,
    palm: Float[Tensor, "3"],
    label: Int[Tensor, "n"] | None = None,
    same: Recognized | None = None,
) -> World:
    """A world out of what was seen, for captures without known objects and for rehearsing a grasp.

    The cluster of points nearest to the palm is the target: a rigid body with a ball at every point, so that it keeps
    legs, handles and holes. Every other cluster is a convex hull.

    Args:
        scene: the observed points.
        palm: where the hand will be, metres, world.
        label: the scene's `instances`, if they are known already.
        same: an object of which more is known than is seen here.

    Raises:
        AfieldError: no cluster has 20 points.
    """
    points = scene.points.cpu().numpy().astype(float)
    height = table_height(scene)
    member = (instances(scene) if label is None else label).cpu().numpy()
    clusters = [points[member == number] for number in range(int(member.max()) + 1)]
    clusters = [member for member in clusters if len(member) >= 20]
    if same is not None and clusters:
        seen, hidden = same.seen.cpu().numpy().astype(float), same.points.cpu().numpy().astype(float)
        owner = int(np.argmax([(KDTree(member).query(seen)[0] < 1e-4).sum() for member in clusters]))
        clusters[owner] = np.concatenate((clusters[owner], hidden[hidden[:, 2] > height]))
    if not clusters:
        raise AfieldError(f"No cluster of the scene '{scene.name}' has 20 points, so there is nothing to simulate.")
    nearest = [float(np.linalg.norm(member - palm.cpu().numpy(), axis=1).min()) for member in clusters]
    target = int(np.argmin(nearest))
    objects = [_observed(f"object{i}", member, height, solid=i != target) for i, member in enumerate(clusters)]
    stands = tuple(
        stand
        for number, thing in enumerate(objects)
        if thing is not None
        and not _lies_on(clusters[number], [other for i, other in enumerate(clusters) if i != number])
        and (stand := _support(thing, height)) is not None
    )
    return World(tuple(o for o in objects if o is not None), height, f"object{target}", "observed", stands)


def _lies_on(points: Float[np.ndarray, "n 3"], others: Sequence[Float[np.ndarray, "_ 3"]]) -> bool:
    """Whether points of other things were seen below an object, which then carry it."""
    if not others:
        return False
    below = np.concatenate(others)
    apart, nearest = KDTree(points[:, :2]).query(below[:, :2])
    return bool(((apart < BENEATH) & (below[:, 2] < points[nearest, 2])).sum() >= CARRYING)


def _support(thing: WorldObject, height: float) -> Stand | None:
    """A post under the middle of an observed object that would else float: something that was not seen carries it."""
    points = thing.balls if thing.balls is not None else thing.hull
    assert points is not None, "an observed object has balls or a hull"
    if float(points[:, 2].min()) < FLOATING:
        return None
    x, y = (float(value) for value in points[:, :2].mean(axis=0) + thing.T_world_object[:2, 3])
    post = Stand((x, y), 0.0, 0.0)
    above = np.abs(points[:, :2] - points[:, :2].mean(axis=0)).max(axis=1) < post.half_width
    low = float((points[above] if above.any() else points)[:, 2].min()) - (thing.radius if thing.hull is None else 0.0)
    return Stand((x, y), 0.0, low)


def table_height(scene: Scene) -> float:
    """Z of the table below the scene's middle in metres; of the lowest point where no table was found."""
    if scene.table is None:
        return float(scene.points[:, 2].min())
    center, up = scene.points.mean(dim=0).cpu(), scene.table.normal.cpu()
    return float((scene.table.offset - float(up[:2] @ center[:2])) / float(up[2]))


def _observed(name: str, points: Float[np.ndarray, "n 3"], height: float, *, solid: bool) -> WorldObject | None:
    """An object out of its points; those near the table, whose removal cut the object off, reach down to it."""
    spacing = float(np.median(KDTree(points).query(points, k=2)[0][:, 1]))
    radius = min(max(spacing / 2, 0.002), 0.005)
    low = points[points[:, 2] < height + 0.02]
    feet = _outline(low[:, :2]) @ np.eye(2, 3) + [0, 0, height + radius]
    points = np.concatenate((points, feet))
    pose = np.eye(4)
    pose[:3, 3] = [*points[:, :2].mean(axis=0), height]
    local = points - pose[:3, 3]
    if not solid:
        return WorldObject(name, pose, OBSERVED_MASS, balls=local, radius=radius)
    try:
        hull = ConvexHull(local)
    except QhullError:
        return None
    return WorldObject(name, pose, OBSERVED_MASS, hull=hull.points[hull.vertices])


def _outline(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "k 2"]:
    """The corners of the convex hull of points in the plane, or the points themselves where they span no area."""
    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return points


def build_world(world: World, hand: Hand, actuation: HandActuation | None = None) -> mujoco.MjModel:
    """Compile table, objects and hand.

    The hand hangs on a free carrier body that is welded to a mocap body: a position-controlled wrist that is stiff, but
    whose velocity the contacts feel, which a body moved by hand would not have. Gravity does not act on the hand.
    """
    actuation = actuation or HandActuation()
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.002
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 960, 720
    _add_room(spec, world)
    for stand in world.stands:
        add_stand(spec, stand, world.table_height)
    for thing in world.objects:
        _add_thing(spec, thing)
    _add_hand(spec, hand, actuation)
    model = spec.compile()
    for thing in world.objects:
        set_mass(model, thing.name, thing.mass)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def hand_joint_ids(model: mujoco.MjModel, hand: Hand) -> np.ndarray:
    """Indices of the hand's joints, in the order of a configuration."""
    return np.array([model.joint(f"hand/{name}").id for name in hand.joint_names])


def carrier_pose(hand: Hand, beta: Float[Tensor, "d"]) -> Float[np.ndarray, "7"]:
    """Where the carrier must be for a configuration: position and quaternion (wxyz)."""
    pose, _ = hand.split(beta.double().cpu())
    root = pose @ hand.T_base_root.double().cpu()
    return torch.cat((root[:3, 3], matrix_to_quat_wxyz(root[:3, :3]))).numpy()


def add_sky(spec: mujoco.MjSpec) -> None:
    """A bright background for pictures."""
    sky = spec.add_texture(name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky.builtin, sky.width, sky.height = mujoco.mjtBuiltin.mjBUILTIN_GRADIENT, 64, 64
    sky.rgb1, sky.rgb2 = [0.93, 0.95, 0.97], [0.72, 0.77, 0.82]


def _add_room(spec: mujoco.MjSpec, world: World) -> None:
    """Sky, lamp, and a table that reaches 0.5 m beyond the objects, wherever the world's origin is."""
    places = np.array([thing.T_world_object[:2, 3] for thing in world.objects])
    low, high = places.min(axis=0) - 0.5, places.max(axis=0) + 0.5
    (x, y), half, height = (low + high) / 2, (high - low) / 2, world.table_height
    add_sky(spec)
    table = spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=[*half, 0.02])
    table.pos, table.rgba, table.friction = [x, y, height - 0.02], [0.72, 0.66, 0.58, 1], [1.0, 0.005, 0.0001]
    spec.worldbody.add_light(
        name="lamp", pos=[x + 0.4, y - 0.4, height + 1.6], dir=[-0.2, 0.2, -1], diffuse=[0.7] * 3, ambient=[0.35] * 3
    )


def _add_thing(spec: mujoco.MjSpec, thing: WorldObject) -> None:
    if thing.folder is not None:
        body = add_object(spec, thing.folder, thing.name)
    elif thing.balls is not None:
        body = spec.worldbody.add_body(name=thing.name)
        body.add_freejoint(name=f"{thing.name}_free")
        for ball in thing.balls:
            geom = body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[thing.radius, 0, 0], pos=ball)
            geom.condim, geom.rgba = 4, [0.45, 0.6, 0.75, 1]
    else:
        assert thing.hull is not None, "an object has a folder, balls or a hull"
        body = spec.worldbody.add_body(name=thing.name)
        body.add_freejoint(name=f"{thing.name}_free")
        spec.add_mesh(name=thing.name, uservert=thing.hull.astype(np.float32).ravel())
        geom = body.add_geom(name=thing.name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=thing.name)
        geom.condim, geom.density, geom.rgba = 4, 400.0, [0.6, 0.7, 0.8, 1]
    body.pos = thing.T_world_object[:3, 3]
    body.quat = matrix_to_quat_wxyz(torch.tensor(thing.T_world_object[:3, :3])).numpy()


def _add_hand(spec: mujoco.MjSpec, hand: Hand, actuation: HandActuation) -> None:
    mocap = spec.worldbody.add_body(name=MOCAP, mocap=True)
    mocap.pos = [0, 0, 1]
    carrier = spec.worldbody.add_body(name=CARRIER, mass=1.0, inertia=[2e-3] * 3, ipos=[0, 0, 0], pos=[0, 0, 1])
    carrier.add_freejoint(name=f"{CARRIER}_free")
    carrier.add_frame().attach_body(hand.spec().body(hand.root_name), "hand/", "")
    for body in spec.bodies:
        if body.name.startswith("hand/") or body.name == CARRIER:
            body.gravcomp = 1.0
            for geom in body.geoms:
                geom.friction = [actuation.friction, 0.005, 0.0001]
                geom.condim = max(int(geom.condim), 4)
    weld = spec.add_equality(
        name="wrist", type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY, name1=MOCAP, name2=CARRIER
    )
    # anchor, relative position, relative quaternion, torque scale: the preset values are not the identity.
    weld.data[:11] = [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    weld.solref = [0.006, 1.0]
    weld.solimp = [0.98, 0.999, 0.001, 0.5, 2]
    for name in hand.joint_names:
        joint = spec.joint(f"hand/{name}")
        slide = joint.type == mujoco.mjtJoint.mjJNT_SLIDE
        stiffness = actuation.slide_stiffness if slide else actuation.stiffness
        limit = actuation.slide_force_limit if slide else actuation.force_limit
        joint.damping[0] = max(float(joint.damping[0]), 20.0 if slide else actuation.damping)
        servo = spec.add_actuator(name=f"hand/{name}", target=f"hand/{name}", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=stiffness)
        servo.forcelimited, servo.forcerange = True, [-limit, limit]
