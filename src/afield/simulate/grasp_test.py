"""The grasp test: approach, close, squeeze, lift 10 cm, then six pushes (the paper's real-robot test, in physics)."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import load_artifact, save_artifact
from afield.errors import AfieldError
from afield.geometry import rotation_angle
from afield.hand import Hand
from afield.simulate.closing import closing_step, pregrasp_and_lift
from afield.simulate.world import CARRIER, MOCAP, HandActuation, World, build_world, carrier_pose, hand_joint_ids

logger = logging.getLogger(__name__)

DIRECTIONS = {
    "+x": (1.0, 0.0, 0.0), "-x": (-1.0, 0.0, 0.0), "+y": (0.0, 1.0, 0.0),
    "-y": (0.0, -1.0, 0.0), "+z": (0.0, 0.0, 1.0), "-z": (0.0, 0.0, -1.0),
}  # fmt: skip


@dataclass(frozen=True)
class GraspTestConfig:
    """What a grasp must survive."""

    lift: float = 0.10
    """How far the hand is raised, in metres."""
    lifted: float = 0.05
    """How far the object must rise with it, in metres."""
    push: float = 10.0
    """Force of a push per mass, in N/kg; gravity acts all the while."""
    push_seconds: float = 2.0
    """Length of a push."""
    max_displacement: float = 0.05
    """The object may move this far in the hand during a push, in metres."""
    max_rotation: float = math.radians(15.0)
    """The object may turn this far in the hand during a push, in radians."""
    max_penetration: float = 0.01
    """The grasp may overlap the object this deeply at first, in metres."""
    open_by: float = 0.03
    """The pregrasp's fingers are this far away from the object compared with the grasp, in metres."""
    back_off: float = 0.08
    """The pregrasp is this far behind the grasp along the palm's normal, in metres."""
    squeeze: float = 0.02
    """The fingers' targets lie this far inside the object, in metres."""
    stop_early: bool = False
    """End at the first condition that fails; the later ones are then not measured."""
    actuation: HandActuation = field(default_factory=HandActuation)
    """How the hand is driven."""


@dataclass(frozen=True)
class GraspTest:
    """The verdict and its reasons."""

    success: bool
    failure: str | None
    """Which condition failed, in one sentence."""
    target: str
    """The object that was to be held."""
    geometry: str
    """Where the objects' shapes come from: "known" or "observed"."""
    initial_penetration: float
    """Deepest overlap of hand and object at the grasp, in metres."""
    lift_height: float
    """How far the object rose, in metres."""
    pushes: dict[str, dict[str, Any]]
    """For every direction: displacement (metres), rotation (radians), ok."""
    frames: Float[np.ndarray, "f q"]
    """Recorded states (MuJoCo's qpos), 25 per second, for replay."""
    contacts: Float[np.ndarray, "c 3"] = field(default_factory=lambda: np.zeros((0, 3)))
    """Where the lifted object touches the hand, in metres in the object's frame."""
    lifted_frame: int = 0
    """The first frame of the pushes."""
    limits: dict[str, float] = field(default_factory=dict)
    """What was allowed: penetration, lift, displacement (metres), rotation (radians)."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the frames."""
        content = asdict(self)
        for name in ("frames", "contacts"):
            content.pop(name)
        return content

    def save(self, folder: Path) -> None:
        """Write verdict and frames as an artifact folder."""
        save_artifact(
            folder,
            "grasp-test",
            {"frames": torch.from_numpy(self.frames), "contacts": torch.from_numpy(self.contacts)},
            {"verdict": self.to_json()},
        )

    @classmethod
    def load(cls, folder: Path) -> GraspTest:
        """Read a test back."""
        tensors, header = load_artifact(folder, "grasp-test", ("frames", "contacts"))
        try:
            return cls(**header["verdict"], frames=tensors["frames"].numpy(), contacts=tensors["contacts"].numpy())
        except (KeyError, TypeError) as error:
            raise AfieldError(f"The verdict in {folder} is incomplete: {error}.") from error


