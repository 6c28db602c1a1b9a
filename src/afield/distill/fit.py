"""Fitting an affordance function (Actron3D, III-C): first what the object is (static phase), then how it moves (dynamic)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from afield.distill.labels import Flow, Labels, check_labels
from afield.errors import AfieldError
from afield.fields.affordance_grid import GridAffordance, GridConfig
from afield.fields.rendering import Rays, RenderingConfig, camera_rays, render
from afield.geometry import nearest_to_lines
from afield.observation import Observation


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
    """Of the squared second differences of the grid; 0 in the paper."""


@dataclass(frozen=True)
class FitConfig:
    """How long and how finely to fit."""

    grid: GridConfig = field(default_factory=GridConfig)
    """Sizes of the grids."""
    weights: FitWeights = field(default_factory=FitWeights)
    """Of the losses."""
    depth: bool = True
    """Use depth where the views have it; without it the surface comes from outlines and colours alone, as in the paper."""
    steps: int = 250
    """Adam steps of the static phase."""
    rays: int = 512
    """Per step."""
    coarse: int = 48
    """Vertices along a side of the signed-distance grid in the first half of the steps."""
    learning_rate: float = 0.005
    """Of the signed distances, in canonical units."""
    look_rate: float = 0.1
    """Of colour, contact and descriptors, in logits."""
    sharpness: tuple[float, float] = (25.0, 160.0)
    """First and last inverse width of the surface."""
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    """Samples along a ray."""
    flow_steps: int = 600
    """Adam steps of the dynamic phase, as published."""
    flow_rate: float = 1e-3
    """Of Adam in the dynamic phase, as published."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True)
class Fitted:
    """An affordance function and the frame in which it lives."""

    field: GridAffordance
    center: Float[Tensor, "3"]
    """Origin of the canonical frame in the frame of the pictures, in metres."""
    scale: float
    """Length of a canonical unit in metres."""
    summary: dict[str, Any]
    """Losses, steps, seconds."""

    def to_canonical(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points of the pictures' frame in canonical units."""
        return (points - self.center) / self.scale


def fit_affordance(
    observation: Observation, labels: Labels, config: FitConfig | None = None, *, progress: bool = True
) -> Fitted:
    """Fit the grid backend to posed pictures with labels.

    Args:
        observation: two or more views with object masks; depth is not used.
        labels: contact masks, descriptors and flow, see `Labels`.
        config: see `FitConfig`.
        progress: show progress bars.

    Raises:
        AfieldError: there is nothing to fit to, see `check_labels`, or the views do not look at one thing.
    """
    config = config or FitConfig()
    check_labels(observation, labels)
    begin = time.process_time()
    torch.manual_seed(config.seed)
    center, scale = canonical_frame(observation, labels.floor)
    channels = config.grid.channels if labels.descriptors is None else labels.descriptors.shape[1]
    horizon = config.grid.horizon if labels.flow is None else labels.flow.displacement.shape[1]
    field = GridAffordance(replace(config.grid, channels=channels, horizon=horizon, resolution=config.coarse))
    field.distance = nn.Parameter(
        hull_distance(observation, center, scale, config.coarse, labels.floor, depth=config.depth)
    )
    pixels = _Pixels.of(observation, labels, center, scale)
    losses = _static_phase(field, pixels, config, progress)
    static_seconds = time.process_time() - begin
    if labels.flow is not None:
        losses["flow"] = _dynamic_phase(field, labels.flow, center, scale, config, progress)
    summary = {
        "losses": losses,
        "steps": config.steps,
        "cpu_seconds_static": round(static_seconds, 2),
        "cpu_seconds": round(time.process_time() - begin, 2),
    }
    return Fitted(field.requires_grad_(False), center, scale, summary)


def canonical_frame(observation: Observation, floor: float | None = None) -> tuple[Float[Tensor, "3"], float]:
    """Middle and size of the object by its masks alone: those of its visual hull, above the floor if there is one."""
    origins, directions, spans = [], [], []
    for view in observation.views:
        assert view.mask is not None, "checked before"
        rows, columns = np.nonzero(view.mask)
        middle = torch.tensor([[(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2]]).float()
        ray = functional.normalize(view.camera.backproject(middle, torch.ones(1)) - view.camera.position, dim=-1)[0]
        origins.append(view.camera.position)
        directions.append(ray)
        spans.append(
            max((columns.max() - columns.min()) / view.camera.fx, (rows.max() - rows.min()) / view.camera.fy) / 2
        )
    center = nearest_to_lines(torch.stack(origins), torch.stack(directions))
    reach = [float((origin - center).norm()) * span for origin, span in zip(origins, spans, strict=True)]
    scale = 1.5 * max(reach)
    if not math.isfinite(scale) or scale <= 0:
        raise AfieldError(f"The views of '{observation.name}' do not look at one object; check cameras and masks.")
    solid = (hull_distance(observation, center, scale, 64, floor) < 0).nonzero().flip(-1) / 63 * 2.0 - 1.0
    low, high = solid.amin(dim=0) * scale + center, solid.amax(dim=0) * scale + center
    return (low + high) / 2, 1.12 * float((high - low).max()) / 2


def hull_distance(
    observation: Observation,
    center: Float[Tensor, "3"],
    scale: float,
    size: int,
    floor: float | None = None,
    *,
    depth: bool = False,
) -> Float[Tensor, "z y x"]:
    """Signed distance to the visual hull on a grid, in canonical units: where the fit begins."""
    axis = torch.linspace(-1.0, 1.0, size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack((x, y, z), dim=-1).reshape(-1, 3) * scale + center
    step = 2.0 / (size - 1)
    inside = torch.ones(len(points), dtype=torch.bool)
    for view in observation.views:
        assert view.mask is not None, "checked before"
        pixel, away = view.camera.project(points)
        column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
        seen = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height) & (away > 0)
        hit = (
            seen
            & torch.from_numpy(view.mask)[row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)]
        )
        if depth:  # what lies in front of a measured surface is empty
            measured = torch.from_numpy(view.depth)[
                row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)
            ]
            inside &= ~seen | (measured <= 0) | (away > measured - 0.25 * step * scale)
        whole = not (view.mask[[0, -1]].any() or view.mask[:, [0, -1]].any())
        inside &= hit if whole else hit | ~seen  # an object that is wholly in the picture is nowhere else
    if floor is not None:
        inside &= points[:, 2] >= floor
    solid = inside.reshape(size, size, size).numpy()
    if not solid.any():
        raise AfieldError(f"The masks of '{observation.name}' have no common hull; check cameras and masks.")
    outside, inner = (np.asarray(distance_transform_edt(where)) for where in (~solid, solid))
    return torch.from_numpy((outside - inner) * step).float()


