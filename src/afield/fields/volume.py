"""An affordance function in one voxel grid with derivatives: what alignment looks up thousands of times.

Signed distance, descriptors and contact probability are evaluated once on a grid. Descriptors and contact are those of the
nearest surface point, for off the surface nobody has fitted them. A look-up gives values and their exact spatial derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from afield.fields.affordance import AffordanceField

REACH = 1.5
"""Half side of the grid in canonical units: the object and some of the free space around it."""


@dataclass(frozen=True)
class Volume:
    """Values on the vertices of a grid over the cube from -REACH to REACH, channels last.

    Channel 0 is the signed distance, the last one the contact probability, those between are the descriptor.
    """

    grid: Float[Tensor, "z y x c"]
    surface: Float[Tensor, "k 3"]
    """Points evenly on the surface."""
    normals: Float[Tensor, "k 3"]
    """Unit normals there, outward."""
    descriptors: Float[Tensor, "k d"]
    contact: Float[Tensor, "k"]

    @classmethod
    @torch.no_grad()
    def bake(cls, field: AffordanceField, size: int = 64, count: int = 4000, seed: int = 0) -> Volume:
        """Evaluate a function of either backend.

        Args:
            field: the function.
            size: vertices along a side.
            count: surface points.
            seed: of the surface points.
        """
        surface, normals = field.surface(count, torch.Generator().manual_seed(seed))
        _, descriptors, contact = field.appearance(surface)
        axis = torch.linspace(-REACH, REACH, size)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        points = torch.stack((x, y, z), dim=-1).reshape(-1, 3)
        distance = torch.cat([field.sdf(part) for part in points.split(65536)])
        nearest = torch.from_numpy(KDTree(surface.numpy()).query(points.numpy())[1])
        values = torch.cat((distance[:, None], descriptors[nearest], contact[nearest][:, None]), dim=-1)
        return cls(values.reshape(size, size, size, -1), surface, normals, descriptors, contact)

    def look_up(
        self, points: Float[Tensor, "*b 3"], *, distance_only: bool = False
    ) -> tuple[Float[Tensor, "*b c"], Float[Tensor, "*b c 3"]]:
        """Trilinear interpolation and its derivatives; outside the grid the way to it is added to the distance.

        Args:
            points: canonical.
            distance_only: look up channel 0 only.
        """
        grid = self.grid[..., :1] if distance_only else self.grid
        size = grid.shape[0]
        inside = points.clamp(-REACH, REACH)
        beyond = points - inside
        away = beyond.norm(dim=-1)
        place = (inside + REACH) / (2 * REACH) * (size - 1)
        cell = place.floor().long().clamp(0, size - 2)
        share = (place - cell).unsqueeze(-1)
        flat = grid.reshape(size**3, -1)
        first = (cell[..., 2] * size + cell[..., 1]) * size + cell[..., 0]
        u, v, w = share.unbind(dim=-2)

        def edge(offset: int) -> tuple[Tensor, Tensor]:
            """Values along an edge of the cell in the first direction, and their slope."""
            low, high = flat[first + offset], flat[first + offset + 1]
            slope = high - low
            return low + u * slope, slope

        (a, da), (b, db) = edge(0), edge(size)
        (c, dc), (d, dd) = edge(size * size), edge(size * size + size)
        low, high = a + v * (b - a), c + v * (d - c)
        slope_x = (da + v * (db - da)) * (1 - w) + (dc + v * (dd - dc)) * w
        slope_y = (b - a) * (1 - w) + (d - c) * w
        values = low + w * (high - low)
        gradient = torch.stack((slope_x, slope_y, high - low), dim=-1) * ((size - 1) / (2 * REACH))
        gradient = gradient * (beyond == 0).unsqueeze(-2)
        if bool((away > 0).any()):
            values, gradient = values.clone(), gradient.clone()
            values[..., 0] += away
            gradient[..., 0, :] += beyond / away.clamp_min(1e-9).unsqueeze(-1)
        return values, gradient
