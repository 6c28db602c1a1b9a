"""Grasp synthesis: a stable hand configuration on a part of a known object, found by energy and checked in physics.

It stands for the person who shows a grasp. The energy asks every finger to touch the part, the contacts to balance each
other, and the hand to keep out of object, table and itself; then the fingers close in physics until they touch, the six
pushes decide, and of what holds the most robust under noise is taken.
"""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import read_json
from afield.energy import (
    Energy,
    EnergyTerm,
    HandState,
    JointLimitTerm,
    PenetrationTerm,
    SelfPenetrationTerm,
    TableTerm,
)
from afield.errors import AfieldError
from afield.geometry import pose_from, rotation_about_axis, rotation_angle
from afield.hand import Hand, HandPoints
from afield.optimize import AdamConfig, best_distinct, minimize_adam
from afield.scene import Plane
from afield.simulate import GraspTest, GraspTestConfig, World, build_world, simulate_grasp
from afield.simulate.closing import closing_step
from afield.simulate.grasp_test import DIRECTIONS
from afield.simulate.rehearse import reached
from afield.simulate.world import HandActuation, carrier_pose, hand_joint_ids
from afield.starts import palm_towards
from afield.steady import Attempt, SteadyConfig, noisy_hands, steadier

STOP = GraspTestConfig(stop_early=True)
"""The grasp test, ended where it fails."""
ENOUGH_ON_PART = 0.6
"""Share of the contacts on the part that counts as all of them."""
HELD = 2.0
"""What holding adds to the score of a noisy repetition ..."""
MOST = 1.0 + len(DIRECTIONS) / 2 + 2.0 * ENOUGH_ON_PART + HELD
"""... and the highest score of one: lifted, through all pushes, on the part."""


@dataclass(frozen=True)
class Part:
    """A part of an object as it stands in a world: what shall be held."""

    points: Float[Tensor, "n 3"]
    """Points of the whole object's surface, metres, world."""
    normals: Float[Tensor, "n 3"]
    """Unit outward normals."""
    inside: Bool[Tensor, "n"]
    """Which of them belong to the part."""


def find_part(world: World, name: str | None, count: int = 4000) -> Part:
    """The named part of a world's target, from its mesh.

    Args:
        world: with known objects.
        name: one of the parts in the target's `object.json`; None is the whole object.
        count: points on the whole surface.

    Raises:
        AfieldError: the target is not known by its mesh, or has no such part.
    """
    thing = next((thing for thing in world.objects if thing.name == world.target), None)
    if thing is None or thing.folder is None:
        raise AfieldError("Parts are known only of objects with a mesh, in captures that remember their simulation.")
    description = read_json(thing.folder / "object.json")
    boxes = description.get("parts", {})
    if name is not None and name not in boxes:
        raise AfieldError(f"'{thing.name}' has no part '{name}'; it has {', '.join(boxes) or 'none'}.")
    mesh = trimesh.load(thing.folder / description["visual"], force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh), "force='mesh' gives one mesh"
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)[:2]
    inside = np.ones(len(points), dtype=bool) if name is None else in_box(points, boxes[name])
    pose = torch.tensor(thing.T_world_object, dtype=torch.float32)
    local, normals = torch.tensor(points, dtype=torch.float32), torch.tensor(mesh.face_normals[face].copy()).float()
    return Part(local @ pose[:3, :3].T + pose[:3, 3], normals @ pose[:3, :3].T, torch.from_numpy(inside))


def in_box(
    points: Float[np.ndarray, "n 3"], box: Mapping[str, Sequence[float | int]], grow: float = 0.0
) -> Bool[np.ndarray, "n"]:
    """Which points of the object's frame lie in a part's box, or up to `grow` metres outside it."""
    half = np.array(box["size"]) / 2 + grow
    return np.all(np.abs(points - np.array(box["center"])) <= half, axis=-1)


@dataclass(frozen=True)
class SynthesisConfig:
    """How a grasp is searched for."""

    starts: int = 64
    """Random hands around the part."""
    steps: int = 120
    """Adam steps."""
    tried: int = 20
    """Distinct minima that are closed and tested in physics."""
    rounds: int = 4
    """How often the best ones are varied ..."""
    parents: int = 4
    """... this many of them ..."""
    children: int = 4
    """... this many times each."""
    robust: int = 4
    """Grasps that hold and are repeated with noise."""
    trials: int = 6
    """Noisy repetitions of each."""
    max_overlap: float = 0.004
    """The hand may overlap the object this deeply, in metres."""
    steady: SteadyConfig = field(default_factory=SteadyConfig)
    """How the one that is left is made to hold more often."""
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "contact": 20.0,
            "closure": 0.3,
            "penetration": 10.0,
            "self_penetration": 0.3,
            "joint_limits": 1.0,
            "table": 30.0,
        }
    )
    """Of the energy's terms."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True)
class Contact:
    """Where one finger is nearest to the part, for s hand configurations."""

    distance: Float[Tensor, "s"]
    """Metres; 1 cm more where the finger's back is nearest."""
    place: Float[Tensor, "s 3"]
    """Point of the object, world."""
    normal: Float[Tensor, "s 3"]
    """The object's outward normal there."""


