"""The fast affordance function: everything in voxel grids, looked up trilinearly; normals in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from afield.fields.affordance import ActionHead, sample_surface


@dataclass(frozen=True)
class GridConfig:
    """Sizes of the grid backend."""

    resolution: int = 72
    """Vertices along each side of the signed-distance grid."""
    detail: int = 56
    """Vertices along each side of the grid of colour and contact."""
    described: int = 32
    """Vertices along each side of the grid of descriptors, which image features resolve no finer."""
    channels: int = 16
    """Length d of the descriptors: principal components of the image features."""
    horizon: int = 32
    """Steps H of the flow."""
    bands: int = 4
    """Octaves of the action head's encoding; the paper has 10, which wiggles between few tracks."""
    sharpness: float = 20.0
    """First inverse width of the surface, in 1/canonical unit; fitting raises it."""


class GridAffordance(nn.Module):
    """An `AffordanceField` in voxel grids over the cube from -1 to 1."""

    backend = "grid"
    sharpness: Tensor

    def __init__(self, config: GridConfig | None = None) -> None:
        super().__init__()
        self.config = config or GridConfig()
        size, detail = self.config.resolution, self.config.detail
        self.channels = self.config.channels
        axis = torch.linspace(-1.0, 1.0, size)
        ball = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1) - 0.5
        self.distance = nn.Parameter(ball)
        # The last axis of a look-up is x, so grids are stored [channel, z, y, x]; the ball is symmetric.
        self.looks = nn.Parameter(torch.zeros(4, detail, detail, detail))
        self.descriptors = nn.Parameter(torch.zeros(self.channels, *[self.config.described] * 3))
        self.action = ActionHead(3, self.channels, self.config.horizon, self.config.bands)
        self.register_buffer("sharpness", torch.tensor(self.config.sharpness))

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """f_geo. Outside the cube the distance to the cube is added."""
        inside = points.clamp(-1.0, 1.0)
        beyond = (points - inside).norm(dim=-1)
        return look_up(self.distance[None], inside)[:, 0] + beyond

    def normal(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Exact gradient of the trilinear interpolation; zero outside the cube."""
        return trilinear_gradient(self.distance, points)

    def appearance(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """f_col, f_fea, f_cnt."""
        found = look_up(self.looks, points)
        return found[:, :3].sigmoid(), look_up(self.descriptors, points), (found[:, 3] - 3.0).sigmoid()

    def flow(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n h 3"], Float[Tensor, "n h"]]:
        """f_act; the latent of a grid is its surface normal."""
        return self.action(points, *self.conditions(points))

    def conditions(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n d"]]:
        """What the action head is told about points: normal and descriptor."""
        return functional.normalize(self.normal(points), dim=-1), look_up(self.descriptors, points)

    def surface(
        self, count: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
        """`count` points evenly on the zero level in canonical units, and their unit normals; see `sample_surface`."""
        return sample_surface(self, count, self.distance.shape[0] - 1, generator)

    @torch.no_grad()
    def refine(self, resolution: int) -> None:
        """Give the signed-distance grid more vertices; the surface stays where it is."""
        grid = functional.interpolate(
            self.distance[None, None], size=(resolution,) * 3, mode="trilinear", align_corners=True
        )
        self.distance = nn.Parameter(grid[0, 0])


def look_up(grid: Float[Tensor, "c z y x"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
    """Trilinear interpolation at points in the cube from -1 to 1; the border's value outside."""
    found = functional.grid_sample(
        grid[None], points[None, :, None, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return found[0, :, :, 0, 0].T


def trilinear_gradient(grid: Float[Tensor, "z y x"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Gradient of the trilinear interpolation with respect to the points, from the eight corners of the cell.

    Written out, so that a loss on it needs one backward pass only.
    """
    size = torch.tensor([grid.shape[2], grid.shape[1], grid.shape[0]], device=grid.device)
    place = (points.clamp(-1.0, 1.0) + 1.0) / 2 * (size - 1)
    cell = place.detach().floor().long().clamp_min(0)
    cell = torch.minimum(cell, size - 2)
    share = place - cell
    x, y, z = cell.unbind(dim=-1)
    corner = [[[grid[z + k, y + j, x + i] for i in (0, 1)] for j in (0, 1)] for k in (0, 1)]
    u, v, w = share.unbind(dim=-1)

    def mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """From `a` to `b` as `t` goes from 0 to 1."""
        return a + t * (b - a)

    along_x = [[corner[k][j][1] - corner[k][j][0] for j in (0, 1)] for k in (0, 1)]
    values = [[mix(corner[k][j][0], corner[k][j][1], u) for j in (0, 1)] for k in (0, 1)]
    dx = mix(mix(along_x[0][0], along_x[0][1], v), mix(along_x[1][0], along_x[1][1], v), w)
    dy = mix(values[0][1] - values[0][0], values[1][1] - values[1][0], w)
    dz = mix(values[1][0], values[1][1], v) - mix(values[0][0], values[0][1], v)
    inside = (points.abs() <= 1.0).all(dim=-1, keepdim=True)
    return torch.stack((dx, dy, dz), dim=-1) * (size - 1) / 2 * inside
