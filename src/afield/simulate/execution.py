"""Does a trajectory open the door? An arm with a gripper performs it in MuJoCo, and the joint's position is the judge."""

# pyright: reportAttributeAccessIssue=false
# MuJoCo is a compiled module without type stubs.
from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from afield.artifacts import load_artifact, save_artifact
from afield.capture.furniture import Furniture, PlacedFurniture, add_kitchen
from afield.errors import AfieldError
from afield.simulate.arm_path import ArmPath, Base, PathFinder, base_candidates
from afield.simulate.episode import Episode, ExecutionConfig
from afield.simulate.oracle import Task
from afield.simulate.render import render_states
from afield.simulate.robot import Grip, Robot, add_robot, place_robot, read_robot
from afield.simulate.world import add_sky

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExecutionTest:
    """The verdict and its reasons."""

    success: bool
    failure: str | None
    """What went wrong, in one sentence."""
    task: Task
    """Which way the joint was to move."""
    moved: float
    """How far the joint moved along its degree of freedom at most, in radians or metres."""
    threshold: float
    """How far it had to."""
    slip: float
    """How far the point between the fingers moved along the part after they had closed, in metres; 0 where it only pushes."""
    behind: float
    """How far the gripper was behind its command at most, in metres."""
    base: Base
    """Where the arm stood."""
    robot: str
    """Its name."""
    seconds: float
    """Computing time."""
    joint: Float[np.ndarray, "f"]
    """The joint's position at every recorded state."""
    frames: Float[np.ndarray, "f q"]
    """Recorded states (MuJoCo's qpos), 25 per second, for replay."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the recorded states."""
        content = asdict(self)
        for name in ("joint", "frames"):
            content.pop(name)
        return {**content, "base": list(self.base)}

    def save(self, folder: Path) -> None:
        """Write verdict and states as an artifact folder."""
        tensors = {"joint": torch.from_numpy(self.joint), "frames": torch.from_numpy(self.frames)}
        save_artifact(folder, "execution-test", tensors, {"verdict": self.to_json()})

    @classmethod
    def load(cls, folder: Path) -> ExecutionTest:
        """Read a test back."""
        tensors, header = load_artifact(folder, "execution-test", ("joint", "frames"))
        try:
            verdict = dict(header["verdict"])
            x, y, z, yaw = verdict.pop("base")
            return cls(**verdict, base=(x, y, z, yaw), joint=tensors["joint"].numpy(), frames=tensors["frames"].numpy())
        except (KeyError, TypeError, ValueError) as error:
            raise AfieldError(f"The verdict in {folder} is incomplete: {error}.") from error


def threshold_of(item: Furniture, task: Task) -> float:
    """How far a joint must move: 25 degrees to open a door, 40 to close one, as RLBench asks; 10 cm for a drawer.

    RLBench asks 15 cm of a drawer that is twice as deep.
    """
    if item.slides:
        return 0.10
    return math.radians(25.0 if task == "open" else 40.0)


def way_to_go(placed: PlacedFurniture, task: Task) -> float:
    """How far a joint must move from where it stands: `threshold_of`, or 90% of what is left where that is less.

    Raises:
        AfieldError: it stands at the end already.
    """
    left = placed.item.travel - placed.opened if task == "open" else placed.opened
    if left < 0.05 * placed.item.travel:
        raise AfieldError(
            f"The {placed.item.kind} of this capture is {'open' if task == 'open' else 'closed'} already."
        )
    return min(threshold_of(placed.item, task), 0.9 * left)


def build_execution_world(placed: PlacedFurniture, robot: Robot, grip: Grip | None = None) -> mujoco.MjModel:
    """Compile table, furniture and robot; the robot stands at the origin until `place_robot` puts it elsewhere."""
    grip = grip or Grip()
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.002
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = grip.impratio
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 960, 720
    add_sky(spec)
    add_kitchen(spec, placed, half=1.5)
    add_robot(spec, robot, grip)
    try:
        return spec.compile()
    except ValueError as error:
        raise AfieldError(f"MuJoCo cannot compile '{robot.arm.name}': {' '.join(str(error).split())}") from error


