"""One trial: a method repeats a demonstration in a scene, physics judges, and the truth says where the hand ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from afield.benchmark.grasp.manifest import BenchObject, Row
from afield.benchmark.grasp.methods import Method
from afield.benchmark.grasp.scenes import target_points
from afield.confidence import Evidence
from afield.demonstration import Demonstration
from afield.errors import AfieldError
from afield.hand import Hand
from afield.observation import Observation
from afield.pipeline import transfer_and_rehearse
from afield.pretrain import FieldModel
from afield.scene import Scene
from afield.simulate import GraspTestConfig, simulate_grasp, world_from_capture
from afield.synthesis import find_part, in_box
from afield.transfer import transfer_grasp

GROWN = 0.01
"""The middle of the contacts must lie on the part, or this close to it, in metres."""
TEST = GraspTestConfig(stop_early=True)
"""What a grasp must survive."""
NEAR = 0.02
"""A hand farther from the target than this, in metres, went for something else."""


@dataclass(frozen=True)
class Setting:
    """What all methods of a trial share."""

    row: Row
    demonstration: Demonstration
    scene: Scene
    observation: Observation
    objects: Mapping[str, BenchObject]
    hand: Hand
    seed: int


def run_trial(setting: Setting, method: Method, model: FieldModel) -> dict[str, Any]:
    """Run one method.

    Returns:
        `success` and its parts (`held`, `on_part`), the distance of the hand's query points to the part and the initial
        penetration in metres, seconds of the transfer, the energy, and why it failed.
    """
    world = world_from_capture(setting.observation)
    scene = setting.scene
    if method.true_mask:
        scene = scene.select(target_points(world, scene.points))
    begin = time.monotonic()
    config = replace(method.config, seed=setting.seed)
    try:
        transfer = transfer_and_rehearse if method.rehearse else transfer_grasp
        grasp = transfer(setting.demonstration, scene, model, setting.hand, config, progress=False)
    except AfieldError as error:
        return {"success": False, "held": False, "on_part": False, "failure": str(error), "cause": "no grasp"}
    seconds = time.monotonic() - begin
    test = simulate_grasp(world, setting.hand, grasp.beta, scene.points, TEST, progress=False)
    target, part = setting.row.test
    on_part = holds_part(test.contacts, setting.objects[target].parts[part])
    near = bool(_distances(setting, grasp.beta, None).min() < NEAR)
    return {
        "success": test.success and on_part,
        "held": test.success,
        "on_part": on_part,
        "near_target": near,
        "distance_to_part": distance_to_part(setting, grasp.beta),
        "penetration": round(test.initial_penetration, 4),
        "energy": round(grasp.energy, 5),
        "feature_energy": round(grasp.terms["feature"], 5),
        "evidence": {key: round(value, 5) for key, value in asdict(Evidence.of(grasp, setting.hand)).items()},
        "seconds": round(seconds, 1),
        "beta": [round(float(value), 5) for value in grasp.beta],
        "failure": test.failure,
        "cause": _cause(test.success, on_part, near, test.initial_penetration),
    }


def holds_part(contacts: Float[np.ndarray, "c 3"], box: Mapping[str, Sequence[float | int]]) -> bool:
    """Whether the middle of the contacts lies in the part's box, grown by 1 cm.

    The middle, not a share of the contacts: fingers that enclose a back or a handle touch it, or what is beside it, on
    all sides, and the middle of these places is where the hand holds.
    """
    return len(contacts) > 0 and bool(in_box(contacts.mean(axis=0, keepdims=True), box, GROWN)[0])


def distance_to_part(setting: Setting, beta: Float[Tensor, "d"]) -> float:
    """Mean distance of the hand's query points to the part that was to be held, in metres."""
    return round(float(_distances(setting, beta, setting.row.test[1]).mean()), 4)


def _distances(setting: Setting, beta: Float[Tensor, "d"], part: str | None) -> Float[Tensor, "q"]:
    """From every query point of the hand to the target, or to a part of it."""
    surface = find_part(world_from_capture(setting.observation), part)
    placed = setting.hand.place(setting.demonstration.points, beta)
    return torch.cdist(placed, surface.points[surface.inside]).amin(dim=-1)


def _cause(held: bool, on_part: bool, near: bool, penetration: float) -> str:
    if held and on_part:
        return "success"
    if not near:
        return "wrong object"
    if held:
        return "wrong part"
    return "overlap" if penetration > TEST.max_penetration else "slipped"
