"""`afield bench execute`: does the arm open, or close, furniture along the trajectory of one who knows it, or nearly so?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.capture.furniture import Furniture, Kind, random_scene
from afield.errors import AfieldError
from afield.geometry import rotation_about_axis
from afield.simulate.execution import ExecutionConfig, execute_trajectory
from afield.simulate.oracle import Task, ideal_trajectory
from afield.simulate.robot import Grip, read_robot

OPENED = 0.8
"""Where a part that is to be closed stands at first, as a share of its travel."""


@dataclass(frozen=True)
class ExecutionBenchConfig:
    """What is performed."""

    kinds: tuple[str, ...] = ("microwave", "cabinet", "drawer")
    """Of furniture: microwave, cabinet, drawer, oven, laptop."""
    instances: int = 8
    """Random ones of each kind, somewhere on the table."""
    task: Task = "open"
    """open or close."""
    robot: str = "panda"
    """Name or path of an arm with a gripper."""
    noise: float = 0.0
    """The whole trajectory is shifted by this in a random direction, in metres."""
    turn: float = 0.0
    """And turned by this about a random axis through its grasp, in degrees."""
    softness: float = 1.0
    """The arm's stiffness is divided by this."""
    grip: Grip = field(default_factory=Grip)
    """Force and friction of the fingers."""
    seed: int = 0
    """Of the first instance."""


def run(config: ExecutionBenchConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Perform the oracle's trajectories.

    Returns:
        `success` overall and by kind, the largest slip in metres of those that succeeded, mean seconds, `trials`.
    """
    config = config or ExecutionBenchConfig()
    for kind in config.kinds:
        if kind not in get_args(Kind):
            raise AfieldError(f"There is no furniture of kind '{kind}'; choose {', '.join(get_args(Kind))}.")
    if config.instances < 1:
        raise AfieldError(f"{config.instances} instances are too few; give at least 1.")
    robot = read_robot(config.robot)
    robot = replace(robot, stiffness=tuple(value / config.softness for value in robot.stiffness))
    jobs = [(kind, config.seed + index) for kind in config.kinds for index in range(config.instances)]
    trials = []
    for kind, seed in tqdm(jobs, "executing", disable=not progress):
        item = Furniture.random(kind, seed)
        placed, _ = random_scene(item, seed, opened=OPENED * item.travel if config.task == "close" else 0.0)
        poses, opening, labels = ideal_trajectory(placed, config.task)
        poses = disturbed(poses, config.noise, math.radians(config.turn), seed)
        settings = ExecutionConfig(grip=config.grip)
        test = execute_trajectory(
            placed, poses, opening, labels, task=config.task, robot=robot, config=settings, progress=False
        )
        verdict = {"kind": kind, "seed": seed, "hinge": item.hinge, "handle": item.handle, "travel": item.travel}
        trials.append({**verdict, **test.to_json()})
    held = [trial["slip"] for trial in trials if trial["success"]]
    return {
        "success": _rate(trials),
        **{f"success_{kind}": _rate([trial for trial in trials if trial["kind"] == kind]) for kind in config.kinds},
        "count": len(trials),
        "largest_slip": max(held, default=0.0),
        "mean_seconds": float(np.mean([trial["seconds"] for trial in trials])),
        "failures": [
            f"{trial['kind']} {trial['seed']}: {trial['failure']}" for trial in trials if not trial["success"]
        ],
        "trials": trials,
    }


def disturbed(poses: Float[Tensor, "n 4 4"], shift: float, turn: float, seed: int) -> Float[Tensor, "n 4 4"]:
    """A trajectory that is wrong as a whole: shifted in a random direction, turned about a random axis through the grasp."""
    generator = torch.Generator().manual_seed(seed)
    direction, axis = (torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0) for _ in range(2))
    rotation = rotation_about_axis(axis, torch.tensor(turn))
    middle = poses[1, :3, 3]
    found = poses.clone()
    found[:, :3, :3] = rotation @ poses[:, :3, :3]
    found[:, :3, 3] = (poses[:, :3, 3] - middle) @ rotation.T + middle + shift * direction
    return found


def _rate(trials: list[dict[str, Any]]) -> float:
    return sum(bool(trial["success"]) for trial in trials) / len(trials)
