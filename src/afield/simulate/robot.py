"""An arm with a parallel gripper in a MuJoCo world, driven by position servos as strong as the maker says."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Float

from afield.errors import AfieldError
from afield.hand_description import resolve_package_file
from afield.simulate.arm import ArmDescription, description_of, read_arm, read_spec

ARM, GRIPPER, TCP = "arm/", "hand/", "tcp"
"""Prefixes of the names in the world, and the site between the finger tips: +z approaches, the fingers close along y."""


@dataclass(frozen=True)
class Robot:
    """An arm and its gripper, as a description in `arms/` says it."""

    arm: ArmDescription
    """The arm by itself."""
    stiffness: tuple[float, ...]
    """Of the arm's joint servos, Nm per radian, base to flange."""
    torque: tuple[float, ...]
    """Most that a joint's motor gives, in Nm."""
    gripper: Path
    """MJCF of the gripper; its topmost body is bolted to the flange."""
    meshes: Path | None
    """Folder of its meshes, where they lie in a wheel."""
    fingers: tuple[str, str]
    """The sliding joints of the two fingers; 0 is closed."""
    tcp: tuple[float, float, float]
    """The point between the finger tips in metres, in the frame of the gripper's topmost body, whose z axis points out."""
    opening: float
    """Widest distance of the fingers in metres."""


@dataclass(frozen=True)
class Grip:
    """How the gripper is driven and what it is covered with (docs/execution.md says why)."""

    force: float = 40.0
    """A finger presses with at most this, in newtons. The Panda's maker allows 70 N continuously."""
    stiffness: float = 5000.0
    """Of a finger's servo, in newtons per metre."""
    squeeze: float = 0.02
    """Fingers that close are driven this much closer together than asked for, in metres, so that they press."""
    friction: float = 1.0
    """Sliding friction of the finger pads (rubber)."""
    impratio: float = 10.0
    """MuJoCo's ratio of frictional to normal impedance; at 1 a held handle creeps out of the fingers."""


def read_robot(name: str) -> Robot:
    """An arm with a gripper by the name of a shipped description ("panda"), or by the path of one.

    Raises:
        AfieldError: unknown name, a missing entry, or a package that is not installed.
    """
    arm = read_arm(name)
    content, path = description_of(name)
    gripper = content.get("gripper")
    if not isinstance(gripper, dict):
        raise AfieldError(f"The arm '{arm.name}' has no gripper (entry 'gripper'), so it cannot perform a trajectory.")
    who, install = f"The gripper of '{arm.name}'", content.get("install")
    try:
        file = resolve_package_file(str(gripper["file"]), path.parent, who, install)
        meshes = gripper.get("meshes")
        if meshes is not None:
            meshes = resolve_package_file(str(meshes), path.parent, who, install)
        first, second = (str(finger) for finger in gripper["fingers"])
        x, y, z = (float(value) for value in gripper["tcp"])
        stiffness, torque = (tuple(float(v) for v in content[entry]) for entry in ("stiffness", "torque"))
        return Robot(arm, stiffness, torque, file, meshes, (first, second), (x, y, z), float(gripper["opening"]))
    except (KeyError, TypeError, ValueError) as error:
        raise AfieldError(f"The arm description {path} is incomplete or wrong: {error}.") from error


def add_robot(spec: mujoco.MjSpec, robot: Robot, grip: Grip) -> None:
    """Add arm and gripper with their servos to a world. Gravity does not act on them, as their controller compensates it.

    Raises:
        AfieldError: the robot's files do not fit its description.
    """
    spec.attach(robot.arm.spec(), prefix=ARM, frame=spec.worldbody.add_frame())
    flange = spec.site(ARM + robot.arm.flange)
    if flange is None:
        raise AfieldError(f"{robot.arm.file} has no site '{robot.arm.flange}' for the gripper.")
    child = read_spec(robot.gripper, robot.meshes, f"the gripper of '{robot.arm.name}'")
    for entry in [*child.equalities, *child.tendons]:
        child.delete(entry)
    root = child.worldbody.first_body()
    root.add_site(name=TCP, pos=robot.tcp, group=4)
    spec.attach(child, prefix=GRIPPER, site=flange)
    moved = [joint for body in spec.bodies if body.name.startswith(ARM) for joint in body.joints]
    if len(moved) != len(robot.stiffness) or len(moved) != len(robot.torque):
        raise AfieldError(
            f"The arm '{robot.arm.name}' has {len(moved)} joints; give a stiffness and a torque for each."
        )
    for joint, stiffness, torque in zip(moved, robot.stiffness, robot.torque, strict=True):
        _servo(spec, joint.name, stiffness, torque, 0.04)
    for name in robot.fingers:
        joint = spec.joint(GRIPPER + name)
        if joint is None:
            raise AfieldError(f"{robot.gripper} has no joint '{name}'.")
        _servo(spec, joint.name, grip.stiffness, grip.force, 0.02)
        for geom in joint.parent.geoms:
            # The pads decide how the contact is, whatever they touch.
            geom.friction, geom.condim, geom.priority = [grip.friction, 0.005, 0.0001], 4, 1
    # One motor drives both fingers, so they meet in the middle.
    pair = spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=GRIPPER + robot.fingers[0],
        name2=GRIPPER + robot.fingers[1],
    )
    pair.data[:5] = [0, 1, 0, 0, 0]
    pair.solref, pair.solimp = [0.005, 1.0], [0.95, 0.99, 0.001, 0.5, 2.0]
    for body in spec.bodies:
        if body.name.startswith((ARM, GRIPPER)):
            body.gravcomp = 1.0


def _servo(spec: mujoco.MjSpec, joint: str, stiffness: float, limit: float, lag: float) -> None:
    """A position servo; `lag` is its time constant in seconds."""
    servo = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=stiffness, kv=lag * stiffness)
    servo.forcelimited, servo.forcerange = True, [-limit, limit]


def place_robot(model: mujoco.MjModel, position: Float[np.ndarray, "3"], yaw: float) -> None:
    """Put the arm's base somewhere else in a compiled world."""
    root = next(body for body in range(1, model.nbody) if model.body(body).name.startswith(ARM))
    model.body_pos[root] = position
    model.body_quat[root] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
