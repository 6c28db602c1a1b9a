"""The neural attention field: a light transformer decoder aggregates the scene's features by relevance (Eq. 3, Fig. 7).

Keys are [X, F], queries [q, f] with f from Eq. 2, values F. The paper leaves open how the pairwise distances are
"applied as weights to the keys and queries" (appendix A), so there are three presets:

- `default`: the distances enter the logits, <q, k> / sqrt(d) - a log(dist^2). With small projections and a = 1 this
  *is* Eq. 2 at the start, and training moves it from spatial towards semantic weights. The output stays in the span
  of F.
- `faithful`: the literal reading. Keys and queries are multiplied by the distance weights before the product.
- `block`: a whole decoder block with several heads, output projection, feed-forward network and residuals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from afield.fields.base import block_rows, squared_distances
from afield.fields.kernel import FieldKernel, Projections, scaled_keys
from afield.scene import Scene

Preset = Literal["default", "faithful", "block"]
PRESETS: tuple[str, ...] = get_args(Preset)
HIDDEN = 1e6
"""Squared distance that a hidden scene point is given, in square metres."""


@dataclass(frozen=True)
class AttentionConfig:
    """Architecture of the decoder."""

    preset: Preset = "default"
    """How distances enter: in the logits (default, block) or multiplied into keys and queries (faithful)."""
    width: int = 32
    """Width of queries and keys, over all heads."""
    heads: int = 4
    """Heads of the block preset; the others have one."""
    position_scale: float = 5.0
    """Positions are centred on the scene and multiplied by this before the projections, per metre."""


class Decoder(nn.Module):
    """D_theta of Eq. 3, one layer."""

    def __init__(self, channels: int, config: AttentionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.channels, self.config = channels, config
        self.query = nn.Linear(3 + channels, config.width, bias=False)
        self.key = nn.Linear(3 + channels, config.width, bias=False)
        self.heads = config.heads if config.preset == "block" else 1
        self.sharpness = nn.Parameter(torch.ones(self.heads if self.heads > 1 else ()))
        scale = 1.0 if config.preset == "faithful" else 0.1
        for layer in (self.query, self.key):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = scale * noise / math.sqrt(3 + channels)
        self.block = _Block(channels, generator) if config.preset == "block" else None

    def keys(self, scene_points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Projected keys [X, F]; they do not depend on the query and are computed once per scene."""
        return self.key(torch.cat((self._position(scene_points, scene_points), features), dim=-1))

    def fold(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """F Wq: the features as they enter the queries. Interpolating them equals projecting the interpolated F."""
        return features @ self.query.weight[:, 3:].T

    def projections(self, scene_points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"]) -> Projections:
        """What the fast evaluation of the default preset needs of a scene."""
        position = self.config.position_scale * self.query.weight[:, :3].T
        keys = scaled_keys(self.keys(scene_points, features))
        return Projections(keys, self.fold(features).contiguous(), position.contiguous(), float(self.sharpness))

    def attention(
        self,
        scene_points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"],
        queries: Float[Tensor, "q 3"],
        hide: Bool[Tensor, "q n"] | None = None,
    ) -> tuple[Float[Tensor, "h q n"], Float[Tensor, "q n"]]:
        """Attention of queries over scene points.

        Args:
            scene_points: X, metres.
            features: F.
            queries: q, metres.
            hide: scene points that a query must not see (itself, in training).

        Returns:
            The weights of every head, and those of Eq. 2.
        """
        squared = squared_distances(queries, scene_points)
        if hide is not None:
            squared = squared.masked_fill(hide, HIDDEN)
        inverse = squared.reciprocal()
        interpolation = inverse / inverse.sum(dim=-1, keepdim=True)
        query = self._position(queries, scene_points) @ self.query.weight[:, :3].T + interpolation @ self.fold(features)
        query, key = (self._split(part) for part in (query, self.keys(scene_points, features)))
        logits = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        if self.config.preset == "faithful":
            # The weights of Eq. 2, relative to their largest value, scale both sides of the product.
            logits = logits * (interpolation / interpolation.amax(dim=-1, keepdim=True)).square()
        else:
            logits = logits - self.sharpness.reshape(-1, 1, 1) * squared.log()
        if hide is not None:
            logits = logits.masked_fill(hide, -torch.inf)
        return logits.softmax(dim=-1), interpolation

    def forward(
        self,
        scene_points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"],
        queries: Float[Tensor, "q 3"],
        hide: Bool[Tensor, "q n"] | None = None,
    ) -> Float[Tensor, "q c"]:
        """Aggregated features f_D of Eq. 3."""
        weights, interpolation = self.attention(scene_points, features, queries, hide)
        if self.block is None:
            return weights[0] @ features
        return self.block(weights, features, interpolation @ features)

    def _split(self, projected: Float[Tensor, "m d"]) -> Float[Tensor, "h m e"]:
        return projected.reshape(len(projected), self.heads, self.config.width // self.heads).transpose(0, 1)

    def _position(self, points: Float[Tensor, "m 3"], scene_points: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
        return (points - scene_points.mean(dim=0)) * self.config.position_scale


class _Block(nn.Module):
    """What follows the attention weights in a decoder block; with its last layers at zero it passes Eq. 2 through."""

    def __init__(self, channels: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.grow = nn.Linear(channels, 2 * channels)
        self.shrink = nn.Linear(2 * channels, channels)
        for layer in (self.value, self.grow):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = noise / math.sqrt(channels)
        for parameter in (self.out.weight, self.grow.bias, self.shrink.weight, self.shrink.bias):
            nn.init.zeros_(parameter)

    def forward(
        self, weights: Float[Tensor, "h q n"], features: Float[Tensor, "n c"], interpolated: Float[Tensor, "q c"]
    ) -> Float[Tensor, "q c"]:
        """Heads, output projection and feed-forward network, each added to what came before."""
        values = self.value(features).reshape(len(features), len(weights), -1).transpose(0, 1)
        mixed = (weights @ values).transpose(0, 1).reshape(interpolated.shape)
        result = interpolated + self.out(mixed)
        return result + self.shrink(nn.functional.gelu(self.grow(self.norm(result))))


class AttentionField:
    """The attention field around one scene, with everything that does not depend on the query computed once."""

    def __init__(self, scene: Scene, decoder: Decoder) -> None:
        self.scene, self.decoder = scene, decoder
        self.channels = scene.features.shape[-1]
        self._kernel = None
        if decoder.config.preset == "default":
            with torch.no_grad():
                projections = decoder.projections(scene.points, scene.features)
            self._kernel = FieldKernel(scene.points, scene.features, projections)

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Aggregated features f_D at world points, differentiable in the points (the decoder is frozen)."""
        flat = points.reshape(-1, 3)
        if self._kernel is not None:
            found = self._kernel(flat)
        else:
            blocks = flat.split(block_rows(flat.device))
            found = torch.cat([self.decoder(self.scene.points, self.scene.features, block) for block in blocks])
        return found.reshape(*points.shape[:-1], self.channels)

    @torch.no_grad()
    def weights(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch n"]:
        """Attention over the scene points, the mean over heads, without a gradient."""
        flat = points.reshape(-1, 3)
        if self._kernel is not None:
            found = self._kernel.weights(flat)
        else:
            found = self.decoder.attention(self.scene.points, self.scene.features, flat)[0].mean(dim=0)
        return found.reshape(*points.shape[:-1], len(self.scene.points))
