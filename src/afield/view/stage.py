"""Where a picture looks from, and how much of the world it holds; the page and the figures share it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from afield.hand import Hand, HandPoints
from afield.scene import Scene

ELEVATION = math.radians(28)
AZIMUTH = math.radians(115)
"""Between the direction of the fingers and the camera, seen from above."""


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


def stage_for(
    scene: Scene, hand: Hand, points: HandPoints, beta: Float[Tensor, "d"], *more: Float[Tensor, "_ 3"]
) -> Stage:
    """Look at a scene, the hand's surface and `more` points from a side that is fixed to the hand, not to the world.

    So the demonstrated hand and the final hand are seen from the same angle, however the target lies in its scene.
    """
    with torch.no_grad():
        seen = torch.cat([part.detach().cpu() for part in (scene.points, hand.place(points, beta), *more)])
    return Stage(seen, _direction(hand, beta), table_corners(scene))


def _direction(hand: Hand, beta: Float[Tensor, "d"]) -> Float[Tensor, "3"]:
    pose, _ = hand.split(beta.detach().cpu())
    along = pose[:2, :3] @ hand.finger_direction.cpu()
    if float(along.norm()) < 0.3:  # fingers straight up or down: the palm's normal gives the azimuth instead
        along = pose[:2, :3] @ hand.palm_normal.cpu()
    azimuth = math.atan2(float(along[1]), float(along[0])) + AZIMUTH
    flat = math.cos(ELEVATION)
    return torch.tensor([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(ELEVATION)])


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