def execute_trajectory(
    placed: PlacedFurniture,
    poses: Float[Tensor, "n 4 4"],
    opening: Float[Tensor, "m"],
    labels: Sequence[str] | None = None,
    *,
    task: Task = "open",
    robot: Robot | None = None,
    config: ExecutionConfig | None = None,
    progress: bool = True,
) -> ExecutionTest:
    """Perform a trajectory with an arm in front of the furniture.

    The arm begins at the first pose, with fingers as far apart as the first opening. It moves to a pose with the fingers as
    they are; there they take the pose's opening. If a pose is out of reach, it stops before it, and the verdict says so.

    Args:
        placed: the furniture and its first joint position (`world_from_extra`).
        poses: T_world_gripper in metres; +z approaches, the fingers close along y.
        opening: distance of the fingers in metres once a pose is reached, one for each pose.
        labels: of the waypoints, for sentences about them.
        task: which way the joint is to move.
        robot: the Panda if None.
        config: how it is performed and judged.
        progress: show a bar.

    Raises:
        AfieldError: fewer than two poses, shapes that do not fit, or a pose that is no rotation and translation.
    """
    started = time.monotonic()
    config, robot = config or ExecutionConfig(), robot or read_robot("panda")
    labels = tuple(labels) if labels is not None else ("",) * len(poses)
    goals, widths = _check(poses, opening, labels)
    model = build_execution_world(placed, robot, config.grip)
    finder = PathFinder(model, robot, config.path)
    bases = base_candidates(goals) if config.base is None else [config.base]
    path = finder.find(goals, labels, bases, placed.opened)
    place_robot(model, np.array(path.base[:3]), path.base[3])
    mujoco.mj_setConst(model, mujoco.MjData(model))
    episode = Episode(model, robot, config, placed.opened)
    stages = path_stages(path, widths)
    episode.begin(path, float(widths[0]))
    for stage in tqdm(stages, "executing", disable=not progress):
        episode.move(path, stage)
        episode.set_fingers(float(widths[path.waypoint[stage[-1]]]))
    episode.wait(config.settle_seconds)
    joint = np.array(episode.joint)
    moved = float(((joint - placed.opened) * (1.0 if task == "open" else -1.0)).max(initial=0.0))
    threshold = way_to_go(placed, task) if config.threshold is None else config.threshold
    success = moved >= threshold and episode.instability() is None
    failure = None if success else _reason(episode, path, placed.item, robot, moved, threshold)
    return ExecutionTest(
        success,
        failure,
        task,
        moved,
        threshold,
        episode.slip,
        episode.behind,
        path.base,
        robot.arm.name,
        time.monotonic() - started,
        joint,
        np.array(episode.frames),
    )


def path_stages(path: ArmPath, widths: Float[np.ndarray, "n"]) -> list[list[int]]:
    """Runs of path poses without a change of the fingers; each begins where the one before ended."""
    stages, run = [], [0] if len(path.joints) else []
    for index in range(1, len(path.joints)):
        run.append(index)
        at = int(path.waypoint[index])
        last = index + 1 == len(path.joints) or int(path.waypoint[index + 1]) != at
        if last and widths[at] != widths[at - 1]:
            stages.append(run)
            run = [index]
    return [*stages, run] if len(run) > 1 else stages


def film_execution(
    placed: PlacedFurniture, test: ExecutionTest, *, robot: Robot | None = None, count: int = 16
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Pictures of an execution in order of time; none (with a logged reason) where no graphics driver works."""
    robot = robot or read_robot(test.robot)
    model = build_execution_world(placed, robot)
    if test.frames.shape[1:] != (model.nq,):
        logger.warning("No pictures of the execution: the world has changed since the test.")
        return []
    place_robot(model, np.array(test.base[:3]), test.base[3])
    chosen = sorted(set(np.linspace(0, len(test.frames) - 1, count).round().astype(int).tolist()))
    goal = (np.array([placed.x, placed.y]) + np.array(test.base[:2])) / 2
    azimuth = math.degrees(test.base[3]) + 60.0
    return render_states(
        model, test.frames[chosen], (*goal, 0.25), azimuth=azimuth, elevation=-22.0, distance=1.7, size=(640, 480)
    )


def _check(
    poses: Float[Tensor, "n 4 4"], opening: Float[Tensor, "m"], labels: Sequence[str]
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n"]]:
    if len(poses) < 2 or len(opening) != len(poses) or len(labels) != len(poses):
        raise AfieldError(
            f"A trajectory needs at least two poses, and an opening and a label for each; there are {len(poses)} poses, "
            f"{len(opening)} openings and {len(labels)} labels."
        )
    goals = poses.detach().cpu().double().numpy()
    turns = goals[:, :3, :3]
    wrong = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) > 1e-3
    wrong |= ~np.isfinite(goals).all(axis=(1, 2)) | (np.linalg.det(turns) < 0)
    if wrong.any():
        raise AfieldError(f"Pose {int(np.flatnonzero(wrong)[0])} of the trajectory is no rotation and translation.")
    return goals, opening.detach().cpu().double().numpy()


def _reason(episode: Episode, path: ArmPath, item: Furniture, robot: Robot, moved: float, threshold: float) -> str:
    """Why the joint did not move far enough, in one sentence."""
    unstable = episode.instability()
    if unstable is not None:
        return unstable
    amounts = (moved * 100, threshold * 100, "cm") if item.slides else (*np.degrees((moved, threshold)), "degrees")
    so_far = f"the joint moved {amounts[0]:.1f} of {amounts[1]:.0f} {amounts[2]}"
    if path.miss is not None:
        return f"The {robot.arm.name} cannot reach all of the trajectory from its best place: {path.miss}; {so_far}."
    if episode.behind > episode.config.max_behind:
        return f"The gripper was blocked by {episode.obstacle or 'what it held'}, {episode.behind * 100:.1f} cm short; {so_far}."
    if episode.gripped is False:
        return f"The fingers closed beside the {item.kind}'s moving part; {so_far}."
    if episode.slip > episode.config.max_slip:
        return f"The gripper slipped {episode.slip * 100:.1f} cm along the part; {so_far}."
    return f"The trajectory ended too early: {so_far}."
