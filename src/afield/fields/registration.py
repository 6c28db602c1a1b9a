"""Where on one object lies what was shown on another: the two point clouds aligned as a whole.

Features say which object is meant, but hardly which end of it: a part is told from the rest of another object little
better than by chance (docs/research-log.md). Laid upon each other as a whole, the two shapes say it much better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from afield.geometry import rigid_registration
from afield.scene import Scene, farthest_points


@dataclass(frozen=True)
class RegistrationConfig:
    """How two objects are aligned. Lengths are in units of each object's own size (root mean square from its middle)."""

    points: int = 256
    """Well-spread points of each object that are compared."""
    rotations: int = 600
    """Rotations that are tried, spread evenly over all there are."""
    kept: int = 12
    """The best of them are refined ..."""
    steps: int = 15
    """... by so many rounds of matching and registration."""
    features: float = 0.3
    """What unlike features (one minus cosine) cost beside the squared distance of matched points; 0 is shape alone."""
    upright: float = 0.1
    """What it costs to turn an object over: this times half of one minus the cosine of its tilt. Things mostly stand."""
    far: float = 0.5
    """Distances count up to this: some points of an object have no counterpart."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Least and largest scale beside the ratio of the sizes."""


@dataclass(frozen=True)
class Registration:
    """A similarity that carries one object onto another."""

    rotation: Float[Tensor, "3 3"]
    scale: float
    translation: Float[Tensor, "3"]
    """Metres: where the first frame's origin comes to lie."""
    cost: float
    """What is left of distances and unlike features; the smaller the better."""

    def carry(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points on or near the first object, at the corresponding places of the second; metres."""
        return self.scale * points @ self.rotation.T + self.translation


def register(shown: Scene, here: Scene, config: RegistrationConfig | None = None) -> Registration:
    """Lay one object upon another: turned, moved and scaled so that shapes and features agree.

    Every one of many rotations is tried with middles and sizes made equal; the best are refined by matching each point to
    its most fitting counterpart, in both directions, and registering the matches.

    Args:
        shown: points of one object, with unit features of the same space as those of ...
        here: ... the other object.
        config: see `RegistrationConfig`.

    Returns:
        The alignment of least cost, on the device of `here`.
    """
    config = config or RegistrationConfig()
    source, target = _Cloud.of(shown, config.points), _Cloud.of(here, config.points)
    unlike = config.features * (1.0 - source.features @ target.features.T)

    def cost(rotation: Float[Tensor, "r 3 3"], moved: Float[Tensor, "r m 3"]) -> Float[Tensor, "r"]:
        """What is left of distances, unlike features and tilt, for every candidate."""
        fit = torch.cdist(moved, target.points.expand(len(moved), -1, -1)).square().clamp_max(config.far**2) + unlike
        tilt = config.upright * (1.0 - rotation[:, 2, 2]) / 2
        return fit.amin(dim=-1).mean(dim=-1) + fit.amin(dim=-2).mean(dim=-1) + tilt

    grid = even_rotations(config.rotations)
    first = torch.cat([cost(turn, source.points @ turn.transpose(-1, -2)) for turn in grid.split(32)])
    rotation, scale, shift = _refine(grid[first.argsort()[: config.kept]], source, target, unlike, config)
    moved = scale[:, None, None] * source.points @ rotation.transpose(-1, -2) + shift[:, None]
    final = cost(rotation, moved)
    best = int(final.argmin())
    size = float(scale[best]) * target.size / source.size
    place = target.size * shift[best] + target.middle - size * rotation[best] @ source.middle
    device = here.points.device
    return Registration(rotation[best].to(device), size, place.to(device), float(final[best]))


@dataclass(frozen=True)
class _Cloud:
    """Some points of an object around its middle, in units of its size, with their features; on the CPU."""

    points: Float[Tensor, "m 3"]
    features: Float[Tensor, "m c"]
    middle: Float[Tensor, "3"]
    size: float

    @classmethod
    def of(cls, scene: Scene, count: int) -> _Cloud:
        """At most `count` well-spread points of a scene."""
        points = scene.points.detach().cpu()
        chosen = farthest_points(points, min(count, len(points)), seed=0)
        middle = points[chosen].mean(dim=0)
        size = float((points[chosen] - middle).square().sum(dim=-1).mean().sqrt().clamp_min(1e-6))
        return cls((points[chosen] - middle) / size, scene.features.detach().cpu()[chosen], middle, size)


def _refine(
    rotation: Float[Tensor, "r 3 3"],
    source: _Cloud,
    target: _Cloud,
    unlike: Float[Tensor, "m n"],
    config: RegistrationConfig,
) -> tuple[Float[Tensor, "r 3 3"], Float[Tensor, "r"], Float[Tensor, "r 3"]]:
    """Iterated closest points with features, in both directions; rotation, scale and shift of every candidate."""
    scale, shift = torch.ones(len(rotation)), torch.zeros(len(rotation), 3)
    goal = target.points.expand(len(rotation), -1, -1)
    for _ in range(config.steps):
        moved = scale[:, None, None] * source.points @ rotation.transpose(-1, -2) + shift[:, None]
        fit = torch.cdist(moved, goal).square() + unlike
        onto, back = fit.argmin(dim=-1), fit.argmin(dim=-2)
        first = torch.cat((source.points.expand(len(rotation), -1, -1), source.points[back]), dim=1)
        second = torch.cat((target.points[onto], goal), dim=1)
        middles = first.mean(dim=1, keepdim=True), second.mean(dim=1, keepdim=True)
        first, second = first - middles[0], second - middles[1]
        rotation, _ = rigid_registration(first, second)
        scale = (first @ rotation.transpose(-1, -2) * second).sum(dim=(1, 2)) / first.square().sum(dim=(1, 2))
        scale = scale.clamp(*config.scale)
        shift = (middles[1] - scale[:, None, None] * middles[0] @ rotation.transpose(-1, -2))[:, 0]
    return rotation, scale, shift


def even_rotations(count: int) -> Float[Tensor, "count 3 3"]:
    """Rotations spread evenly over all there are: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    index: Int[np.ndarray, "count"] = np.arange(count)
    share = (index + 0.5) / count
    inner, outer = np.sqrt(share), np.sqrt(1.0 - share)
    first = 2 * math.pi * (index + 0.5) / math.sqrt(2.0)
    second = 2 * math.pi * (index + 0.5) / 1.533751168755204288118041
    quat_xyzw = np.stack(
        (inner * np.sin(first), inner * np.cos(first), outer * np.sin(second), outer * np.cos(second)), axis=-1
    )
    return torch.from_numpy(Rotation.from_quat(quat_xyzw).as_matrix()).float()
