"""A trajectory of gripper poses as a path of joint angles: inverse kinematics by mink, and where the arm had best stand."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation, Slerp

from afield.capture.furniture import BODY, PART
from afield.errors import AfieldError
from afield.simulate.robot import ARM, GRIPPER, TCP, Robot, place_robot

Base = tuple[float, float, float, float]
"""Where an arm stands: x, y, z in metres and yaw in radians, world."""


@dataclass(frozen=True)
class PathConfig:
    """How closely an arm must follow."""

    position_tolerance: float = 0.01
    """Metres; a pose that is missed by more is out of reach."""
    rotation_tolerance: float = math.radians(10.0)
    """Radians."""
    step: float = 0.015
    """Between two poses of the path, in metres."""
    turn: float = math.radians(4.0)
    """Between two poses of the path, in radians."""
    margin: float = 0.2
    """A base is good enough when no joint comes closer to its limit than this, in radians."""
    overlap: float = 0.004
    """The arm may overlap table, furniture or itself by this much on the way, in metres."""


@dataclass(frozen=True)
class ArmPath:
    """Joint angles along a trajectory."""

    base: Base
    """Where the arm stands."""
    joints: Float[np.ndarray, "p j"]
    """Radians, from the first pose to the last that is reached."""
    waypoint: Int[np.ndarray, "p"]
    """The waypoint of the trajectory that a pose leads to."""
    distance: Float[np.ndarray, "p"]
    """How far the gripper moves to a pose from the one before, in metres."""
    miss: str | None
    """The first waypoint that is not reached, in words."""
    margin: float
    """Smallest distance of a joint to its limit, in radians; negative where the arm collides."""

    @property
    def rank(self) -> tuple[int, float]:
        """The greater the better: how far it gets, then how freely."""
        return (len(self.joints) if self.miss is not None else 1 << 30), self.margin


def densify(
    poses: Float[np.ndarray, "n 4 4"], config: PathConfig
) -> tuple[Float[np.ndarray, "p 4 4"], Int[np.ndarray, "p"]]:
    """Poses in small steps, turned about the shortest way, and the waypoint that each leads to."""
    found, leads = [poses[0]], [0]
    for index, (first, last) in enumerate(itertools.pairwise(poses), start=1):
        turns = Rotation.from_matrix(np.stack((first[:3, :3], last[:3, :3])))
        angle = float((turns[0].inv() * turns[1]).magnitude())
        far = float(np.linalg.norm(last[:3, 3] - first[:3, 3]))
        count = max(1, math.ceil(far / config.step), math.ceil(angle / config.turn))
        for share in np.arange(1, count + 1) / count:
            pose = np.eye(4)
            pose[:3, :3] = Slerp([0.0, 1.0], turns)(share).as_matrix()
            pose[:3, 3] = first[:3, 3] + share * (last[:3, 3] - first[:3, 3])
            found.append(pose)
            leads.append(index)
    return np.stack(found), np.array(leads)


def base_candidates(poses: Float[np.ndarray, "n 4 4"], radii: Sequence[float] = (0.5, 0.6, 0.42, 0.7)) -> list[Base]:
    """Places on the table around a trajectory, those from which the gripper's approach looks straight ahead first.

    Args:
        poses: of the gripper, world.
        radii: distances of the base from the middle of the trajectory, in metres.
    """
    middle = poses[:, :3, 3].mean(axis=0)
    ahead = poses[:, :2, 2].mean(axis=0)
    if float(np.linalg.norm(ahead)) < 0.2:  # an approach from above says nothing about the side
        ahead = poses[:, :2, 0].mean(axis=0)
    heading = math.atan2(float(ahead[1]), float(ahead[0]))
    found = []
    for degrees in (0.0, 25.0, -25.0, 50.0, -50.0, 75.0, -75.0):
        yaw = heading + math.radians(degrees)
        found += [(float(middle[0] - r * math.cos(yaw)), float(middle[1] - r * math.sin(yaw)), 0.0, yaw) for r in radii]
    return found


class PathFinder:
    """Finds joint angles along trajectories in one compiled world with table, furniture and robot."""

    def __init__(self, model: mujoco.MjModel, robot: Robot, config: PathConfig | None = None) -> None:
        if importlib.util.find_spec("mink") is None:
            raise AfieldError("Inverse kinematics needs mink: pip install 'afield[arm]'")
        self.model, self.robot, self.config = model, robot, config or PathConfig()
        self.ids = [j for j in range(model.njnt) if model.joint(j).name.startswith(ARM)]
        self.names = tuple(model.joint(j).name.removeprefix(ARM) for j in self.ids)
        self.qpos = model.jnt_qposadr[self.ids]
        limited = model.jnt_limited[self.ids].astype(bool)
        ranges = model.jnt_range[self.ids]
        self.low = np.where(limited, ranges[:, 0], -math.inf)
        self.high = np.where(limited, ranges[:, 1], math.inf)
        names = [model.body(int(body)).name for body in model.geom_bodyid]
        self.own = np.array([name.startswith((ARM, GRIPPER)) for name in names])
        self.part = np.array([name == f"{BODY}_{PART}" for name in names])

    def find(
        self, poses: Float[np.ndarray, "n 4 4"], labels: Sequence[str], bases: Sequence[Base], opened: float
    ) -> ArmPath:
        """The best path over all bases and both ways to hold a gripper of two equal fingers.

        Args:
            poses: of the gripper, world.
            labels: of the waypoints, for the sentence about a miss.
            bases: where the arm may stand; the first that is good enough is taken.
            opened: the furniture's joint position, for collisions.
        """
        dense, leads = densify(poses, self.config)
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        best: ArmPath | None = None
        for base in bases:
            place_robot(self.model, np.array(base[:3]), base[3])
            for goals in (dense, dense @ flip):
                path = self._follow(goals, leads, labels, base, opened)
                if best is None or path.rank > best.rank:
                    best = path
                if path.miss is None and path.margin >= self.config.margin:
                    return path
        if best is None:
            raise AfieldError("There is no place for the arm to stand; give at least one base.")
        return best

    def _follow(
        self,
        goals: Float[np.ndarray, "p 4 4"],
        leads: Int[np.ndarray, "p"],
        labels: Sequence[str],
        base: Base,
        opened: float,
    ) -> ArmPath:
        import mink

        task = mink.FrameTask(GRIPPER + TCP, "site", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-4)
        posture = mink.PostureTask(self.model, cost=1e-3)
        configuration = mink.Configuration(self.model, self._home(goals[0], base, opened))
        posture.set_target(configuration.q)
        limits = [mink.ConfigurationLimit(self.model)]
        found, miss = [], None
        margin = math.inf
        for index, goal in enumerate(goals):
            quat = np.zeros(4)
            mujoco.mju_mat2Quat(quat, goal[:3, :3].flatten())
            task.set_target(mink.SE3(np.concatenate((quat, goal[:3, 3]))))
            for _ in range(80 if index == 0 else 8):
                try:
                    velocity = mink.solve_ik(configuration, [task, posture], 1.0, "daqp", damping=1e-4, limits=limits)
                except (mink.NoSolutionFound, mink.NotWithinConfigurationLimits):
                    break
                configuration.integrate_inplace(velocity, 1.0)
                error = task.compute_error(configuration)
                far, turned = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
                if far < 1e-3 and turned < 0.01:
                    break
            error = task.compute_error(configuration)
            far, turned = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
            if far > self.config.position_tolerance or turned > self.config.rotation_tolerance:
                at = int(leads[index])
                miss = f"waypoint {at} ('{labels[at]}') is missed by {far * 100:.1f} cm and {math.degrees(turned):.0f} degrees"
                break
            q = configuration.q[self.qpos].copy()
            found.append(q)
            margin = min(margin, float((q - self.low).min()), float((self.high - q).min()))
            if self._collides(configuration.data):
                margin = min(margin, -1.0)
        moved = np.linalg.norm(np.diff(goals[:, :3, 3], axis=0, prepend=goals[:1, :3, 3]), axis=1)
        joints = np.array(found).reshape(-1, len(self.ids))
        return ArmPath(base, joints, leads[: len(found)], moved[: len(found)], miss, margin)

    def _home(self, goal: Float[np.ndarray, "4 4"], base: Base, opened: float) -> Float[np.ndarray, "n"]:
        """Where the search begins: the arm's resting pose, turned towards the first pose."""
        q = self.model.qpos0.copy()
        home = self.robot.arm.home
        q[self.qpos] = [home.get(name, 0.0) for name in self.names]
        x, y = goal[:2, 3] - np.array(base[:2])
        turn = math.atan2(float(y), float(x)) - base[3]
        q[self.qpos[0]] += math.remainder(turn, 2 * math.pi)
        q[self.qpos] = np.clip(q[self.qpos], self.low + 0.01, self.high - 0.01)
        for name in self.robot.fingers:
            q[self.model.joint(GRIPPER + name).qposadr[0]] = self.robot.opening / 4
        for joint in range(self.model.njnt):
            if self.model.joint(joint).name.startswith(BODY):
                q[self.model.jnt_qposadr[joint]] = opened
        return q

    def _collides(self, data: mujoco.MjData) -> bool:
        """Whether the robot overlaps the table, itself, or what stands still of the furniture."""
        mujoco.mj_forward(self.model, data)
        for contact in data.contact[: data.ncon]:
            pair = [int(contact.geom1), int(contact.geom2)]
            if contact.dist < -self.config.overlap and self.own[pair].any() and not self.part[pair].any():
                return True
        return False
