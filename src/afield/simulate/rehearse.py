"""Trying a few grasps in physics on what was seen, before one of them is chosen.

Eq. 9 knows where the demonstrated hand felt alike, but not whether fingers would slip there. The rehearsal uses observed
points only, in the scene or (of the very same object) in the demonstration, never a true shape, so a robot can do it too.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from afield.fields.instances import instances
from afield.hand import Hand
from afield.recognition import Recognized
from afield.scene import Scene
from afield.simulate.grasp_test import GraspTest, GraspTestConfig, simulate_grasp
from afield.simulate.world import world_from_scene

STRICT = GraspTestConfig(
    max_penetration=0.006,
    max_displacement=0.025,
    max_rotation=math.radians(8.0),
    push_seconds=1.0,
    stop_early=True,
)
"""Half of what the real test allows, because true shapes differ from what was seen; and pushes of half the length."""


def rehearse(
    scene: Scene,
    hand: Hand,
    candidates: Float[Tensor, "k d"],
    config: GraspTestConfig = STRICT,
    *,
    same: Recognized | None = None,
    progress: bool = True,
) -> tuple[int, list[GraspTest]]:
    """Test candidates in the observed world, best energy first, until one holds.

    Args:
        scene: the observed points.
        hand: the hand.
        candidates: hand configurations in the world frame, in the order of their energy.
        config: of the grasp test.
        same: the target, if it is the very object that was shown: its hidden sides are known.
        progress: show a progress bar.

    Returns:
        The index of the first candidate that holds, or else of the one that got farthest; and the tests that were made.
    """
    tests: list[GraspTest] = []
    scene, hand = scene.to("cpu"), hand.to("cpu")
    label = instances(scene)
    for beta in tqdm(candidates.cpu(), desc="rehearse", unit="grasp", disable=not progress):
        pose, _ = hand.split(beta)
        world = world_from_scene(scene, pose[:3, :3] @ hand.palm_center + pose[:3, 3], label, same)
        tests.append(simulate_grasp(world, hand, beta, scene.points, config, progress=False))
        if tests[-1].success:
            break
    return int(torch.tensor([reached(test) for test in tests]).argmax()), tests


def reached(test: GraspTest) -> float:
    """How far a grasp got: lifted, through how many pushes, and how deep it was in the object."""
    score = -min(test.initial_penetration, 0.03) / 0.03
    if test.lift_height < test.limits["lift"]:
        return score + min(max(test.lift_height, 0.0), 0.05)
    return score + 1.0 + sum(push["ok"] for push in test.pushes.values()) / 2
