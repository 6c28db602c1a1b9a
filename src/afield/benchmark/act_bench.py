"""`afield bench act`: shown once on one instance, does the arm do it on others? From pictures to a joint that moved, in physics.

Skills are fitted to twelve posed pictures of random furniture with true contact and flow. Targets are other random instances,
somewhere on the table, seen by one RGB-D camera within 60 degrees of their front. Nothing of the truth reaches the transfer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from afield.artifacts import read_json, write_json
from afield.benchmark.grasp.tables import wilson
from afield.capture.furniture import (
    Furniture,
    Kind,
    handle_box,
    joint_motion,
    photograph_furniture,
    photograph_scene,
    random_scene,
    ring_around,
    surface_points,
)
from afield.capture.opengl import draw_elsewhere
from afield.distill import FitConfig, Flow, Labels, fit_affordance
from afield.distill.labels import describe_views
from afield.errors import AfieldError
from afield.geometry import transform_points
from afield.observation import Observation
from afield.perception.features import extractor_by_name
from afield.simulate.execution import execute_trajectory
from afield.simulate.oracle import Task
from afield.skill_pipeline import act
from afield.skills import DescriptorBasis, Skill, mode_of

VERSION = 3
"""Changes when a trial of an older version is worth nothing any more."""
EXTRACTOR = "dinov2-s-embedded"
UNMOVED = 0.1
"""A robot whose first try has moved the part by less than this share of what is asked tries the next way."""
OPENED = 0.8
"""Where a part that is to be closed stands at first, as a share of its travel."""
SHOWN = 1000
"""Seeds of shown instances begin here; those of targets at 0."""


@dataclass(frozen=True)
class ActBenchConfig:
    """What is shown and done."""

    tasks: tuple[str, ...] = (
        "open microwave",
        "open cabinet",
        "open drawer",
        "close microwave",
        "close cabinet",
        "close drawer",
        "close laptop",
    )
    """open or close, and a kind of furniture."""
    instances: int = 5
    """Other instances for each task."""
    out: Path = Path("runs/bench_act")
    """Work folder: skills and trials; an interrupted run goes on from there."""
    seed: int = 0
    """Of the first instance; skills are fitted with it."""


def run(config: ActBenchConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Show every task once and do it on other instances.

    Returns:
        `success` over all trials with its Wilson interval, the same by task, causes of failure, and every trial. `second_done`
        counts those that an arm did which, after its first try had failed, took the next way (`second`) in the untouched scene.

    Raises:
        AfieldError: a task is unknown, or there are no instances.
    """
    config = config or ActBenchConfig()
    jobs = [(*_parse(name), index) for name in config.tasks for index in range(config.instances)]
    if config.instances < 1:
        raise AfieldError(f"{config.instances} instances are too few; give at least 1.")
    trials = [
        _kept_trial(task, kind, config.seed + index, config)
        for task, kind, index in tqdm(jobs, "act", unit="trial", disable=not progress)
    ]
    return {**summarize(trials), "trials": trials, "instances": config.instances, "seed": config.seed}


def _parse(name: str) -> tuple[Task, Kind]:
    known: dict[str, tuple[Task, Kind]] = {
        f"{task} {kind}": (task, kind) for task in get_args(Task) for kind in get_args(Kind)
    }
    if name not in known:
        raise AfieldError(
            f"There is no task '{name}'; a task is {' or '.join(get_args(Task))} and one of {', '.join(get_args(Kind))}."
        )
    return known[name]


def _kept_trial(task: Task, kind: Kind, seed: int, config: ActBenchConfig) -> dict[str, Any]:
    """A trial out of the work folder, or a new one."""
    file = config.out / "trials" / f"{task}_{kind}-{config.seed}-{seed}.json"
    if file.is_file() and read_json(file).get("version") == VERSION:
        return read_json(file)
    skill = make_skill(task, kind, config)
    trial = {"version": VERSION, **_trial(skill, task, kind, seed)}
    if trial["cause"] not in (None, "refused") and abs(trial["moved"]) < UNMOVED * trial["threshold"]:
        trial["second"] = _trial(skill, task, kind, seed, alternative=1)
    write_json(file, trial)
    return trial


def _trial(skill: Skill, task: Task, kind: Kind, seed: int, alternative: int = 0) -> dict[str, Any]:
    """See an instance once, find the skill in it, let the arm do it: in the best way, or the next one."""
    item = Furniture.random(kind, seed)
    placed, camera = random_scene(item, seed, opened=OPENED * item.travel if task == "close" else 0.0)
    entry: dict[str, Any] = {"task": f"{task} {kind}", "seed": seed, "success": False}
    try:
        observation = draw_elsewhere(photograph_scene, placed, camera, name=f"{kind}_{seed}")
        done = act(skill, observation, alternative=alternative, seed=seed, progress=False)
    except AfieldError as error:
        return {**entry, "failure": str(error), "cause": "refused"}
    path = done.trajectory
    test = execute_trajectory(placed, path.poses, path.opening, path.labels, task=task, progress=False)
    pose = torch.from_numpy(placed.T_world_furniture).float()
    middle = pose @ torch.from_numpy(joint_motion(item, placed.opened)).float()
    handle = transform_points(middle, torch.from_numpy(handle_box(item)[0]).float()[None])[0]
    axis = pose[:3, :3] @ torch.from_numpy(item.axis[1]).float() * (1.0 if task == "open" else -1.0)
    kinds = ("prismatic", "revolute")
    same = done.joint.kind == kinds[not item.slides]
    cosine = float(torch.clamp(done.joint.axis @ axis, -1.0, 1.0))
    return {
        **entry,
        "success": test.success,
        "failure": test.failure,
        "cause": None if test.success else _cause(test.failure or ""),
        "contact_to_handle_cm": round(100 * float((done.contact - handle).norm()), 2),
        "axis_deg": round(math.degrees(math.acos(cosine)), 1) if same else 180.0,
        "moved": round(test.moved, 4),
        "threshold": round(test.threshold, 4),
        "quality": dict(done.quality),
        "seconds": {name: round(value, 2) for name, value in done.seconds.items()},
    }


