"""The paper's affordance function (Actron3D, III-E): the networks of NeuS, with heads for descriptors, contact and motion.

Where III-E refers to NeuS, the sizes are those of NeuS as published: an encoder of 8 hidden layers of 256 with a skip into the
fourth, whose last layer gives the signed distance and the latent z; a colour network of 4 hidden layers of 256. Of the colour
network's two published forms this is the one without viewing direction, because an `AffordanceField` has the same look from
everywhere. The heads for descriptors, contact and action have hidden layers of 128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from afield.fields.affordance import ActionHead, PositionalEncoding, mlp, sample_surface

PRIMES = (1, 2654435761, 805459861)
"""Of the spatial hash of instant neural graphics primitives (its Eq. 4)."""


@dataclass(frozen=True)
class NeusConfig:
    """Sizes of the neus backend; only what the paper leaves open differs between uses."""

    channels: int = 16
    """Length d of the descriptors."""
    horizon: int = 32
    """Steps H of the flow."""
    latent: int = 256
    """Length of z, and width of the encoder and of the colour network."""
    radius: float = 0.5
    """Of the ball that the signed distance is at first, in canonical units."""
    variance: float = 0.3
    """First value of NeuS's learnt variance; the sharpness is exp(10 variance)."""
    hash_size: int = 1 << 15
    """Entries of a level of the hash grid; the paper gives the number of levels only."""