def simulate_grasp(
    world: World,
    hand: Hand,
    beta: Float[Tensor, "d"],
    scene_points: Float[Tensor, "n 3"],
    config: GraspTestConfig | None = None,
    *,
    progress: bool = True,
) -> GraspTest:
    """Test a grasp in physics.

    The hand comes from its pregrasp, closes to the grasp, squeezes, lifts, and holds against a push of 10 N per
    kilogram along each of the six axes of the world, each from the same lifted state.

    Args:
        world: table and objects.
        hand: the hand.
        beta: the grasp, in the world frame.
        scene_points: the observed points; pregrasp and squeeze are derived from them and from `beta` alone.
        config: see `GraspTestConfig`.
        progress: show a progress bar.
    """
    config = config or GraspTestConfig()
    model = build_world(world, hand, config.actuation)
    episode = _Episode(model, hand, beta.detach().cpu().float(), scene_points.cpu().float(), config)
    target = episode.find_target(world)
    penetration = episode.penetration(target)
    contacts = np.zeros((0, 3))
    bar = tqdm(total=6 + len(DIRECTIONS), desc="physics", unit="phase", disable=not progress)
    with bar, _warnings_to_log():
        pushes: dict[str, dict[str, Any]] = {}
        lift_height, lifted_frame = 0.0, 0
        if not (config.stop_early and penetration > config.max_penetration):
            lift_height = episode.pick_up(target, bar.update)
            lifted_frame = len(episode.frames)
            contacts = episode.contacts(target)
        for name, direction in DIRECTIONS.items():
            if config.stop_early and _judge(config, penetration, lift_height, pushes):
                break
            pushes[name] = episode.push(target, np.array(direction))
            bar.update()
    failure = episode.instability() or _judge(config, penetration, lift_height, pushes)
    limits = {
        "penetration": config.max_penetration,
        "lift": config.lifted,
        "displacement": config.max_displacement,
        "rotation": config.max_rotation,
    }
    return GraspTest(
        success=failure is None,
        failure=failure,
        target=target,
        geometry=world.geometry,
        initial_penetration=penetration,
        lift_height=lift_height,
        pushes=pushes,
        frames=np.array(episode.frames).reshape(-1, model.nq),
        lifted_frame=lifted_frame,
        contacts=contacts,
        limits=limits,
    )


