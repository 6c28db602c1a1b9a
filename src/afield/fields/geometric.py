"""The geometry channel: how far a query is from the scene, which an average of features cannot say.

A field whose weights sum to one has the same size everywhere, so Eq. 7 has no reason to prefer places near the
object. The distance to the nearest scene point, appended as one more channel, is the largest single gain that was
measured; alone it is the control that every table shows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from afield.fields.base import Field, nearest
from afield.scene import Scene

REACH = 0.08
"""Distances are capped here, in metres: farther away the hand touches nothing."""

SCALE = 2.0
"""Weight of the geometry channel: what one metre of distance adds to the energy, per unit of Eq. 7."""


def surface_distance(scene: Scene, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Distance to the nearest scene point in metres, capped at `REACH`."""
    flat = points.reshape(-1, 3)
    # The nearest point is found without a gradient; the distance to it is then exact and cheap to differentiate.
    distance = (flat - scene.points[nearest(flat, scene.points)]).square().sum(dim=-1).clamp_min(1e-12).sqrt()
    return distance.clamp_max(REACH).reshape(points.shape[:-1])


class GeometryField:
    """Only the distance to the surface; knows nothing of features."""

    channels = 1

    def __init__(self, scene: Scene, scale: float = SCALE) -> None:
        self.scene, self.scale = scene, scale

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 1"]:
        """`scale` times the capped distance in metres."""
        return self.scale * surface_distance(self.scene, points)[..., None]


class WithGeometry:
    """Another field with the geometry channel appended.

    The channel is multiplied by the number of channels c, so that in the mean over channels (Eq. 7) it weighs the
    same for any feature length: one centimetre of difference in every query point adds scale * c / (c + 1) * 0.01,
    about 0.02, to the energy. `GeometryField` alone has the same size, so the control and the field are comparable.
    """

    def __init__(self, field: Field, scene: Scene, scale: float = SCALE) -> None:
        self.field, self.scene = field, scene
        self.scale = scale * field.channels
        self.channels = field.channels + 1

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """The unit-norm features of the other field, then the scaled distance."""
        features = torch.nn.functional.normalize(self.field(points), dim=-1)
        return torch.cat((features, self.scale * surface_distance(self.scene, points)[..., None]), dim=-1)
