"""The scenes of the benchmark: one object upright, or a target among distractors in any orientation (appendix B)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from afield.artifacts import check_replaceable, read_json
from afield.benchmark.grasp.manifest import BenchObject
from afield.capture.folder import write_capture
from afield.capture.objects import PlacedObject, body_pose
from afield.capture.rendered import photograph
from afield.capture.room import RenderConfig, Room, settle
from afield.errors import AfieldError
from afield.observation import Observation
from afield.simulate import World
from afield.simulate.world import WorldObject
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
            room = settle(placed, RENDER)
        except AfieldError:
            continue
        part = None if spec.part is None else find_part(world_of(room, placed), spec.part)
        if part is not None and float(part.points[part.inside][:, 2].mean()) < CLEARANCE:
            continue  # most are; pictures take ten times as long as falling
        observation = photograph(spec.name, room, placed, RENDER, masks=not spec.context)
        if part is None or share_seen(part.points[part.inside], observation) >= SEEN:
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


def world_of(room: Room, placed: Sequence[PlacedObject]) -> World:
    """The settled objects as a world, the first of them the target."""
    objects = tuple(
        WorldObject(
            name, body_pose(room.data, name), float(read_json(thing.folder / "object.json")["mass"]), thing.folder
        )
        for name, thing in zip(room.names, placed, strict=True)
    )
    return World(objects, 0.0, room.names[0], "known", tuple(room.stands))


def share_seen(points: Float[Tensor, "n 3"], observation: Observation) -> float:
    """The share of the points, metres, world, that some camera sees."""
    found = torch.zeros(len(points), dtype=torch.bool)
    for view in observation.views:
        pixel, depth = view.camera.project(points)
        column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
        inside = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height)
        measured = torch.from_numpy(view.depth)[
            row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)
        ]
        found |= inside & ((measured - depth).abs() < 0.01)
    return float(found.float().mean())


def target_points(world: World, points: torch.Tensor, reach: float = 0.006) -> torch.Tensor:
    """Which scene points lie on the world's target, by its true surface."""
    surface = find_part(world, None, 20_000).points
    return torch.from_numpy(KDTree(surface.numpy()).query(points.numpy())[0] < reach)


def _random_turn(generator: np.random.Generator) -> tuple[float, float, float, float]:
    turn = generator.normal(size=4)
    w, x, y, z = (float(value) for value in turn / np.linalg.norm(turn))
    return (w, x, y, z)
