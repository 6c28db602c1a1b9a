"""Can an arm bring the hand there? Inverse kinematics by mink for pregrasp, grasp and lift, with the table kept clear."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.artifacts import read_json
from afield.errors import AfieldError
from afield.geometry import matrix_to_quat_wxyz, rotation_angle
from afield.hand import Hand
from afield.hand_description import resolve_package_file
from afield.simulate.closing import pregrasp_and_lift
from afield.simulate.grasp_test import GraspTestConfig

ARMS = Path(__file__).parents[1] / "arms"
TABLE = "table"


@dataclass(frozen=True)
class ArmDescription:
    """What Afield must know of an arm beyond its MJCF or URDF file."""

    name: str
    """What to call the arm."""
    file: Path
    """The MJCF or URDF file."""
    flange: str
    """Site or body to which the hand's root is bolted; its z axis points out of the arm."""
    position: tuple[float, float, float]
    """Of the arm's base in the world, in metres."""
    quat_wxyz: tuple[float, float, float, float]
    """Orientation of the base in the world."""
    home: Mapping[str, float]
    """Joint angles in radians from which the search begins."""
    meshes: Path | None = None
    """Folder of the file's meshes, where they lie in a wheel."""

    def spec(self) -> mujoco.MjSpec:
        """The arm by itself, ready to be attached; its keyframes and actuators are left out.

        Raises:
            AfieldError: MuJoCo cannot read the file.
        """
        return read_spec(self.file, self.meshes, f"the arm '{self.name}'")


@dataclass(frozen=True)
class ReachConfig:
    """What counts as within reach."""

    clearance: float = 0.02
    """Smallest distance of arm and forearm to the table, in metres."""
    test: GraspTestConfig = field(default_factory=GraspTestConfig)
    """Says how far away the pregrasp is and how high the hand is lifted."""
    position_tolerance: float = 0.005
    """Metres."""
    rotation_tolerance: float = math.radians(2.0)
    """Radians."""
    steps: int = 150
    """Iterations of the inverse kinematics from each start."""
    starts: int = 6
    """The home position and random ones."""
    seed: int = 0
    """Of the random starts."""


@dataclass(frozen=True)
class Reach:
    """Whether an arm can perform a grasp, and how."""

    arm: str
    """Its name."""
    reachable: bool
    """All three poses are reached with the table kept clear."""
    reason: str | None
    """Why not, in one sentence."""
    joint_names: tuple[str, ...]
    """Of the arm, in the order of its file."""
    joints: Mapping[str, tuple[float, ...]]
    """Joint angles in radians (metres for slides) at `pregrasp`, `grasp` and `lift`, as far as they were reached."""
    clearance: float
    """Smallest distance to the table over the three poses, in metres."""

    def sentence(self) -> str:
        """For a person."""
        if self.reachable:
            return f"The {self.arm} reaches pregrasp, grasp and lift, at least {self.clearance * 100:.0f} cm above the table."
        return f"The {self.arm} does not reach this grasp: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """For a run's provenance."""
        return asdict(self)


def read_spec(file: Path, meshes: Path | None, who: str) -> mujoco.MjSpec:
    """A robot's file, without keyframes and actuators.

    Args:
        file: MJCF or URDF.
        meshes: where its meshes lie, if not where the file says.
        who: for the sentence of an error.
    """
    try:
        spec = mujoco.MjSpec.from_file(str(file))
    except (ValueError, OSError) as error:
        raise AfieldError(f"MuJoCo cannot read {who}: {' '.join(str(error).split())}") from error
    if meshes is not None:
        spec.meshdir = str(meshes)
    for entry in [*spec.keys, *spec.actuators]:
        spec.delete(entry)
    return spec


def description_of(name: str) -> tuple[dict[str, Any], Path]:
    """The content and the path of an arm's description, by its name or path.

    Raises:
        AfieldError: unknown name.
    """
    path = Path(name) if Path(name).suffix == ".json" else ARMS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in ARMS.glob("*.json")))
        raise AfieldError(f"There is no arm '{name}'; choose one of {known}, or give the path of a description.")
    return read_json(path), path


def read_arm(name: str, base: Sequence[float] | None = None) -> ArmDescription:
    """An arm by the name of a shipped description, or by the path of one.

    Args:
        name: "ur10e", "panda", or a JSON file with `name`, `file`, `flange`, `base` and `home` (docs/arms.md).
        base: x, y, z in metres and yaw in radians of the arm's base, instead of the description's.

    Raises:
        AfieldError: unknown name, missing entry, or a file that is not there.
    """
    content, path = description_of(name)
    try:
        position = tuple(float(x) for x in content["base"]["position"])
        quat = tuple(float(x) for x in content["base"]["quat_wxyz"])
        home = {str(key): float(value) for key, value in content.get("home", {}).items()}
        file = resolve_package_file(str(content["file"]), path.parent, f"The arm '{name}'", content.get("install"))
        meshes = content.get("meshes")
        if meshes is not None:
            meshes = resolve_package_file(str(meshes), path.parent, f"The arm '{name}'", content.get("install"))
        if len(position) != 3 or len(quat) != 4:
            raise ValueError("'base' must have a 'position' of 3 and a 'quat_wxyz' of 4 numbers")
        arm = ArmDescription(str(content["name"]), file, str(content["flange"]), position, quat, home, meshes)
    except (KeyError, TypeError, ValueError) as error:
        raise AfieldError(f"The arm description {path} is incomplete or wrong: {error}.") from error
    if base is None:
        return arm
    x, y, z, yaw = base
    return replace(arm, position=(x, y, z), quat_wxyz=(math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)))


