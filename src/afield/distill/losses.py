"""What an affordance function pays for in its static phase (Actron3D, Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from afield.distill.pixels import Pixels
from afield.fields.affordance import AffordanceField
from afield.fields.affordance_grid import GridAffordance
from afield.fields.rendering import Rays, RenderingConfig, render


@dataclass(frozen=True)
class FitWeights:
    """The weights of Eq. 4, as published, and the smoothness that a grid needs where a network is smooth by itself."""

    color: float = 1.0
    eikonal: float = 0.1
    """lambda_1."""
    mask: float = 1.0
    """lambda_2."""
    feature: float = 0.1
    """lambda_3."""
    contact: float = 0.5
    """lambda_4."""
    depth: float = 2.0
    """Of measured depth, in canonical units, where there is any; the paper has none."""
    smooth: float = 0.002
    """Of the squared second differences of a grid; networks have none."""


def static_losses(
    field: AffordanceField,
    pixels: Pixels,
    index: Int[Tensor, "k"],
    weights: FitWeights,
    rendering: RenderingConfig,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """The weighted losses on some pixels."""
    rays = Rays(*(getattr(pixels.rays, name)[index] for name in ("origin", "direction", "near", "far", "axial")))
    seen = render(field, rays, rendering, generator, normals=False)
    mask = pixels.mask[index]
    opacity = seen.opacity.clamp(1e-4, 1 - 1e-4)
    losses = {"mask": weights.mask * functional.binary_cross_entropy(opacity, mask.float())}
    if bool(mask.any()):
        losses["color"] = weights.color * (seen.color - pixels.color[index])[mask].abs().mean()
    measured = pixels.depth[index]
    solid = mask & (measured > 0)
    if weights.depth > 0 and bool(solid.any()):
        losses["depth"] = weights.depth * (seen.depth - measured * seen.opacity)[solid].abs().mean()
    label = pixels.contact[index]
    told = (label >= 0) & mask
    if bool(told.any()):
        contact = seen.contact[told].clamp(1e-4, 1 - 1e-4)
        losses["contact"] = weights.contact * functional.binary_cross_entropy(contact, label[told])
    if pixels.described and bool(mask.any()):
        far = (seen.descriptor - pixels.descriptor[index])[mask].square().sum(dim=-1)
        losses["feature"] = weights.feature * far.mean()
    if isinstance(field, GridAffordance):
        return {**losses, **grid_regularity(field.distance, weights, generator)}
    return {**losses, "eikonal": weights.eikonal * eikonal_along(field, rays, generator)}


def eikonal_along(
    field: AffordanceField, rays: Rays, generator: torch.Generator, samples: int = 8
) -> Float[Tensor, ""]:
    """How far the slope is from one, on points drawn evenly along rays: the regularity of NeuS."""
    share = torch.rand(len(rays.near), samples, generator=generator)
    along = rays.near[:, None] + share * (rays.far - rays.near)[:, None]
    points = rays.origin[:, None] + along[..., None] * rays.direction[:, None]
    return (field.normal(points.reshape(-1, 3)).norm(dim=-1) - 1.0).square().mean()


def grid_regularity(
    distance: Float[Tensor, "z y x"], weights: FitWeights, generator: torch.Generator
) -> dict[str, Float[Tensor, ""]]:
    """Unit slope and smoothness by finite differences, on a random slab of a third of the grid."""
    size = distance.shape[0]
    step = 2.0 / (size - 1)
    planes = min(size, size // 3 + 2)
    first = int(torch.randint(size - planes + 1, (), generator=generator))
    slopes = [distance[first : first + planes].diff(dim=axis) / step for axis in (0, 1, 2)]
    z, y, x = (slope[: planes - 1, : size - 1, : size - 1] for slope in slopes)
    gradient = (x * x + y * y + z * z).clamp_min(1e-9).sqrt()
    bend = sum((slope.diff(dim=axis)).square().mean() for axis, slope in enumerate(slopes))
    assert isinstance(bend, Tensor), "three axes"
    return {"eikonal": weights.eikonal * (gradient - 1.0).square().mean(), "smooth": weights.smooth * bend / step}
