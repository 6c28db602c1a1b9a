"""One run of a robot along a path of joint angles: servo targets, fingers, and what is measured on the way."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
from jaxtyping import Float

from afield.capture.furniture import BODY, JOINT, PART
from afield.simulate.arm_path import ArmPath, Base, PathConfig
from afield.simulate.robot import ARM, GRIPPER, TCP, Grip, Robot

FRAME_SECONDS = 0.04
"""Between two recorded states."""
CONTROL_STEPS = 5
"""Steps of physics between two commands to the servos."""


@dataclass(frozen=True)
class ExecutionConfig:
    """How a trajectory is performed and judged."""

    threshold: float | None = None
    """How far the joint must move, in radians or metres; `way_to_go` if None."""
    base: Base | None = None
    """Where the arm stands: x, y, z in metres and yaw in radians; the best of several places in front if None."""
    speed: float = 0.12
    """Of the gripper along its path, in metres per second."""
    joint_speed: float = 0.8
    """Largest of any joint, in radians per second; a third of the Panda's limit."""
    grip_seconds: float = 0.6
    """For opening or closing the fingers."""
    settle_seconds: float = 0.4
    """Before the verdict."""
    max_slip: float = 0.025
    """A gripper that moved farther than this along the part slipped, in metres."""
    max_behind: float = 0.03
    """A gripper that stays farther than this behind its command is blocked, in metres."""
    grip: Grip = field(default_factory=Grip)
    """Force and friction of the fingers."""
    path: PathConfig = field(default_factory=PathConfig)
    """How closely the arm must follow."""


class Episode:
    """One simulation: its state, the servos' targets, and what is recorded."""

    def __init__(self, model: mujoco.MjModel, robot: Robot, config: ExecutionConfig, opened: float) -> None:
        self.model, self.robot, self.config = model, robot, config
        self.data, self.wanted = mujoco.MjData(model), mujoco.MjData(model)
        self.arm = np.array([i for i in range(model.nu) if model.actuator(i).name.startswith(ARM)])
        self.fingers = np.array([model.actuator(GRIPPER + name).id for name in robot.fingers])
        self.arm_qpos = model.jnt_qposadr[model.actuator_trnid[self.arm, 0]]
        self.finger_qpos = model.jnt_qposadr[model.actuator_trnid[self.fingers, 0]]
        self.tcp = model.site(GRIPPER + TCP).id
        self.part = model.body(f"{BODY}_{PART}").id
        self.slide = int(model.joint(f"{BODY}_{JOINT}").qposadr[0])
        mujoco.mj_resetData(model, self.data)
        self.data.qpos[self.slide] = opened
        self.frames: list[np.ndarray] = []
        self.joint: list[float] = []
        self.slip = self.behind = self.width = 0.0
        self.gripped: bool | None = None
        self.obstacle: str | None = None
        self.held: np.ndarray | None = None

    def begin(self, path: ArmPath, width: float) -> None:
        """Put the arm at the first pose, at rest."""
        if len(path.joints):
            self.data.qpos[self.arm_qpos] = path.joints[0]
        self.data.qpos[self.finger_qpos] = np.clip(width, 0.0, self.robot.opening) / 2
        self.data.ctrl[self.arm] = self.data.qpos[self.arm_qpos]
        self.data.ctrl[self.fingers] = self.data.qpos[self.finger_qpos]
        self.width = width
        mujoco.mj_forward(self.model, self.data)
        self._record()

    def move(self, path: ArmPath, stage: Sequence[int]) -> None:
        """Drive along poses of the path, starting and ending softly."""
        joints = path.joints[list(stage)]
        turn = np.abs(np.diff(joints, axis=0)).max(axis=1) / self.config.joint_speed
        times = np.concatenate(([0.0], np.cumsum(np.maximum(turn, path.distance[list(stage)][1:] / self.config.speed))))
        tick = CONTROL_STEPS * self.model.opt.timestep
        count = max(1, math.ceil(times[-1] / tick))
        for step in range(1, count + 1):
            share = step / count
            soft = times[-1] * (0.5 * share + 0.5 * share * share * (3 - 2 * share))
            self.data.ctrl[self.arm] = [np.interp(soft, times, column) for column in joints.T]
            self._step()

    def set_fingers(self, width: float) -> None:
        """Open or close the fingers; those that close go on pressing."""
        if width == self.width:
            return
        closing = width < self.width
        goal = np.clip(width, 0.0, self.robot.opening) - (self.config.grip.squeeze if closing else 0.0)
        start = self.data.ctrl[self.fingers].copy()
        count = math.ceil(self.config.grip_seconds / (CONTROL_STEPS * self.model.opt.timestep))
        for step in range(1, count + 1):
            share = min(1.0, 2 * step / count)
            self.data.ctrl[self.fingers] = start + share * (goal / 2 - start)
            self._step()
        self.width = width
        self.gripped = self._touches_part() if closing else None
        self.held = self._tcp_in_part() if self.gripped else None

    def wait(self, seconds: float) -> None:
        """Let everything come to rest."""
        for _ in range(math.ceil(seconds / (CONTROL_STEPS * self.model.opt.timestep))):
            self._step()

    def instability(self) -> str | None:
        """A sentence if the numbers exploded, after which MuJoCo starts over."""
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        if any(self.data.warning[kind].number for kind in kinds):
            return "The physics became unstable; the robot overlaps the furniture or the table too deeply."
        return None

    def _step(self) -> None:
        mujoco.mj_step(self.model, self.data, CONTROL_STEPS)
        if self.data.time >= len(self.frames) * FRAME_SECONDS - 1e-9:
            self._record()

    def _record(self) -> None:
        self.frames.append(self.data.qpos.copy())
        self.joint.append(float(self.data.qpos[self.slide]))
        if self.held is not None:
            self.slip = max(self.slip, float(np.linalg.norm(self._tcp_in_part() - self.held)))
        self.wanted.qpos[:] = self.data.qpos
        self.wanted.qpos[self.arm_qpos] = self.data.ctrl[self.arm]
        mujoco.mj_kinematics(self.model, self.wanted)
        behind = float(np.linalg.norm(self.wanted.site_xpos[self.tcp] - self.data.site_xpos[self.tcp]))
        if behind > self.behind:
            self.behind, self.obstacle = behind, self._obstacle()

    def _tcp_in_part(self) -> Float[np.ndarray, "3"]:
        turn = self.data.xmat[self.part].reshape(3, 3)
        return turn.T @ (self.data.site_xpos[self.tcp] - self.data.xpos[self.part])

    def _touching(self) -> set[tuple[str, int]]:
        """Body of the robot by name, and the body that it touches."""
        found = set()
        for contact in self.data.contact[: self.data.ncon]:
            bodies = [int(self.model.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)]
            for one, other in (bodies, bodies[::-1]):
                name = self.model.body(one).name
                if name.startswith((ARM, GRIPPER)) and not self.model.body(other).name.startswith((ARM, GRIPPER)):
                    found.add((name.split("/")[1], other))
        return found

    def _touches_part(self) -> bool:
        return any(other == self.part for _, other in self._touching())

    def _obstacle(self) -> str | None:
        """What of the robot touches what, apart from the part that is to be moved."""
        for name, other in sorted(self._touching()):
            if other != self.part:
                return f"{name} against the {'table' if other == 0 else self.model.body(other).name}"
        return None