@dataclass(frozen=True)
class Fingers:
    """Which query points of a hand belong to which finger, and how strongly each finger presses."""

    points: HandPoints
    index: tuple[Int[Tensor, "_k"], ...]
    strength: tuple[float, ...]
    """The thumb presses as strongly as all others together; without a thumb all press alike. They add up to two."""

    @classmethod
    def of(cls, hand: Hand, points: HandPoints) -> Fingers:
        """The fingers that the hand's description names, or every finger link where it names none."""
        named = hand.description.fingers or {link: (link,) for link in hand.link_names if link != hand.description.base}
        index, thumbs = [], []
        for name, bodies in named.items():
            links = torch.tensor([hand.link_names.index(body) for body in bodies])
            member = torch.isin(points.link, links).nonzero()[:, 0]
            if len(member):
                index.append(member)
                thumbs.append(name == "thumb")
        others = max(1, len(thumbs) - sum(thumbs))
        strength = [1.0 if thumb else 1.0 / others for thumb in thumbs] if any(thumbs) else [2.0 / others] * len(thumbs)
        return cls(points, tuple(index), tuple(strength))

    def contacts(self, state: HandState, part: Part) -> list[Contact]:
        """Where each finger is nearest to the part."""
        goal, normal = part.points[part.inside], part.normals[part.inside]
        turned = state.hand.link_poses(state.beta)[..., :3, :3]
        found = []
        for index in self.index:
            distance, nearest = torch.cdist(state.points_world[:, index], goal).min(dim=-1)
            pad = (turned[:, self.points.link[index]] @ self.points.normals_link[index][..., None])[..., 0]
            cost = distance + 0.005 * (1.0 + (pad * normal[nearest]).sum(dim=-1))
            best = cost.argmin(dim=-1, keepdim=True)
            where = nearest.gather(1, best)[:, 0]
            found.append(Contact(cost.gather(1, best)[:, 0], goal[where], normal[where]))
        return found