@dataclass(frozen=True)
class _Pixels:
    """All pixels of all views whose rays meet the object's cube, with their labels."""

    rays: Rays
    color: Float[Tensor, "p 3"]
    mask: Bool[Tensor, "p"]
    contact: Float[Tensor, "p"]
    """1 or 0; -1 in views without the label."""
    descriptor: Float[Tensor, "p d"]
    described: bool
    depth: Float[Tensor, "p"]
    """Along the optical axis in canonical units; 0 where there is none."""
    near_mask: Int[Tensor, "_k"]
    """Pixels on the object or close to its outline; half of every batch comes from them."""
    near_contact: Int[Tensor, "_c"]
    """Pixels in or beside the contact region, which is small; an eighth of every batch comes from them."""

    @classmethod
    def of(cls, observation: Observation, labels: Labels, center: Float[Tensor, "3"], scale: float) -> _Pixels:
        rays, colors, masks, contacts, descriptors, depths, near, touched = [], [], [], [], [], [], [], []
        for index, view in enumerate(observation.views):
            assert view.mask is not None, "checked before"
            height, width = view.mask.shape
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            pixel = torch.stack((column, row), dim=-1).reshape(-1, 2).float()
            found = camera_rays(view.camera, pixel, center, scale)
            keep = found.hits
            rays.append(Rays(*(getattr(found, name)[keep] for name in ("origin", "direction", "near", "far", "axial"))))
            colors.append(torch.from_numpy(view.color).reshape(-1, 3)[keep].float() / 255)
            depths.append(torch.from_numpy(view.depth).reshape(-1)[keep].float() / scale)
            mask = torch.from_numpy(view.mask)
            masks.append(mask.reshape(-1)[keep])
            wide = functional.max_pool2d(mask[None, None].float(), 9, 1, 4)[0, 0] > 0
            near.append(wide.reshape(-1)[keep])
            contact = labels.contact[index]
            label = torch.full((height, width), -1.0) if contact is None else torch.from_numpy(contact).float()
            contacts.append(label.reshape(-1)[keep])
            wide = functional.max_pool2d(label[None, None], 7, 1, 3)[0, 0] > 0
            touched.append(wide.reshape(-1)[keep])
            if labels.descriptors is None:
                descriptors.append(torch.zeros(int(keep.sum()), 0))
            else:
                place = torch.stack(((pixel[:, 0] + 0.5) / width, (pixel[:, 1] + 0.5) / height), dim=-1) * 2 - 1
                if height != width:  # the map covers the square around the picture
                    place[:, 1] *= height / width
                found_map = functional.grid_sample(
                    labels.descriptors[index : index + 1], place[None, None], padding_mode="border", align_corners=False
                )
                descriptors.append(found_map[0, :, 0].T[keep])
        joined = Rays(
            *(torch.cat([getattr(r, n) for r in rays]) for n in ("origin", "direction", "near", "far", "axial"))
        )
        return cls(
            joined,
            torch.cat(colors),
            torch.cat(masks),
            torch.cat(contacts),
            torch.cat(descriptors),
            labels.descriptors is not None,
            torch.cat(depths),
            torch.cat(near).nonzero()[:, 0],
            torch.cat(touched).nonzero()[:, 0],
        )

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, "k"]:
        """Half near the object, an eighth near the contact region, the rest anywhere."""
        shares = ((self.near_mask, count // 2), (self.near_contact, count // 8))
        drawn = [index[torch.randint(len(index), (k,), generator=generator)] for index, k in shares if len(index)]
        rest = count - sum(len(index) for index in drawn)
        return torch.cat((*drawn, torch.randint(len(self.mask), (rest,), generator=generator)))


def _static_phase(field: GridAffordance, pixels: _Pixels, config: FitConfig, progress: bool) -> dict[str, list[float]]:
    """Eq. 4: geometry, colour, descriptors and contact together, coarse to fine."""
    generator = torch.Generator().manual_seed(config.seed)
    history: dict[str, list[float]] = {}
    optimizer = _optimizer(field, config)
    low, high = config.sharpness
    for step in tqdm(range(config.steps), desc="static phase", unit="step", disable=not progress):
        share = step / max(1, config.steps - 1)
        if step == config.steps // 2 and config.grid.resolution > config.coarse:
            field.refine(config.grid.resolution)
            optimizer = _optimizer(field, config)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        field.sharpness = torch.tensor(low * (high / low) ** share)
        losses = static_losses(field, pixels, pixels.draw(config.rays, generator), config, generator)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        for name, value in losses.items():
            history.setdefault(name, []).append(round(float(value.detach()), 5))
    return {name: values[:: max(1, len(values) // 50)] for name, values in history.items()}


def static_losses(
    field: GridAffordance, pixels: _Pixels, index: Int[Tensor, "k"], config: FitConfig, generator: torch.Generator
) -> dict[str, Float[Tensor, ""]]:
    """The weighted losses of Eq. 4 on some pixels."""
    weights = config.weights
    rays = Rays(*(getattr(pixels.rays, name)[index] for name in ("origin", "direction", "near", "far", "axial")))
    seen = render(field, rays, config.rendering, generator, normals=False)
    mask = pixels.mask[index]
    opacity = seen.opacity.clamp(1e-4, 1 - 1e-4)
    losses = {
        "color": weights.color * (seen.color - pixels.color[index])[mask].abs().mean(),
        "mask": weights.mask * functional.binary_cross_entropy(opacity, mask.float()),
    }
    measured = pixels.depth[index]
    solid = mask & (measured > 0)
    if config.depth and bool(solid.any()):
        losses["depth"] = weights.depth * (seen.depth - measured * seen.opacity)[solid].abs().mean()
    label = pixels.contact[index]
    told = (label >= 0) & mask
    if bool(told.any()):
        contact = seen.contact[told].clamp(1e-4, 1 - 1e-4)
        losses["contact"] = weights.contact * functional.binary_cross_entropy(contact, label[told])
    if pixels.described:
        far = (seen.descriptor - pixels.descriptor[index])[mask].square().sum(dim=-1)
        losses["feature"] = weights.feature * far.mean()
    return {**losses, **_regularity(field, weights)}


def _regularity(field: GridAffordance, weights: FitWeights) -> dict[str, Float[Tensor, ""]]:
    """Unit slope (eikonal) and smoothness on the whole grid at once, by finite differences."""
    grid = field.distance
    step = 2.0 / (grid.shape[0] - 1)
    slopes = [grid.diff(dim=axis) / step for axis in (0, 1, 2)]
    size = grid.shape[0] - 1
    gradient = torch.stack([slope[:size, :size, :size] for slope in slopes]).square().sum(dim=0).clamp_min(1e-9).sqrt()
    bend = sum((slope.diff(dim=axis)).square().mean() for axis, slope in enumerate(slopes))
    assert isinstance(bend, Tensor), "three axes"
    return {"eikonal": weights.eikonal * (gradient - 1.0).square().mean(), "smooth": weights.smooth * bend / step}


def _optimizer(field: GridAffordance, config: FitConfig) -> torch.optim.Adam:
    groups = [
        {"params": [field.distance], "lr": config.learning_rate, "initial_lr": config.learning_rate},
        {"params": [field.looks], "lr": config.look_rate, "initial_lr": config.look_rate},
    ]
    return torch.optim.Adam(groups, fused=True)


def _dynamic_phase(
    field: GridAffordance, flow: Flow, center: Float[Tensor, "3"], scale: float, config: FitConfig, progress: bool
) -> list[float]:
    """Eq. 7: the action head alone, everything else frozen; what is not seen does not count for the displacement."""
    start, goal = (flow.start - center) / scale, flow.displacement / scale
    optimizer = torch.optim.Adam(field.action.parameters(), lr=config.flow_rate, fused=True)
    with torch.no_grad():
        normal = functional.normalize(field.normal(start), dim=-1)
        _, descriptor, _ = field.appearance(start)
    history = []
    for _ in tqdm(range(config.flow_steps), desc="dynamic phase", unit="step", disable=not progress):
        moved, visible = field.action(start, normal, descriptor)
        far = ((moved - goal).square().sum(dim=-1) * flow.visible).sum() / flow.visible.sum()
        loss = far + (visible - flow.visible).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        history.append(round(float(loss.detach()), 6))
    return history[:: max(1, len(history) // 50)]
