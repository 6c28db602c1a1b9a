"""The seam of the whole library: a field is queried at world points and answers with features."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
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
"""Squared distances are clamped here (0.1 mm), which keeps gradients finite at scene points."""


def squared_distances(a: Float[Tensor, "q 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, "q n"]:
    """Squared distances by one matrix product; both sets are centred first, for precision.

    In float32 the error is about 1e-7 times the squared extent of the points, under (0.1 mm)^2 for a table-top scene.
    """
    center = b.mean(dim=0)
    a, b = a - center, b - center
    squared = torch.addmm(b.square().sum(dim=-1)[None], a, b.T, alpha=-2) + a.square().sum(dim=-1, keepdim=True)
    return squared.clamp_min(MIN_SQUARED)