class ArmWithHand:
    """An arm with a hand at its flange above a table, ready to be asked where it can reach."""

    def __init__(self, arm: ArmDescription, hand: Hand, table_height: float, config: ReachConfig | None = None) -> None:
        if importlib.util.find_spec("mink") is None:
            raise AfieldError("Inverse kinematics needs mink: pip install 'afield[arm]'")
        self.arm, self.hand, self.config = arm, hand.to("cpu"), config or ReachConfig()
        self.table_height = table_height
        self.model = self._compile()
        model = self.model
        of_hand = {model.joint(f"hand/{name}").id for name in hand.joint_names}
        self.arm_joints = [j for j in range(model.njnt) if j not in of_hand]
        self.joint_names = tuple(model.joint(j).name.removeprefix("arm/") for j in self.arm_joints)
        self.qpos = model.jnt_qposadr[self.arm_joints]
        self.hand_qpos = model.jnt_qposadr[[model.joint(f"hand/{name}").id for name in hand.joint_names]]
        self.hand_dofs = model.jnt_dofadr[[model.joint(f"hand/{name}").id for name in hand.joint_names]]

    def _compile(self) -> mujoco.MjModel:
        spec = mujoco.MjSpec()
        frame = spec.worldbody.add_frame(pos=self.arm.position, quat=self.arm.quat_wxyz)
        try:
            child = self.arm.spec()
            site = child.site(self.arm.flange)
            if site is None:
                body = child.body(self.arm.flange)
                if body is None:
                    raise AfieldError(
                        f"{self.arm.file} has neither a site nor a body '{self.arm.flange}' for the hand."
                    )
                site = body.add_site(name="afield_flange")
            flange = f"arm/{site.name}"
            spec.attach(child, prefix="arm/", frame=frame)
            spec.site(flange).attach_body(self.hand.spec().body(self.hand.root_name), "hand/", "")
            half = [1.0, 1.0, 0.02]
            table = spec.worldbody.add_geom(name=TABLE, type=mujoco.mjtGeom.mjGEOM_BOX, size=half)
            table.pos = [0.0, 0.0, self.table_height - half[2]]
            return spec.compile()
        except (ValueError, OSError) as error:
            raise AfieldError(
                f"MuJoCo cannot read the arm '{self.arm.name}': {' '.join(str(error).split())}"
            ) from error

    @cached_property
    def moving(self) -> list[int]:
        """Solid geoms that must keep clear of the table: the arm beyond its first link, and the hand above its palm.

        The fingers are not among them: they may come close to the table, and the transfer's table term minds them.
        """
        model, found = self.model, []
        first = model.body(int(model.jnt_bodyid[self.arm_joints[0]])).id
        palm = model.body(f"hand/{self.hand.description.base}").id
        for geom in range(model.ngeom):
            chain = self._chain(int(model.geom_bodyid[geom]))
            solid = model.geom_contype[geom] or model.geom_conaffinity[geom]
            if solid and first in chain[1:] and palm not in chain:
                found.append(geom)
        return found

    def _chain(self, body: int) -> list[int]:
        chain = [body]
        while chain[-1]:
            chain.append(int(self.model.body_parentid[chain[-1]]))
        return chain

    def reach(self, beta: Float[Tensor, "d"]) -> Reach:
        """Whether the arm can bring the hand to its pregrasp, on to the grasp, and up again.

        Args:
            beta: the grasp, in the world frame.
        """
        config = self.config
        pose, joints = self.hand.split(beta.detach().cpu().float())
        back, up = pregrasp_and_lift(self.hand, pose, config.test.back_off, config.test.lift)
        goals = {"grasp": pose, "pregrasp": back, "lift": up}
        generator = np.random.default_rng(config.seed)
        best: tuple[int, str | None, dict[str, tuple[float, ...]], float] = (-1, None, {}, math.inf)
        for start in range(config.starts):
            begin = self._start(joints, generator if start else None)
            found: dict[str, tuple[float, ...]] = {}
            reason, clearance = None, math.inf
            for name, goal in goals.items():
                q, reason, distance = self._solve(begin, goal)
                if reason is not None:
                    reason = f"the {name} {reason}"
                    break
                clearance = min(clearance, distance)
                found[name] = tuple(round(float(x), 6) for x in q[self.qpos])
                begin = q if name == "grasp" else begin
            if len(found) > best[0]:
                best = (len(found), reason, found, clearance)
            if reason is None:
                break
        _, reason, found, clearance = best
        return Reach(
            self.arm.name,
            reason is None,
            reason,
            self.joint_names,
            found,
            clearance if math.isfinite(clearance) else 0.0,
        )

    def _start(self, joints: Float[Tensor, "j"], generator: np.random.Generator | None) -> Float[np.ndarray, "n"]:
        q = self.model.qpos0.copy()
        q[self.hand_qpos] = joints.numpy()
        for index, (joint, name) in enumerate(zip(self.arm_joints, self.joint_names, strict=True)):
            value = self.arm.home.get(name, float(q[self.qpos[index]]))
            if generator is not None:
                value += float(generator.normal(scale=0.8))
            if self.model.jnt_limited[joint]:
                low, high = self.model.jnt_range[joint]
                value = float(np.clip(value, low + 1e-3, high - 1e-3))
            q[self.qpos[index]] = value
        return q

    def _solve(
        self, begin: Float[np.ndarray, "n"], goal: Float[Tensor, "4 4"]
    ) -> tuple[Float[np.ndarray, "n"], str | None, float]:
        """Joint positions for one pose of the palm, why they are not good enough, and the distance to the table."""
        import mink

        config = self.config
        configuration = mink.Configuration(self.model, begin.copy())
        base = f"hand/{self.hand.description.base}"
        task = mink.FrameTask(base, "body", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-3)
        quat = matrix_to_quat_wxyz(goal[:3, :3].double()).numpy()
        task.set_target(mink.SE3(np.concatenate((quat, goal[:3, 3].double().numpy()))))
        posture = mink.PostureTask(self.model, cost=1e-3)
        posture.set_target(begin)
        limits = [
            mink.ConfigurationLimit(self.model),
            mink.CollisionAvoidanceLimit(
                self.model,
                [(self.moving, [self.model.geom(TABLE).id])],
                minimum_distance_from_collisions=config.clearance,
                collision_detection_distance=0.15,
            ),
        ]
        freeze = mink.DofFreezingTask(self.model, dof_indices=[int(dof) for dof in self.hand_dofs])
        dt = 0.1
        for _ in range(config.steps):
            try:
                velocity = mink.solve_ik(
                    configuration, [task, posture], dt, "daqp", damping=1e-4, limits=limits, constraints=[freeze]
                )
            except (mink.NoSolutionFound, mink.NotWithinConfigurationLimits):
                break
            configuration.integrate_inplace(velocity, dt)
            if max(self._errors(configuration, goal)) < 1e-3:
                break
        far, turned = self._errors(configuration, goal)
        distance = self._distance_to_table(configuration.data)
        reason = None
        if far > config.position_tolerance or turned > config.rotation_tolerance:
            reason = f"is missed by {far * 100:.1f} cm and {math.degrees(turned):.0f} degrees."
        elif distance < config.clearance - 0.003:
            reason = f"brings the arm within {distance * 100:.1f} cm of the table."
        elif (pair := self._collision(configuration.data)) is not None:
            reason = f"makes {pair[0]} and {pair[1]} touch."
        return configuration.q.copy(), reason, distance

    def _errors(self, configuration: Any, goal: Float[Tensor, "4 4"]) -> tuple[float, float]:
        body = self.model.body(f"hand/{self.hand.description.base}").id
        here = torch.tensor(configuration.data.xmat[body].reshape(3, 3))
        far = float(np.linalg.norm(configuration.data.xpos[body] - goal[:3, 3].double().numpy()))
        return far, float(rotation_angle(here, goal[:3, :3].double()))

    def _distance_to_table(self, data: mujoco.MjData) -> float:
        """Smallest distance of the moving geoms to the table, in metres."""
        table = self.model.geom(TABLE).id
        return min(mujoco.mj_geomDistance(self.model, data, geom, table, 1.0, None) for geom in self.moving)

    def _collision(self, data: mujoco.MjData) -> tuple[str, str] | None:
        """Two bodies of arm or forearm that touch each other, though no joint connects them."""
        mujoco.mj_forward(self.model, data)
        moving = set(self.moving)
        for contact in data.contact[: data.ncon]:
            if contact.dist > -0.005 or not {int(contact.geom1), int(contact.geom2)} <= moving:
                continue
            first, second = (int(self.model.geom_bodyid[g]) for g in (contact.geom1, contact.geom2))
            if not self._neighbours(first, second):
                return self.model.body(first).name, self.model.body(second).name
        return None

    def _neighbours(self, first: int, second: int) -> bool:
        """Whether at most two joints lie between two bodies, so that their capsules may overlap."""
        chains = self._chain(first), self._chain(second)
        for chain, other in (chains, chains[::-1]):
            if other[0] in chain:
                between = chain[: chain.index(other[0])]
                return sum(int(self.model.body_jntnum[body]) for body in between) <= 2
        return False
