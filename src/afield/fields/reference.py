"""Eq. 2 and Eq. 3 to the letter, slow and readable; the fast paths are tested against these."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from afield.fields.attention import Decoder
from afield.fields.base import MIN_SQUARED


def squared_differences(queries: Float[Tensor, "q 3"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "q n"]:
    """Squared distances from the dense tensor of differences, clamped at `MIN_SQUARED`."""
    return (queries[:, None] - points[None]).square().sum(dim=-1).clamp_min(MIN_SQUARED)


def interpolate(
    points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"], queries: Float[Tensor, "q 3"]
) -> Float[Tensor, "q c"]:
    """Eq. 2."""
    inverse = 1 / squared_differences(queries, points)
    return (inverse / inverse.sum(dim=-1, keepdim=True)) @ features


def attend(
    decoder: Decoder, points: Float[Tensor, "n 3"], features: Float[Tensor, "n c"], queries: Float[Tensor, "q 3"]
) -> Float[Tensor, "q c"]:
    """Eq. 3 of the default and the faithful preset: D_theta([X, F], [q, f], F) with f from Eq. 2."""
    squared = squared_differences(queries, points)
    weight = (1 / squared) / (1 / squared).sum(dim=-1, keepdim=True)
    center, scale = points.mean(dim=0), decoder.config.position_scale
    key = torch.cat((scale * (points - center), features), dim=-1) @ decoder.key.weight.T
    query = torch.cat((scale * (queries - center), weight @ features), dim=-1) @ decoder.query.weight.T
    if decoder.config.preset == "faithful":
        relative = weight / weight.amax(dim=-1, keepdim=True)
        logits = ((query[:, None] * relative[..., None]) * (key[None] * relative[..., None])).sum(dim=-1)
        logits = logits / math.sqrt(decoder.config.width)
    else:
        logits = query @ key.T / math.sqrt(decoder.config.width) - decoder.sharpness * squared.log()
    return logits.softmax(dim=-1) @ features


def look_up(
    values: Float[Tensor, "z y x c"], low: Float[Tensor, "3"], high: Float[Tensor, "3"], queries: Float[Tensor, "q 3"]
) -> Float[Tensor, "q c"]:
    """Trilinear interpolation in a grid whose outermost points are at `low` and `high`; its border holds outside."""
    inner = (queries - low) / (high - low) * 2 - 1
    found = torch.nn.functional.grid_sample(
        values.permute(3, 0, 1, 2)[None], inner[None, None, None], padding_mode="border", align_corners=True
    )
    return found[0, :, 0, 0].T
