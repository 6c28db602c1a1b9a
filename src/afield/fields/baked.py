"""A field evaluated once on a grid and looked up by trilinear interpolation, far cheaper than the exact evaluation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.fields.base import Field
from afield.scene import Scene

MOST_CELLS = 2_000_000
"""A grid with more points than this is refused: with 65 channels it would hold half a gigabyte."""


class BakedField:
    """Trilinear look-ups in a grid of another field's features; outside the grid its border values hold."""

    def __init__(self, values: Float[Tensor, "z y x c"], low: Float[Tensor, "3"], high: Float[Tensor, "3"]) -> None:
        self.values, self.low, self.high = values, low, high
        self.channels = values.shape[-1]
        depth, height, width = values.shape[:3]
        self._last = torch.tensor([width, height, depth], device=low.device) - 1
        self._stride = torch.tensor([1, width, height * width], device=low.device)
        corners = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
        self._corners = (torch.tensor(corners, device=low.device) * self._stride).sum(dim=-1)

    @classmethod
    @torch.no_grad()
    def around(cls, field: Field, scene: Scene, spacing: float = 0.01, margin: float = 0.10) -> BakedField:
        """Evaluate `field` on a grid around a scene.

        Args:
            field: what to bake.
            scene: its bounding box, widened by `margin`, is the grid's extent.
            spacing: distance of grid points in metres.
            margin: in metres; farther away the hand does not touch the scene.

        Raises:
            AfieldError: the scene is so large that the grid would not fit into memory.
        """
        low = scene.points.amin(dim=0) - margin
        counts = ((scene.points.amax(dim=0) + margin - low) / spacing).ceil().long() + 1
        if int(counts.prod()) > MOST_CELLS:
            size = " x ".join(f"{float(side):.2f}" for side in scene.points.amax(dim=0) - scene.points.amin(dim=0))
            raise AfieldError(
                f"'{scene.name}' is {size} m large: a grid of {spacing} m would have {int(counts.prod())} points, "
                f"and at most {MOST_CELLS} are allowed. Crop the workspace, or choose a larger grid spacing."
            )
        high = low + (counts - 1) * spacing
        axes = [torch.linspace(float(low[i]), float(high[i]), int(counts[i]), device=low.device) for i in range(3)]
        z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        grid = torch.stack((x, y, z), dim=-1).reshape(-1, 3)
        values = torch.cat([field(chunk) for chunk in grid.split(4096)])
        return cls(values.reshape(int(counts[2]), int(counts[1]), int(counts[0]), field.channels), low, high)

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Interpolated features at world points, differentiable in the points.

        The same as `torch.nn.functional.grid_sample`, but channels lie side by side in memory and the eight corners of a
        cell are fetched and summed by one `embedding_bag`, which is several times faster (`afield bench field`).
        """
        place = (points.reshape(-1, 3) - self.low) * (self._last / (self.high - self.low))
        place = place.nan_to_num(0.0).clamp_min(0).minimum(self._last.to(place))
        cell = place.detach().long().minimum(self._last - 1)
        far = place - cell
        x, y, z = torch.stack((1 - far, far), dim=-1).unbind(dim=1)
        weight = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)
        index = (cell * self._stride).sum(dim=-1, keepdim=True) + self._corners
        found = functional.embedding_bag(index, self.values.flatten(0, 2), per_sample_weights=weight, mode="sum")
        return found.reshape(*points.shape[:-1], self.channels)
