"""The distilled feature field: inverse distance weighting of the scene's features (Eq. 2)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from afield.fields.kernel import FieldKernel
from afield.scene import Scene


class InterpolatedField:
    """Eq. 2: every scene point contributes with the inverse of its squared distance to the query.

    All points count: the sum of far points does not vanish, so the k nearest ones alone are not an approximation.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.channels = scene.features.shape[-1]
        self._kernel = FieldKernel(scene.points, scene.features)

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Interpolated features at world points."""
        return self._kernel(points.reshape(-1, 3)).reshape(*points.shape[:-1], self.channels)

    def weights(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch n"]:
        """The weights w of Eq. 2, without a gradient."""
        return self._kernel.weights(points.reshape(-1, 3)).reshape(*points.shape[:-1], len(self.scene.points))
