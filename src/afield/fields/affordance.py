"""Neural affordance functions (Actron3D, Eq. 2): one function that knows an object's surface, look, contact region and motion.

    F(x) = (signed distance, colour, descriptor, contact probability; on the surface: H steps of flow and their visibility)

Two backends stand behind one protocol: `grid`, the fast default (`affordance_grid.py`), and `neus`, the paper's networks to
the letter (`affordance_neus.py`). All points are in the object's canonical frame, in which the object fits into the cube
from -1 to 1.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from afield.errors import AfieldError


@runtime_checkable
class AffordanceField(Protocol):
    """What volume rendering, alignment and decoding ask of an object."""

    backend: str
    """grid or neus."""
    channels: int
    """Length d of the descriptors."""

    @property
    def sharpness(self) -> Tensor:
        """Inverse width of the surface in canonical units (1/s of NeuS): how fast the density rises across it."""
        ...

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """f_geo: signed distance to the surface in canonical units, negative inside."""
        ...

    def normal(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Gradient of the signed distance, not normalized."""
        ...

    def appearance(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """f_col, f_fea, f_cnt: colour (0 to 1), descriptor, contact probability (0 to 1)."""
        ...

    def flow(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n h 3"], Float[Tensor, "n h"]]:
        """f_act on surface points: displacements over the horizon H in canonical units, and visibilities (0 to 1)."""
        ...

    def surface(
        self, count: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
        """`count` points evenly on the zero level in canonical units, and their unit normals."""
        ...


@torch.no_grad()
def sample_surface(
    field: AffordanceField, count: int, resolution: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
    """Points evenly on the zero level of a field: random ones of a thin band around it, moved onto it along the gradient.

    A band of equal thickness has as much volume as the surface below it has area, so what is even in one is in the other.

    Args:
        field: whose surface.
        count: how many points.
        resolution: cells along each side of the cube in which the surface is looked for; the band is half a cell thick.
        generator: of the points; none takes the global one.

    Raises:
        AfieldError: the signed distance has no zero level in the cube.
    """
    cell = 2.0 / resolution
    axis = (torch.arange(resolution) + 0.5) * cell - 1.0
    middles = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    close = torch.cat([field.sdf(part).abs() for part in middles.split(1 << 16)]) < 1.5 * cell
    cells, found, missing = middles[close], [], count
    for _ in range(100):
        if missing <= 0 or not len(cells):
            break
        draws = 8 * missing + 64
        start = cells[torch.randint(len(cells), (draws,), generator=generator)]
        start = start + cell * (torch.rand(draws, 3, generator=generator) - 0.5)
        start = start[_to_zero(field, start).norm(dim=-1) < 0.25 * cell]
        end = start
        for _ in range(4):
            end = end + _to_zero(field, end)
        ended = (_to_zero(field, end).norm(dim=-1) < 1e-3 * cell) & ((end - start).norm(dim=-1) < 0.5 * cell)
        found.append(end[ended & (end.abs() <= 1.0).all(dim=-1)])
        missing -= len(found[-1])
    if missing > 0:
        raise AfieldError("The affordance function has no surface within its cube; it was fitted to nothing.")
    points = torch.cat(found)[:count]
    return points, functional.normalize(field.normal(points), dim=-1)


def _to_zero(field: AffordanceField, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """The step of Newton's method to the zero level."""
    slope = field.normal(points)
    return -(field.sdf(points) / slope.square().sum(dim=-1).clamp_min(1e-3))[:, None] * slope


class PositionalEncoding(nn.Module):
    """The point itself and sines and cosines of `bands` octaves of it, the lowest of `base` radians per unit."""

    frequencies: Tensor

    def __init__(self, bands: int, base: float = math.pi) -> None:
        super().__init__()
        self.register_buffer("frequencies", base * 2.0 ** torch.arange(bands), persistent=False)
        self.channels = 3 + 6 * bands

    def forward(self, points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """Encode points within the cube from -1 to 1."""
        phase = (points[..., None] * self.frequencies).flatten(-2)
        return torch.cat((points, phase.sin(), phase.cos()), dim=-1)


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """`layers` linear maps with ReLU between them."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    steps: list[nn.Module] = []
    for index in range(layers):
        steps.append(nn.Linear(widths[index], widths[index + 1]))
        if index < layers - 1:
            steps.append(nn.ReLU())
    return nn.Sequential(*steps)


class ActionHead(nn.Module):
    """f_act (III-E): surface points with 10 bands, fused with descriptor and latent (96 channels by 2 layers), then 3 layers."""

    def __init__(self, latent: int, channels: int, horizon: int, bands: int = 10, hidden: int = 128) -> None:
        super().__init__()
        self.horizon = horizon
        self.encode = PositionalEncoding(bands)
        self.fuse = mlp(latent + channels, hidden, 96, 2)
        self.decode = mlp(self.encode.channels + 96, hidden, 4 * horizon, 3)

    def forward(
        self, points: Float[Tensor, "n 3"], latent: Float[Tensor, "n z"], descriptor: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n h 3"], Float[Tensor, "n h"]]:
        """Displacements in canonical units and visibilities from 0 to 1."""
        fused = self.fuse(torch.cat((latent, descriptor), dim=-1))
        out = self.decode(torch.cat((self.encode(points), fused), dim=-1)).unflatten(-1, (self.horizon, 4))
        return out[..., :3], out[..., 3].sigmoid()
