"""Where a picture looks from, and how much of the world it holds; the page and the figures share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from afield.hand import Hand, HandPoints
from afield.scene import Scene

ELEVATIONS = (math.radians(28), math.radians(42))
AZIMUTHS = tuple(math.radians(angle) for angle in range(-135, 136, 15))
"""Between the direction of the fingers and the camera, seen from above; never from behind, through the arm."""
AROUND = 0.15
"""Pictures show the hand and what is this close to it, in metres."""
CELL = 0.006
"""Size in metres of the cells in which one thing hides another, when a side to look from is chosen."""


@dataclass(frozen=True)
class Stage:
    """The camera and the extent of one 3-D picture."""

    seen: Float[Tensor, "n 3"]
    """Points that must fit into the picture, in metres."""
    direction: Float[Tensor, "3"]
    """Unit vector from the scene towards the camera."""
    table: Float[Tensor, "4 3"] | None
    """Corners of the visible part of the table."""

    @property
    def axes(self) -> Float[Tensor, "3 3"]:
        """Rows: right, up and backwards of the camera, in the world."""
        right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), self.direction)
        right = torch.nn.functional.normalize(right, dim=0)
        return torch.stack((right, torch.linalg.cross(self.direction, right), self.direction))

    def fit(self, field_of_view: float, aspect: float, margin: float = 1.06) -> tuple[Float[Tensor, "3"], float]:
        """The point to look at and the distance from it at which everything just fills the picture.

        Args:
            field_of_view: vertical opening angle in radians.
            aspect: width of the picture by its height.
            margin: how much larger the picture is than what it shows.
        """
        points = self.seen @ self.axes.T
        tangent = math.tan(field_of_view / 2) / margin
        limits = torch.tensor([tangent * aspect, tangent])
        center = (points.amin(dim=0) + points.amax(dim=0)) / 2
        distance = 0.0
        # A camera at distance d sees |x| <= (d - z) t. Recentering changes the distance and the other way round.
        for _ in range(8):
            offset = points - center
            distance = float((offset[:, :2].abs() / limits + offset[:, 2:]).max())
            plane = offset[:, :2] / (distance - offset[:, 2:]).clamp_min(1e-3)
            center[:2] += (plane.amin(dim=0) + plane.amax(dim=0)) / 2 * distance
        offset = points - center
        distance = float((offset[:, :2].abs() / limits + offset[:, 2:]).max())
        return self.axes.T @ center, distance


def stages_for(
    hand: Hand,
    points: HandPoints,
    placed: Sequence[tuple[Scene, Float[Tensor, "d"]]],
    *more: Float[Tensor, "_ 3"],
) -> list[Stage]:
    """Look at several scenes with a hand from one side that is fixed to the hand, not to the world.

    So the demonstrated hand and the final hand are seen from the same angle, however the target lies in its scene. The
    side is taken from which the least of the hand, and of what it touches, is hidden in all scenes together.

    Args:
        hand: the hand.
        points: points of its surface.
        placed: scenes, each with the hand configuration in it.
        more: further points that must fit into every picture.
    """
    with torch.no_grad():
        surfaces = [hand.place(points, beta).detach().cpu() for _, beta in placed]
    clouds = [scene.points.detach().cpu() for scene, _ in placed]
    headings = [_heading(hand, beta) for _, beta in placed]

    def hidden(view: tuple[float, float]) -> float:
        sides = [_direction(heading + view[0], view[1]) for heading in headings]
        return sum(_hidden(*parts) for parts in zip(surfaces, clouds, sides, strict=True))

    azimuth, elevation = min(((a, e) for e in ELEVATIONS for a in AZIMUTHS), key=hidden)
    stages = []
    for surface, cloud, heading, (scene, _) in zip(surfaces, clouds, headings, placed, strict=True):
        close = cloud[torch.cdist(cloud, surface).amin(dim=-1) < AROUND]
        seen = torch.cat((close, surface, *(part.detach().cpu() for part in more)))
        stages.append(Stage(seen, _direction(heading + azimuth, elevation), table_corners(scene)))
    return stages


def _heading(hand: Hand, beta: Float[Tensor, "d"]) -> float:
    """The direction of the fingers seen from above, in radians."""
    pose, _ = hand.split(beta.detach().cpu())
    along = pose[:2, :3] @ hand.finger_direction.cpu()
    if float(along.norm()) < 0.3:  # fingers straight up or down: the palm's normal gives the heading instead
        along = pose[:2, :3] @ hand.palm_normal.cpu()
    return math.atan2(float(along[1]), float(along[0]))


def _direction(azimuth: float, elevation: float) -> Float[Tensor, "3"]:
    flat = math.cos(elevation)
    return torch.tensor([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


def _hidden(surface: Float[Tensor, "q 3"], cloud: Float[Tensor, "n 3"], direction: Float[Tensor, "3"]) -> float:
    """Share of the hand that the scene hides, and of the touched scene points that hand or scene hide."""
    touched = torch.cdist(cloud, surface).amin(dim=-1) < 0.03
    everything = torch.cat((surface, cloud))
    seen = everything @ Stage(everything, direction, None).axes.T
    cells = torch.div(seen[:, :2] - seen[:, :2].amin(dim=0), CELL, rounding_mode="floor").long()
    index = cells[:, 0] * (int(cells[:, 1].max()) + 1) + cells[:, 1]
    front = torch.full((int(index.max()) + 1,), -torch.inf).scatter_reduce(0, index, seen[:, 2], "amax")
    covered = front[index] > seen[:, 2] + 0.015
    count = len(surface)
    parts = [covered[:count].float().mean()]
    if bool(touched.any()):
        parts.append(covered[count:][touched].float().mean())
    return float(sum(parts))


def table_corners(scene: Scene, margin: float = 0.03) -> Float[Tensor, "4 3"] | None:
    """A rectangle of the table under the scene's points, with `margin` metres around them; None without a table."""
    if scene.table is None:
        return None
    normal = scene.table.normal.detach().cpu()
    first = torch.linalg.cross(normal, torch.eye(3)[int(normal.abs().argmin())])
    first = torch.nn.functional.normalize(first, dim=0)
    second = torch.linalg.cross(normal, first)
    points = scene.points.detach().cpu()
    u, v = points @ first, points @ second
    corners = ((u.min(), v.min()), (u.max(), v.min()), (u.max(), v.max()), (u.min(), v.max()))
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    base = scene.table.offset * normal
    return torch.stack(
        [
            base + (a + margin * s) * first + (b + margin * t) * second
            for (a, b), (s, t) in zip(corners, signs, strict=True)
        ]
    )
