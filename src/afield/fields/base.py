"""The seam of the whole library: a field is queried at world points and answers with features."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Field(Protocol):
    """A function f(., X) from points to features, around one scene X (section 3.1)."""

    channels: int
    """Length of a feature."""

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Features at world points in metres, differentiable in the points."""
        ...


@runtime_checkable
class AttentiveField(Field, Protocol):
    """A field that aggregates scene features with weights, and can show them."""

    def weights(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch n"]:
        """How much each scene point contributes at the given points; they sum to one."""
        ...


MIN_SQUARED = 1e-8
"""Squared distances are clamped here, at (0.1 mm)^2, which keeps gradients finite at scene points."""

BLOCK = 256
"""Rows of a block on the CPU: large enough for the matrix products, small enough to stay in the cache."""


def block_rows(device: torch.device) -> int:
    """How many query points are processed at once where a loop keeps temporaries small."""
    return BLOCK if device.type == "cpu" else 16 * BLOCK


def squared_distances(a: Float[Tensor, "q 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, "q n"]:
    """Squared distances by one matrix product, clamped at `MIN_SQUARED`.

    The product is taken in double precision: |a|^2 - 2ab + |b|^2 cancels for close points, and in float32 its error of
    about 1e-8 would be 1% of the squared distance of a fingertip 1 mm off the surface. It is a small part of the cost.
    """
    first, second = a.double(), b.double()
    center = second.mean(dim=0)
    first, second = first - center, second - center
    squared = torch.addmm(second.square().sum(dim=-1)[None], first, second.T, alpha=-2)
    squared = squared + first.square().sum(dim=-1, keepdim=True)
    return squared.clamp_min(MIN_SQUARED).to(a.dtype)


@torch.no_grad()
def nearest(points: Float[Tensor, "q 3"], scene_points: Float[Tensor, "n 3"]) -> Int[Tensor, "q"]:
    """Index of the scene point nearest to each point.

    Single precision is enough to choose: a wrong choice is between points whose distances differ by micrometres.
    """
    center = scene_points.mean(dim=0)
    centered = scene_points - center
    offset = -0.5 * centered.square().sum(dim=-1)
    found = torch.empty(len(points), dtype=torch.long, device=points.device)
    rows = block_rows(points.device)
    buffer = points.new_empty(min(rows, len(points)), len(scene_points))
    for first in range(0, len(points), rows):
        block = points[first : first + rows].detach() - center
        # |x - p|^2 = |x|^2 - 2 (x p - |p|^2 / 2), so the nearest p has the largest bracket.
        torch.addmm(offset, block, centered.T, out=buffer[: len(block)])
        torch.argmax(buffer[: len(block)], dim=-1, out=found[first : first + rows])
    return found