def _cause(failure: str) -> str:
    """One or two words for a sentence of the verdict."""
    words = {"cannot reach": "out of reach", "blocked": "blocked", "closed beside": "missed", "slipped": "slipped"}
    return next((short for long, short in words.items() if long in failure), "moved too little")


def make_skill(task: Task, kind: Kind, config: ActBenchConfig) -> Skill:
    """Fit an instance that is no target; kept in the work folder."""
    item = Furniture.random(kind, SHOWN + config.seed)
    stamp = hashlib.sha256(repr((item, task, config.seed, VERSION)).encode()).hexdigest()[:8]
    folder = config.out / "skills" / f"{task}_{kind}-{stamp}"
    if Skill.is_skill(folder):
        return Skill.load(folder)
    observation, labels, basis = draw_elsewhere(show, item, task, config.seed)
    fitted = fit_affordance(observation, labels, FitConfig(seed=config.seed), progress=False)
    narration = f"{task} the {kind}"
    floor = float(-fitted.center[2] / fitted.scale)
    skill = Skill(
        folder.name, narration, fitted.field, fitted.center, fitted.scale, basis, floor, mode_of(narration),
        observation.views[0].color,
    )  # fmt: skip
    skill.save(folder)
    return skill


def show(item: Furniture, task: Task, seed: int) -> tuple[Observation, Labels, DescriptorBasis]:
    """Pictures of an instance as it stands at first, and what is done with it."""
    opened = OPENED * item.travel if task == "close" else 0.0
    reach = item.travel if item.slides else item.depth if item.kind == "laptop" else item.door_width
    size = (item.width, item.depth, item.height)
    if opened:  # the part that stands out has to be in the pictures
        size = (item.width + reach, item.depth + 2 * reach, item.height + (reach if item.kind == "laptop" else 0.0))
    observation, handles = photograph_furniture(item, ring_around(size, 12, 160), opened=opened)
    maps, mean, basis = describe_views(observation, extractor_by_name(EXTRACTOR), progress=False)
    labels = Labels(tuple(handles), maps, 0.0, joint_flow(item, opened, 500, seed))
    return observation, labels, DescriptorBasis(EXTRACTOR, mean, basis)


def joint_flow(item: Furniture, opened: float, count: int, seed: int, horizon: int = 32) -> Flow:
    """Where surface points go from a position of the joint to its other end: opened from 0, closed from anywhere else."""
    points, moves = surface_points(item, count, seed)
    start = transform_points(torch.from_numpy(joint_motion(item, opened)).float(), points)
    start = torch.where(moves[:, None], start, points)
    goal = 0.0 if opened else item.travel
    before = np.linalg.inv(joint_motion(item, opened))
    return Flow.of_joint(
        start, moves, lambda share: joint_motion(item, opened + share * (goal - opened)) @ before, horizon
    )


def summarize(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates with Wilson's 95% intervals, over all and by task, and causes of failure."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        tasks.setdefault(trial["task"], []).append(trial)
    causes: dict[str, int] = {}
    for trial in trials:
        if not trial["success"]:
            causes[trial["cause"]] = causes.get(trial["cause"], 0) + 1
    return {**_rate(trials), "tasks": {name: _rate(found) for name, found in tasks.items()}, "causes": causes}


def _rate(trials: list[dict[str, Any]]) -> dict[str, Any]:
    held = sum(bool(trial["success"]) for trial in trials)
    known = [trial for trial in trials if "axis_deg" in trial]
    middle = {
        key: round(float(np.median([trial[key] for trial in known])), 2) if known else None
        for key in ("contact_to_handle_cm", "axis_deg")
    }
    low, high = wilson(held, len(trials))
    return {
        "success": round(held / len(trials), 3),
        "done": held,
        "second_done": held + sum(bool(trial.get("second", {}).get("success")) for trial in trials),
        "interval": [round(low, 2), round(high, 2)],
        "count": len(trials),
    } | middle


def markdown(result: Mapping[str, Any]) -> str:
    """A row a task, and one for all."""
    lines = ["| task | done | 95% | in two tries | contact to handle | axis |", "|---|---|---|---|---|---|"]
    for name, found in (*result["tasks"].items(), ("**all**", result)):
        low, high = found["interval"]
        middle = f"{found['contact_to_handle_cm']} cm | {found['axis_deg']}°"
        lines.append(
            f"| {name} | {found['done']} of {found['count']} | {low:.2f}-{high:.2f} | {found['second_done']} | {middle} |"
        )
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(result["causes"].items()))
    return "\n".join([*lines, f"\nFailures: {causes or 'none'}."])
