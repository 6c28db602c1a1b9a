"""The scenes of the benchmark: one object upright, or a target among distractors in any orientation (appendix B)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree

from afield.artifacts import check_replaceable
from afield.benchmark.grasp.manifest import BenchObject
from afield.capture.folder import write_capture
from afield.capture.objects import PlacedObject
from afield.capture.rendered import render_capture
from afield.capture.room import RenderConfig, settle
from afield.errors import AfieldError
from afield.observation import Observation
from afield.simulate import World, world_from_capture
from afield.synthesis import find_part

STAND_HEIGHT = 0.075
"""Of the post under a tool, in metres."""
TRIES = 40
"""Random arrangements that are tried until one is good."""
CLEARANCE = 0.025
"""The part's middle must be this far above the table, in metres; else no hand could hold it."""
SEEN = 0.3
"""At least this share of the part's surface must be seen by a camera."""
RENDER = RenderConfig(shadow_samples=3, settle_time=2.5)


@dataclass(frozen=True)
class SceneSpec:
    """What a scene shows; its name is its identity, also on disk."""

    target: str
    part: str | None
    """Must be reachable; None does not care."""
    seed: int
    context: bool = False
    """Among distractors, every object in any orientation; else alone, upright, with a mask."""
    any_pose: bool = False
    """A single object in any orientation."""
    without: str = ""
    """No object of this family: a scene in which there is nothing to repeat."""

    @property
    def name(self) -> str:
        """For files."""
        kind = "context" if self.context else "any" if self.any_pose else "single"
        missing = f"_no_{self.without}" if self.without else ""
        return f"{self.target}_{self.part or 'any'}_{kind}{missing}_{self.seed}"


def render_scene(spec: SceneSpec, objects: Mapping[str, BenchObject], folder: Path) -> None:
    """Arrange, settle and photograph a scene, unless it is there already; it becomes a capture folder."""
    if (folder / "capture.json").is_file():
        return
    check_replaceable(folder)
    generator = np.random.default_rng([spec.seed, *spec.name.encode()])
    for _ in range(TRIES):
        placed = arrange(spec, objects, generator)
        try:
            settle(placed, RENDER)
        except AfieldError:
            continue
        observation = render_capture(spec.name, placed, RENDER, masks=not spec.context)
        if spec.part is None or reachable(observation, spec.part):
            write_capture(observation, folder)
            return
    raise AfieldError(f"No arrangement of {TRIES} shows the part '{spec.part}' of '{spec.target}' within reach.")


def arrange(spec: SceneSpec, objects: Mapping[str, BenchObject], generator: np.random.Generator) -> list[PlacedObject]:
    """Random places: the target near the middle, three to six distractors of other families around it."""
    target = objects[spec.target]
    spot = generator.uniform(-0.03, 0.03, 2)
    place = (float(spot[0]), float(spot[1]))
    if not spec.context:
        yaw = float(generator.uniform(-math.pi, math.pi))
        turn = _random_turn(generator) if spec.any_pose else None
        stand = STAND_HEIGHT if target.stand and not spec.any_pose else 0.0
        return [PlacedObject(target.folder, place, yaw, turn, stand)]
    placed = [PlacedObject(target.folder, place, quat_wxyz=_random_turn(generator))]
    unwanted = {target.family, spec.without}
    others = sorted(name for name, thing in objects.items() if thing.family not in unwanted and not thing.stand)
    count = min(int(generator.integers(3, 7)), len(others))
    first = generator.uniform(0, 2 * math.pi)
    for index, name in enumerate(generator.permutation(others)[:count]):
        angle, radius = first + 2 * math.pi * index / count, generator.uniform(0.18, 0.23)
        spot = (float(radius * math.cos(angle)), float(radius * math.sin(angle)))
        placed.append(PlacedObject(objects[str(name)].folder, spot, quat_wxyz=_random_turn(generator)))
    return placed


def reachable(observation: Observation, part: str) -> bool:
    """The part's middle is well above the table and enough of its surface is seen."""
    surface = find_part(world_from_capture(observation), part)
    points = surface.points[surface.inside]
    if float(points[:, 2].mean()) < CLEARANCE:
        return False
    seen = torch.zeros(len(points), dtype=torch.bool)
    for view in observation.views:
        pixel, depth = view.camera.project(points)
        column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
        inside = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height)
        measured = torch.from_numpy(view.depth)[
            row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)
        ]
        seen |= inside & ((measured - depth).abs() < 0.01)
    return float(seen.float().mean()) >= SEEN


def target_points(world: World, points: torch.Tensor, reach: float = 0.006) -> torch.Tensor:
    """Which scene points lie on the world's target, by its true surface."""
    surface = find_part(world, None, 20_000).points
    return torch.from_numpy(KDTree(surface.numpy()).query(points.numpy())[0] < reach)


def _random_turn(generator: np.random.Generator) -> tuple[float, float, float, float]:
    turn = generator.normal(size=4)
    w, x, y, z = (float(value) for value in turn / np.linalg.norm(turn))
    return (w, x, y, z)
