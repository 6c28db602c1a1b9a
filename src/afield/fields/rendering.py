"""Volume rendering of every modality of an affordance function (Actron3D, Eq. 1 and 3), with the weights of NeuS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from afield.fields.affordance import AffordanceField
from afield.observation import Camera


@dataclass(frozen=True)
class Rays:
    """Rays in the canonical frame; directions have length one there."""

    origin: Float[Tensor, "r 3"]
    direction: Float[Tensor, "r 3"]
    near: Float[Tensor, "r"]
    """Where the ray enters the cube from -1 to 1; equal to `far` where it misses it."""
    far: Float[Tensor, "r"]
    axial: Float[Tensor, "r"]
    """Depth along the optical axis per length of ray."""

    @property
    def hits(self) -> Bool[Tensor, "r"]:
        """Which rays meet the cube."""
        return self.far > self.near


@dataclass(frozen=True)
class Rendered:
    """What a camera would see along some rays; everything but `opacity` is weighted by it."""

    opacity: Float[Tensor, "r"]
    """Sum of the weights: 1 where the ray ends on the object."""
    depth: Float[Tensor, "r"]
    """Along the optical axis, in canonical units."""
    color: Float[Tensor, "r 3"]
    normal: Float[Tensor, "r 3"]
    descriptor: Float[Tensor, "r d"]
    contact: Float[Tensor, "r"]


@dataclass(frozen=True)
class RenderingConfig:
    """How rays are sampled."""

    proposal: int = 64
    """Evenly spaced samples that find the surface, without gradients."""
    samples: int = 32
    """Samples drawn where the proposal has its weight."""
    least: float = 1e-3
    """Sections of less weight add nothing to colour, descriptor, contact and normal, which are not looked up there."""


def camera_rays(camera: Camera, pixels: Float[Tensor, "r 2"], center: Float[Tensor, "3"], scale: float) -> Rays:
    """Rays of pixels (x, y) in the canonical frame of an object at `center`, whose unit is `scale` metres."""
    x, y = (pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy
    # Not a matrix product, whose last bit depends on where in memory a pose happens to lie: fits must be repeatable.
    ray = (torch.stack((x, y, torch.ones_like(x)), dim=-1)[:, None] * camera.T_world_camera[:3, :3]).sum(dim=-1)
    length = ray.norm(dim=-1)
    direction = ray / length[:, None]
    origin = ((camera.position - center) / scale).expand_as(direction)
    near, far = box_interval(origin, direction)
    return Rays(origin, direction, near, far, 1.0 / length)


def box_interval(
    origin: Float[Tensor, "r 3"], direction: Float[Tensor, "r 3"]
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"]]:
    """Where rays enter and leave the cube from -1 to 1; both are equal where they miss it."""
    safe = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    first, second = (-1.0 - origin) / safe, (1.0 - origin) / safe
    near = torch.minimum(first, second).amax(dim=-1).clamp_min(0.0)
    far = torch.maximum(first, second).amin(dim=-1)
    return near, torch.maximum(near, far)


def section_weights(
    sdf: Float[Tensor, "r s"], sharpness: Float[Tensor, ""]
) -> tuple[Float[Tensor, "r t"], Float[Tensor, "r t"]]:
    """Opacity and weight of the sections between neighbouring samples, from their signed distances alone (NeuS, Eq. 13).

    alpha = max(0, (Phi(s_i) - Phi(s_i+1)) / Phi(s_i)) with the logistic Phi of the given sharpness; the weight is alpha
    times what earlier sections let through.
    """
    phi = (sdf * sharpness).sigmoid()
    alpha = ((phi[:, :-1] - phi[:, 1:] + 1e-5) / (phi[:, :-1] + 1e-5)).clamp(0.0, 1.0)
    through = torch.cumprod(1.0 - alpha + 1e-7, dim=-1)
    before = torch.cat((torch.ones_like(through[:, :1]), through[:, :-1]), dim=-1)
    return alpha, alpha * before


def sample_rays(
    field: AffordanceField, rays: Rays, config: RenderingConfig, generator: torch.Generator | None = None
) -> Float[Tensor, "r s"]:
    """Distances along each ray at which the field is evaluated: sorted, most of them near the surface."""
    count = len(rays.near)
    edges = torch.linspace(0.0, 1.0, config.proposal).expand(count, -1)
    if generator is not None:
        edges = (edges + (torch.rand(count, config.proposal, generator=generator) - 0.5) / config.proposal).clamp(0, 1)
    span = (rays.far - rays.near)[:, None]
    coarse = rays.near[:, None] + span * edges
    with torch.no_grad():
        sdf = field.sdf(_points(rays, coarse).reshape(-1, 3)).reshape(coarse.shape)
        _, weight = section_weights(sdf, torch.as_tensor(field.sharpness))
        weight = weight + 1e-3 / config.proposal
        total = torch.cat((torch.zeros(count, 1), weight.cumsum(dim=-1)), dim=-1)
        total = total / total[:, -1:]
        steps = (torch.arange(config.samples) + 0.5) / config.samples
        steps = steps.expand(count, -1).contiguous()
        if generator is not None:
            steps = steps + (torch.rand(steps.shape, generator=generator) - 0.5) / config.samples
        right = torch.searchsorted(total, steps).clamp(1, config.proposal - 1)
        low, high = total.gather(1, right - 1), total.gather(1, right)
        share = ((steps - low) / (high - low).clamp_min(1e-9)).clamp(0.0, 1.0)
        left = coarse.gather(1, right - 1)
        fine = left + share * (coarse.gather(1, right) - left)
        # The ends of the heaviest section too: a surface just behind its beginning lies before the first fine sample.
        ends = (weight.argmax(dim=-1)[:, None] + torch.tensor([-1, 0, 1, 2])).clamp(0, config.proposal - 1)
        fine = torch.cat((fine, coarse.gather(1, ends)), dim=-1)
    return fine.sort(dim=-1).values


def render(
    field: AffordanceField,
    rays: Rays,
    config: RenderingConfig | None = None,
    generator: torch.Generator | None = None,
    *,
    normals: bool = True,
) -> Rendered:
    """Eq. 3 for colour, depth, normals, descriptors and contact at once.

    Args:
        field: the affordance function.
        rays: see `camera_rays`.
        config: how rays are sampled.
        generator: jitters the samples while fitting; none for pictures.
        normals: also look up normals.
    """
    config = config or RenderingConfig()
    along = sample_rays(field, rays, config, generator)
    count, samples = along.shape
    sdf = field.sdf(_points(rays, along).reshape(-1, 3)).reshape(count, samples)
    _, weight = section_weights(sdf, torch.as_tensor(field.sharpness))
    weight = weight * rays.hits[:, None]
    middle = (along[:, 1:] + along[:, :-1]) / 2
    ray, section = (weight.detach() >= config.least).nonzero(as_tuple=True)
    points = rays.origin[ray] + middle[ray, section, None] * rays.direction[ray]
    share = weight[ray, section, None]

    def add_up(values: Float[Tensor, "k c"]) -> Float[Tensor, "r c"]:
        """Of every ray what its sections say, each by its share."""
        return torch.zeros(count, values.shape[1]).index_add(0, ray, share * values)

    color, descriptor, contact = field.appearance(points)
    normal = add_up(field.normal(points)) if normals else torch.zeros(count, 3)
    return Rendered(
        opacity=weight.sum(dim=-1),
        depth=(weight * middle).sum(dim=-1) * rays.axial,
        color=add_up(color),
        normal=functional.normalize(normal, dim=-1),
        descriptor=add_up(descriptor),
        contact=add_up(contact[:, None])[:, 0],
    )


@torch.no_grad()
def render_view(
    field: AffordanceField,
    camera: Camera,
    center: Float[Tensor, "3"],
    scale: float,
    config: RenderingConfig | None = None,
    *,
    chunk: int = 8192,
) -> Rendered:
    """The whole picture that a camera would see, row by row; `center` (metres) and `scale` (metres per unit) place the object.

    Returns:
        One entry a pixel, height * width of them; depth in metres.
    """
    row, column = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    pixels = torch.stack((column, row), dim=-1).reshape(-1, 2).float()
    parts = [render(field, camera_rays(camera, part, center, scale), config) for part in pixels.split(chunk)]
    names = ("opacity", "depth", "color", "normal", "descriptor", "contact")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Rendered(**{**joined, "depth": joined["depth"] * scale})


def render_reference(field: AffordanceField, rays: Rays, along: Float[Tensor, "r s"], least: float = 1e-3) -> Rendered:
    """`render` at given distances, one ray and one section after the other: slow, to compare with."""
    rows = []
    for index in range(len(along)):
        origin, direction = rays.origin[index], rays.direction[index]
        through, sums = 1.0, [torch.zeros(()), torch.zeros(()), torch.zeros(3), torch.zeros(3), 0.0, torch.zeros(())]
        for a, b in zip(along[index, :-1], along[index, 1:], strict=True):
            inside = [(field.sdf((origin + t * direction)[None])[0] * field.sharpness).sigmoid() for t in (a, b)]
            alpha = ((inside[0] - inside[1] + 1e-5) / (inside[0] + 1e-5)).clamp(0.0, 1.0)
            weight = through * alpha * rays.hits[index]
            through = through * (1.0 - alpha + 1e-7)
            point = (origin + (a + b) / 2 * direction)[None]
            color, descriptor, contact = field.appearance(point)
            looks = [(weight >= least) * part[0] for part in (color, field.normal(point), descriptor, contact)]
            parts = (1.0, (a + b) / 2 * rays.axial[index], *looks)
            sums = [total + weight * part for total, part in zip(sums, parts, strict=True)]
        rows.append(sums)
    opacity, depth, color, normal, descriptor, contact = (torch.stack(column) for column in zip(*rows, strict=True))
    return Rendered(opacity, depth, color, functional.normalize(normal, dim=-1), descriptor, contact)


def _points(rays: Rays, along: Float[Tensor, "r s"]) -> Float[Tensor, "r s 3"]:
    return rays.origin[:, None] + along[..., None] * rays.direction[:, None]