class NeusAffordance(nn.Module):
    """An `AffordanceField` of multilayer perceptrons over the cube from -1 to 1."""

    backend = "neus"

    def __init__(self, config: NeusConfig | None = None) -> None:
        super().__init__()
        self.config = config or NeusConfig()
        self.channels, latent = self.config.channels, self.config.latent
        self.encode = PositionalEncoding(6, base=1.0)
        self.encoder = GeometryNetwork(latent, self.config.radius)
        self.variance = nn.Parameter(torch.tensor(self.config.variance))
        widths = [6 + latent, *[latent] * 4, 3]
        self.color = nn.ModuleList([weight_norm(nn.Linear(a, b)) for a, b in pairwise(widths)])
        self.hashed = HashEncoding(size=self.config.hash_size)
        self.feature = mlp(latent + self.encode.channels + self.hashed.channels, 128, self.channels, 2)
        self.contact = mlp(latent + self.encode.channels, 128, 1, 3)
        self.action = ActionHead(latent, self.channels, self.config.horizon)

    @property
    def sharpness(self) -> Tensor:
        """Learnt, as in NeuS."""
        return (10.0 * self.variance).exp()

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """f_geo."""
        return self.encoder(points)[:, 0]

    def normal(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Gradient of the signed distance by automatic differentiation; itself differentiable where gradients are on."""
        return self._encode(points)[1]

    def appearance(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """f_col, f_fea, f_cnt."""
        latent, normal = self._encode(points)
        color = torch.cat((points, normal, latent), dim=-1)
        for index, layer in enumerate(self.color):
            color = layer(color).relu() if index < len(self.color) - 1 else layer(color).sigmoid()
        encoded = torch.cat((latent, self.encode(points)), dim=-1)
        return color, self._descriptor(points, encoded), self.contact(encoded)[:, 0].sigmoid()

    def flow(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n h 3"], Float[Tensor, "n h"]]:
        """f_act on z and descriptor."""
        return self.action(points, *self.conditions(points))

    def conditions(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n d"]]:
        """What the action head is told about points: latent and descriptor."""
        latent = self.encoder(points)[:, 1:]
        return latent, self._descriptor(points, torch.cat((latent, self.encode(points)), dim=-1))

    def surface(
        self, count: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
        """`count` points evenly on the zero level in canonical units, and their unit normals; see `sample_surface`."""
        return sample_surface(self, count, 32, generator)

    def _descriptor(self, points: Float[Tensor, "n 3"], encoded: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        return self.feature(torch.cat((encoded, self.hashed(points)), dim=-1))

    def _encode(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n 3"]]:
        """Latent and gradient of the signed distance, from one pass through the encoder."""
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            place = points if points.requires_grad else points.detach().requires_grad_(True)
            out = self.encoder(place)
            (normal,) = torch.autograd.grad(out[:, 0].sum(), place, create_graph=further, retain_graph=further)
        return (out if further else out.detach())[:, 1:], normal


class GeometryNetwork(nn.Module):
    """f_enc and f_geo as one network, as in NeuS: softplus of beta 100, skip at 4, weight norm, geometric initialization."""

    def __init__(self, width: int = 256, radius: float = 0.5, layers: int = 8, skip: int = 4) -> None:
        super().__init__()
        self.encode = PositionalEncoding(6, base=1.0)
        self.skip = skip
        inputs = self.encode.channels
        widths = [inputs, *[width] * layers, 1 + width]
        self.layers = nn.ModuleList()
        for index in range(layers + 1):
            outputs = widths[index + 1] - (inputs if index + 1 == skip else 0)
            layer = nn.Linear(widths[index], outputs)
            _initialize(layer, index, layers, skip, inputs, radius)
            self.layers.append(weight_norm(layer))

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
        """Signed distance, then z."""
        encoded = self.encode(points)
        found = encoded
        for index, layer in enumerate(self.layers):
            if index == self.skip:
                found = torch.cat((found, encoded), dim=-1) / math.sqrt(2.0)
            found = layer(found)
            if index < len(self.layers) - 1:
                found = nn.functional.softplus(found, beta=100.0)
        return found


@torch.no_grad()
def _initialize(layer: nn.Linear, index: int, last: int, skip: int, inputs: int, radius: float) -> None:
    """Weights with which the network is close to the signed distance of a ball (Atzmon and Lipman, 2020)."""
    nn.init.zeros_(layer.bias)
    if index == last:
        nn.init.normal_(layer.weight, math.sqrt(math.pi) / math.sqrt(layer.in_features), 1e-4)
        nn.init.constant_(layer.bias, -radius)
        return
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0) / math.sqrt(layer.out_features))
    if index == 0:
        layer.weight[:, 3:] = 0.0  # the sines and cosines do not count at first
    elif index == skip:
        layer.weight[:, 3 - inputs :] = 0.0


class HashEncoding(nn.Module):
    """The multiresolution hash grid of Mueller et al. (2022): levels of ever finer grids, fine ones in hashed tables."""

    def __init__(
        self, levels: int = 12, features: int = 2, size: int = 1 << 15, low: int = 16, high: int = 512
    ) -> None:
        super().__init__()
        growth = (high / low) ** (1.0 / (levels - 1))
        self.resolutions = [math.floor(low * growth**level + 1e-6) for level in range(levels)]
        self.size = size
        self.channels = levels * features
        self.table = nn.Parameter((2.0 * torch.rand(levels, size, features) - 1.0) * 1e-4)

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
        """Trilinear look-ups of all levels, side by side; points in the cube from -1 to 1."""
        unit = (points.clamp(-1.0, 1.0) + 1.0) / 2.0
        corners = torch.stack(torch.meshgrid(*[torch.arange(2)] * 3, indexing="ij"), dim=-1).reshape(8, 3)
        found = []
        for resolution, table in zip(self.resolutions, self.table, strict=True):
            place = unit * resolution
            cell = place.detach().floor().clamp(max=resolution - 1)
            share = (place - cell)[:, None]
            weight = torch.where(corners.bool(), share, 1.0 - share).prod(dim=-1)
            index = self.index(cell.long()[:, None] + corners, resolution)
            found.append((table[index] * weight[..., None]).sum(dim=1))
        return torch.cat(found, dim=-1)

    def index(self, vertices: Int[Tensor, "*b 3"], resolution: int) -> Int[Tensor, "*b"]:
        """Place of a vertex in the table of its level: its number if all fit, else its hash."""
        x, y, z = vertices.unbind(dim=-1)
        side = resolution + 1
        if side**3 <= self.size:
            return (z * side + y) * side + x
        return ((x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) % self.size
