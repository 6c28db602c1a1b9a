"""The distilled feature field: inverse distance weighting of the scene's features (Eq. 2)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from afield.fields.base import squared_distances
from afield.scene import Scene


class InterpolatedField:
    """Eq. 2: every scene point contributes with the inverse of its squared distance to the query."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.channels = scene.features.shape[-1]

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Interpolated features at world points."""
        return self.weights(points) @ self.scene.features.to(points)

    def weights(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch n"]:
        """w of Eq. 2."""
        inverse = squared_distances(points.reshape(-1, 3), self.scene.points.to(points)).reciprocal()
        return (inverse / inverse.sum(dim=-1, keepdim=True)).reshape(*points.shape[:-1], -1)