@contextmanager
def _warnings_to_log() -> Iterator[None]:
    """Keep MuJoCo from writing its warnings to a MUJOCO_LOG.TXT in the working directory."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: logger.debug("MuJoCo: %s", message))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _judge(config: GraspTestConfig, penetration: float, lift: float, pushes: dict[str, dict[str, Any]]) -> str | None:
    """The first condition that failed, as a sentence."""
    if penetration > config.max_penetration:
        return (
            f"the hand overlaps the object by {penetration * 100:.1f} cm at the grasp "
            f"(limit {config.max_penetration * 100:.0f} cm)."
        )
    if lift < config.lifted:
        return f"the object rose by {lift * 100:.1f} cm of {config.lift * 100:.0f} cm when the hand was lifted."
    for name, push in pushes.items():
        if push["displacement"] > config.max_displacement:
            return (
                f"the push along {name} moved the object by {push['displacement'] * 100:.1f} cm "
                f"(limit {config.max_displacement * 100:.0f} cm)."
            )
        if push["rotation"] > config.max_rotation:
            return (
                f"the push along {name} turned the object by {math.degrees(push['rotation']):.0f} degrees "
                f"(limit {math.degrees(config.max_rotation):.0f})."
            )
    return None


class _Episode:
    """One simulation: its state, the hand's targets, and the frames that are recorded."""

    def __init__(
        self, model: mujoco.MjModel, hand: Hand, beta: Tensor, scene_points: Tensor, config: GraspTestConfig
    ) -> None:
        self.model, self.hand, self.beta, self.points, self.config = model, hand, beta, scene_points, config
        self.data = mujoco.MjData(model)
        self.frames: list[np.ndarray] = []
        joints = hand_joint_ids(model, hand)
        self.qpos = model.jnt_qposadr[joints]
        self.controls = np.array([model.actuator(f"hand/{name}").id for name in hand.joint_names])
        self.mocap = int(model.body(MOCAP).mocapid[0])
        self.hand_geoms = [
            g for g in range(model.ngeom) if model.body(int(model.geom_bodyid[g])).name.startswith("hand/")
        ]
        self.carrier = model.body(CARRIER).id
        self.carrier_qpos = int(model.jnt_qposadr[model.body_jntadr[self.carrier]])
        mujoco.mj_resetData(model, self.data)
        self.initial = self.data.qpos.copy()

    def find_target(self, world: World) -> str:
        """The object to be grasped: the world's own, or the one nearest to the palm."""
        if world.target is not None:
            return world.target
        palm = (self.hand.split(self.beta)[0] @ torch.cat((self.hand.palm_center.cpu(), torch.ones(1))))[:3].numpy()
        return min(world.objects, key=lambda o: float(np.linalg.norm(o.T_world_object[:3, 3] - palm))).name

    def penetration(self, target: str) -> float:
        """Deepest overlap of hand and target at the grasp itself, in metres."""
        self._put_hand(self.beta)
        mujoco.mj_forward(self.model, self.data)
        body = self.model.body(target).id
        deepest = 0.0
        for contact in self.data.contact[: self.data.ncon]:
            geoms = {int(contact.geom1), int(contact.geom2)}
            bodies = {int(self.model.geom_bodyid[g]) for g in geoms}
            if body in bodies and geoms & set(self.hand_geoms):
                deepest = max(deepest, -float(contact.dist))
        return deepest

    def pick_up(self, target: str, tick: Callable[[], object]) -> float:
        """Pregrasp, grasp, squeeze, lift; returns how far the target rose."""
        hand, config, beta = self.hand, self.config, self.beta
        pose, joints = hand.split(beta)
        opened = closing_step(hand, beta, self.points, -config.open_by)
        squeezed = closing_step(hand, beta, self.points, config.squeeze)
        back, up = pregrasp_and_lift(hand, pose, config.back_off, config.lift)
        self.data.qpos[:] = self.initial
        self._put_hand(hand.join(back, opened))
        mujoco.mj_forward(self.model, self.data)
        before = float(self.data.xpos[self.model.body(target).id][2])
        way = [
            (hand.join(back, opened), 0.2),
            (hand.join(pose, opened), 1.0),
            (hand.join(pose, joints), 0.6),
            (hand.join(pose, squeezed), 0.6),
            (hand.join(up, squeezed), 1.0),
            (hand.join(up, squeezed), 0.5),
        ]
        start = way[0][0]
        for goal, seconds in way:
            self._move(start, goal, seconds)
            start = goal
            tick()
        self.held, self.lifted = start, self._state()
        return float(self.data.xpos[self.model.body(target).id][2]) - before

    def push(self, target: str, direction: Float[np.ndarray, "3"]) -> dict[str, Any]:
        """Push the target from the lifted state; how far it moved and turned in the hand at most."""
        self._restore(self.lifted)
        body = self.model.body(target).id
        force = self.config.push * float(self.model.body_mass[body]) * direction
        before = self._in_hand(body)
        moved = turned = 0.0
        steps = round(self.config.push_seconds / self.model.opt.timestep)
        for step in range(steps):
            self.data.xfrc_applied[body, :3] = force
            mujoco.mj_step(self.model, self.data)
            if step % 10 == 9:
                now = self._in_hand(body)
                moved = max(moved, float(np.linalg.norm(now[:3, 3] - before[:3, 3])))
                turned = max(turned, float(rotation_angle(torch.tensor(now[:3, :3]), torch.tensor(before[:3, :3]))))
            self._record(step)
        self.data.xfrc_applied[body] = 0.0
        ok = moved <= self.config.max_displacement and turned <= self.config.max_rotation
        return {"displacement": moved, "rotation": turned, "ok": ok}

    def contacts(self, target: str) -> Float[np.ndarray, "c 3"]:
        """Where the target touches the hand now, in the target's frame."""
        body = self.model.body(target).id
        found = []
        for contact in self.data.contact[: self.data.ncon]:
            geoms = {int(contact.geom1), int(contact.geom2)}
            if body in {int(self.model.geom_bodyid[g]) for g in geoms} and geoms & set(self.hand_geoms):
                found.append(self.data.xmat[body].reshape(3, 3).T @ (contact.pos - self.data.xpos[body]))
        return np.array(found).reshape(-1, 3)

    def _in_hand(self, body: int) -> Float[np.ndarray, "4 4"]:
        """Pose of a body in the carrier's frame."""
        poses = []
        for index in (self.carrier, body):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = self.data.xmat[index].reshape(3, 3), self.data.xpos[index]
            poses.append(pose)
        return np.linalg.inv(poses[0]) @ poses[1]

    def _put_hand(self, beta: Float[Tensor, "d"]) -> None:
        """Set the hand's state and targets at once."""
        pose = carrier_pose(self.hand, beta)
        self.data.qpos[self.carrier_qpos : self.carrier_qpos + 7] = pose
        self.data.qpos[self.qpos] = beta[9:].numpy()
        self._aim(pose, beta[9:].numpy())

    def _aim(self, pose: Float[np.ndarray, "7"], joints: Float[np.ndarray, "j"]) -> None:
        self.data.mocap_pos[self.mocap], self.data.mocap_quat[self.mocap] = pose[:3], pose[3:]
        self.data.ctrl[self.controls] = joints

    def _move(self, start: Float[Tensor, "d"], goal: Float[Tensor, "d"], seconds: float) -> None:
        """Drive the targets from one configuration to another, smoothly; the palm's rotation does not change."""
        first, last = carrier_pose(self.hand, start), carrier_pose(self.hand, goal)
        if float(first[3:] @ last[3:]) < 0:
            last[3:] *= -1
        steps = round(seconds / self.model.opt.timestep)
        share = np.arange(1, steps + 1)[:, None] / steps
        share = share * share * (3 - 2 * share)
        poses = first + share * (last - first)
        poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=-1, keepdims=True)
        joints = (start[9:] + torch.from_numpy(share).to(start) * (goal[9:] - start[9:])).numpy()
        for step, (pose, angles) in enumerate(zip(poses, joints, strict=True)):
            self._aim(pose, angles)
            mujoco.mj_step(self.model, self.data)
            self._record(step)

    def instability(self) -> str | None:
        """A sentence if the numbers exploded. MuJoCo then starts over from its first state, which must not pass for a grasp."""
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        if any(self.data.warning[kind].number for kind in kinds):
            return "the physics became unstable; the hand overlaps an object or the table too deeply."
        return None

    def _record(self, step: int) -> None:
        if step % 20 == 0:
            self.frames.append(self.data.qpos.copy())

    def _state(self) -> np.ndarray:
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def _restore(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)
