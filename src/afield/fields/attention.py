"""The neural attention field: a light transformer decoder aggregates the scene's features by relevance (Eq. 3, Fig. 7).

Keys are [X, F], queries [q, f] with f from Eq. 2, values F. The paper leaves open how the pairwise distances are "applied as
weights to the keys and queries" (appendix A); two readings are here:

- `default`: the distances enter the logits, <q, k> / sqrt(d) - a log(dist^2 + eps). With small projections and a = 1 this *is*
  Eq. 2 at the start, and training moves it from spatial towards semantic weights. The output stays in the span of F.
- `faithful`: the literal reading. Keys and queries are multiplied by the distance weights before the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from afield.fields.base import MIN_SQUARED, squared_distances
from afield.scene import Scene


@dataclass(frozen=True)
class AttentionConfig:
    """Architecture of the decoder."""

    preset: Literal["default", "faithful"] = "default"
    """How distances enter: in the logits (default) or multiplied into keys and queries (faithful)."""
    width: int = 64
    """Width of queries and keys."""
    position_scale: float = 5.0
    """Positions are centred on the scene and multiplied by this before the projections, per metre."""


class Decoder(nn.Module):
    """D_theta of Eq. 3, one layer with one head."""

    def __init__(self, channels: int, config: AttentionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.channels, self.config = channels, config
        self.query = nn.Linear(3 + channels, config.width, bias=False)
        self.key = nn.Linear(3 + channels, config.width, bias=False)
        self.sharpness = nn.Parameter(torch.ones(()))
        scale = 0.1 if config.preset == "default" else 1.0
        for layer in (self.query, self.key):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = scale * noise / math.sqrt(3 + channels)

    def keys(self, scene_points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Projected keys [X, F]; they do not depend on the query and are computed once per scene."""
        return self.key(torch.cat((self._position(scene_points, scene_points), features), dim=-1))

    def attention(
        self,
        scene_points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"],
        queries: Float[Tensor, "q 3"],
        *,
        keys: Float[Tensor, "n d"] | None = None,
        folded: Float[Tensor, "n d"] | None = None,
        hide: Tensor | None = None,
    ) -> Float[Tensor, "q n"]:
        """Attention weights of queries over scene points.

        Args:
            scene_points: X, metres.
            features: F.
            queries: q, metres.
            keys: `keys(X, F)`, if at hand.
            folded: `fold(F)`, if at hand. Interpolating F and then projecting equals interpolating the projected F.
            hide: boolean [q, n]; scene points that a query must not see (itself, in training).
        """
        keys = self.keys(scene_points, features) if keys is None else keys
        folded = self.fold(features) if folded is None else folded
        squared = squared_distances(queries, scene_points)
        if hide is not None:
            squared = squared.masked_fill(hide, 1e6)
        inverse = squared.reciprocal()
        interpolation = inverse / inverse.sum(dim=-1, keepdim=True)
        query = self._position(queries, scene_points) @ self.query.weight[:, :3].T + interpolation @ folded
        product = query @ keys.T / math.sqrt(self.config.width)
        if self.config.preset == "faithful":
            # The weights of Eq. 2, relative to their largest value, scale both sides of the product.
            weight = interpolation / interpolation.amax(dim=-1, keepdim=True)
            logits = product * weight.square()
        else:
            logits = product - self.sharpness * (squared + MIN_SQUARED).log()
        if hide is not None:
            logits = logits.masked_fill(hide, -torch.inf)
        return logits.softmax(dim=-1)

    def fold(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """F Wq: the features as they enter the queries."""
        return features @ self.query.weight[:, 3:].T

    def forward(
        self,
        scene_points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n c"],
        queries: Float[Tensor, "q 3"],
        hide: Tensor | None = None,
    ) -> Float[Tensor, "q c"]:
        """Aggregated features f_D of Eq. 3."""
        return self.attention(scene_points, features, queries, hide=hide) @ features

    def _position(self, points: Float[Tensor, "m 3"], scene_points: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
        return (points - scene_points.mean(dim=0)) * self.config.position_scale


class AttentionField:
    """The attention field around one scene, with everything that does not depend on the query computed once."""

    def __init__(self, scene: Scene, decoder: Decoder) -> None:
        self.scene, self.decoder = scene, decoder
        self.channels = scene.features.shape[-1]
        with torch.no_grad():
            self._keys = decoder.keys(scene.points, scene.features)
            self._folded = decoder.fold(scene.features)

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Aggregated features f_D at world points."""
        return self.weights(points) @ self.scene.features

    def weights(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch n"]:
        """Attention over the scene points."""
        weights = self.decoder.attention(
            self.scene.points, self.scene.features, points.reshape(-1, 3), keys=self._keys, folded=self._folded
        )
        return weights.reshape(*points.shape[:-1], -1)