@dataclass(frozen=True)
class ContactTerm:
    """How far the fingers are from the part."""

    part: Part
    fingers: Fingers

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Mean distance over the fingers in metres."""
        return torch.stack([contact.distance for contact in self.fingers.contacts(state, self.part)]).mean(dim=0)


@dataclass(frozen=True)
class ClosureTerm:
    """Force closure: the fingers' pushes shall neither move nor turn the object.

    The norm of the summed wrench of frictionless contacts, with torques about their middle divided by 5 cm. Its gradient
    flows through the fingers' distances only, weighted so that a finger far from the part hardly counts.
    """

    part: Part
    fingers: Fingers

    def __call__(self, state: HandState) -> Float[Tensor, "s"]:
        """Summed norm of force and torque; no unit."""
        contacts = self.fingers.contacts(state, self.part)
        near = [w / (1.0 + c.distance / 0.02)[:, None] for w, c in zip(self.fingers.strength, contacts, strict=True)]
        total = torch.stack(near).sum(dim=0)
        middle = torch.stack([w * c.place for w, c in zip(near, contacts, strict=True)]).sum(dim=0) / total
        force = torch.stack([w * c.normal for w, c in zip(near, contacts, strict=True)]).sum(dim=0) / total
        arm = [torch.linalg.cross(c.place - middle, c.normal) for c in contacts]
        torque = torch.stack([w * a for w, a in zip(near, arm, strict=True)]).sum(dim=0) / total / 0.05
        return force.norm(dim=-1) + torque.norm(dim=-1)


@dataclass(frozen=True)
class Synthesized:
    """A grasp that holds."""

    beta: Float[Tensor, "d"]
    """Hand configuration in the world."""
    robustness: float
    """Share of noisy repetitions that hold."""
    test: GraspTest
    """The verdict without noise."""


def synthesize_grasp(
    world: World, part: Part, hand: Hand, config: SynthesisConfig | None = None, *, progress: bool = True
) -> Synthesized:
    """Find a stable grasp on a part of the world's target.

    Args:
        world: with known objects; the target is what is held.
        part: its surface, and where to hold it.
        hand: the hand.
        config: see `SynthesisConfig`.
        progress: show progress bars.

    Raises:
        AfieldError: no candidate held in physics.
    """
    config = config or SynthesisConfig()
    generator = torch.Generator().manual_seed(config.seed)
    energy = synthesis_energy(world, part, hand, config)
    starts = _starts(part, hand, config.starts, generator)
    with tqdm(total=config.steps, desc="synthesize", unit="step", disable=not progress) as bar:
        trace = minimize_adam(energy, starts, AdamConfig(config.steps, 1e-2, 1e-3), on_step=bar.update)
    minima = hand.clamp(trace.final[_distinct(hand, trace.final, trace.final_energy, config.tried)])
    pool = [
        _try(world, part, hand, beta)
        for beta in tqdm(minima, desc="close and test", unit="grasp", disable=not progress)
    ]
    # Hands that nearly hold are often a few millimetres away from those that do.
    for _ in tqdm(range(config.rounds), desc="improve", unit="round", disable=not progress):
        if sum(candidate.holds for candidate in pool) >= config.robust:
            break
        pool.sort(key=lambda candidate: -candidate.score)
        parents = pool[: config.parents] * config.children
        pool += [_try(world, part, hand, _noisy(hand, parent.beta, generator)) for parent in parents]
    held = [candidate for candidate in pool if candidate.holds and candidate.overlap < config.max_overlap]
    if not held:
        raise AfieldError(
            f"None of {len(pool)} candidates held '{world.target}' on this part in physics; try another seed, more "
            "starts, or another part."
        )
    held.sort(key=lambda candidate: -candidate.score)
    held = held[: config.robust]
    shares = [
        robustness(world, hand, candidate.beta, part.points, config.trials, config.seed)
        for candidate in tqdm(held, desc="repeat with noise", unit="grasp", disable=not progress)
    ]
    best = held[max(range(len(held)), key=lambda i: shares[i])]
    beta = steady_grasp(world, part, hand, best.beta, config, progress=progress)
    share = robustness(world, hand, beta, part.points, 2 * config.trials, config.seed + 1)
    return Synthesized(beta, share, simulate_grasp(world, hand, beta, part.points, STOP, progress=False))


def steady_grasp(
    world: World, part: Part, hand: Hand, beta: Float[Tensor, "d"], config: SynthesisConfig, *, progress: bool = True
) -> Float[Tensor, "d"]:
    """A grasp nearby that holds the part in more noisy repetitions.

    Args:
        world: with known objects.
        part: what is held.
        hand: the hand.
        beta: the grasp to begin with.
        config: its `steady` says how long to search.
        progress: show a progress bar.
    """

    def attempt(varied: Float[Tensor, "d"]) -> Attempt:
        """A noisy repetition in physics."""
        made = _test(world, part, hand, varied)
        return Attempt(made.test.success, made.score + HELD * made.test.success)

    def admit(varied: Float[Tensor, "d"]) -> bool:
        """Whether the grasp itself holds the part and hardly overlaps it."""
        made = _test(world, part, hand, varied)
        return made.holds and made.overlap < config.max_overlap

    return steadier(hand, beta, attempt, admit, MOST, config.steady, progress=progress)


@dataclass(frozen=True)
class _Candidate:
    beta: Float[Tensor, "d"]
    test: GraspTest
    on_part: float

    @property
    def holds(self) -> bool:
        return self.test.success and self.on_part >= 0.5

    @property
    def overlap(self) -> float:
        return self.test.initial_penetration

    @property
    def score(self) -> float:
        """How far it got in the test, more on the part than elsewhere."""
        return reached(self.test) + 2.0 * min(self.on_part, ENOUGH_ON_PART)


def _try(world: World, part: Part, hand: Hand, beta: Float[Tensor, "d"]) -> _Candidate:
    return _test(world, part, hand, close_fingers(world, hand, beta, part.points))


def _test(world: World, part: Part, hand: Hand, beta: Float[Tensor, "d"]) -> _Candidate:
    test = simulate_grasp(world, hand, beta, part.points, STOP, progress=False)
    pose = torch.tensor(next(o for o in world.objects if o.name == world.target).T_world_object, dtype=torch.float32)
    contacts = torch.tensor(test.contacts, dtype=torch.float32) @ pose[:3, :3].T + pose[:3, 3]
    near = torch.cdist(contacts, part.points[part.inside]).amin(dim=-1) < 0.01 if len(contacts) else torch.zeros(1)
    return _Candidate(beta, test, float(near.float().mean()))


def _noisy(hand: Hand, beta: Float[Tensor, "d"], generator: torch.Generator) -> Float[Tensor, "d"]:
    """A configuration nearby: 5 mm, 5 degrees, 0.1 rad in the joints."""
    scale = torch.full_like(beta, 0.1)
    scale[:3] = 0.005
    return hand.clamp(beta + scale * torch.randn(len(beta), generator=generator))


def synthesis_energy(world: World, part: Part, hand: Hand, config: SynthesisConfig) -> Energy:
    """The energy of a candidate: contact on the part, balance, no overlap, joints within limits, above the table."""
    points = hand.sample_surface(256, seed=config.seed)
    fingers = Fingers.of(hand, points)
    thinned = part.points[:: max(1, len(part.points) // 800)]
    terms: dict[str, EnergyTerm] = {
        "contact": ContactTerm(part, fingers),
        "closure": ClosureTerm(part, fingers),
        "penetration": PenetrationTerm(thinned),
        "self_penetration": SelfPenetrationTerm(),
        "joint_limits": JointLimitTerm(),
        "table": TableTerm(Plane(torch.tensor([0.0, 0.0, 1.0]), world.table_height)),
    }
    return Energy(hand, points, terms, config.weights)


def close_fingers(world: World, hand: Hand, beta: Float[Tensor, "d"], surface: Float[Tensor, "n 3"]) -> Tensor:
    """Close the fingers softly with all objects held still; contact stops every finger where it touches.

    Args:
        world: the objects.
        hand: the hand.
        beta: the configuration to begin with; its fingers are opened by 1 cm first.
        surface: the object's points, which say where the fingers close to.

    Returns:
        The same palm pose with the joints at which everything has come to rest.
    """
    model = build_world(world, hand, HandActuation(stiffness=1.0, damping=0.1, force_limit=0.15))
    data = mujoco.MjData(model)
    still = data.qpos.copy()
    joints = model.jnt_qposadr[hand_joint_ids(model, hand)]
    free = [model.joint(f"{thing.name}_free") for thing in world.objects]
    base = int(model.joint("hand_carrier_free").qposadr[0])
    pose = carrier_pose(hand, beta)
    opened, goal = closing_step(hand, beta, surface, -0.01), closing_step(hand, beta, surface, 0.03)
    still[base : base + 7], still[joints] = pose, opened.numpy()
    data.qpos[:] = still
    data.mocap_pos[0], data.mocap_quat[0] = pose[:3], pose[3:]
    steps = 900
    for step in range(steps):
        share = min(1.0, step / (0.7 * steps))
        data.ctrl[:] = (opened + share * (goal - opened)).numpy()
        mujoco.mj_step(model, data)
        for joint in free:
            data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = still[joint.qposadr[0] : joint.qposadr[0] + 7]
            data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0
    return hand.clamp(torch.cat((beta[:9], torch.tensor(data.qpos[joints], dtype=torch.float32))))


def robustness(
    world: World, hand: Hand, beta: Float[Tensor, "d"], surface: Float[Tensor, "n 3"], trials: int, seed: int
) -> float:
    """Share of noisy repetitions (4 mm, 3 degrees, 0.05 rad in the joints) that hold."""
    tests = [
        simulate_grasp(world, hand, noisy, surface, STOP, progress=False)
        for noisy in noisy_hands(hand, beta, trials, seed)
    ]
    return sum(test.success for test in tests) / trials


def _starts(part: Part, hand: Hand, count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
    """Half-open hands whose palm looks at a random point of the part from above or the side, just not touching."""
    goal = part.points[part.inside]
    rotation = palm_towards(hand, count, generator)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    rotation = rotation_about_axis(axis, 0.3 * torch.rand(count, generator=generator)) @ rotation
    aim = goal[torch.randint(len(goal), (count,), generator=generator)]
    aim = 0.5 * aim + 0.5 * goal.mean(dim=0)
    ahead = hand.palm_center + 0.03 * hand.finger_direction + 0.03 * hand.palm_normal
    joints = hand.neutral() + 0.15 * torch.randn(count, len(hand.joint_names), generator=generator)
    joints = joints.clamp(hand.limits[:, 0], hand.limits[:, 1])
    back = rotation @ hand.palm_normal
    for _ in range(12):
        beta = hand.join(pose_from(rotation, aim - rotation @ ahead), joints)
        inside = hand.signed_distance(beta, part.points[::8]).amin(dim=-1) < 0.0
        if not bool(inside.any()):
            break
        aim = torch.where(inside[:, None], aim - 0.01 * back, aim)
    return hand.join(pose_from(rotation, aim - rotation @ ahead), joints)


def _distinct(hand: Hand, beta: Float[Tensor, "s d"], energy: Float[Tensor, "s"], keep: int) -> Tensor:
    pose, _ = hand.split(beta)
    apart = torch.cdist(pose[:, :3, 3], pose[:, :3, 3])
    turn = rotation_angle(pose[:, None, :3, :3], pose[None, :, :3, :3])
    return best_distinct(energy, apart + 0.02 * turn, keep, apart=0.01)
