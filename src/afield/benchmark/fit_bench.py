"""`afield bench fit`: how well and how fast an affordance function is fitted to an object of known geometry and motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from afield.capture.furniture import Furniture, joint_motion, photograph_furniture, ring_cameras, surface_points
from afield.capture.opengl import draw_elsewhere
from afield.distill import FitConfig, Fitted, Flow, Labels, fit_affordance
from afield.distill.labels import describe_views
from afield.errors import AfieldError
from afield.fields.rendering import Rendered, camera_rays, render
from afield.observation import Observation, View
from afield.perception.features import extractor_by_name

HORIZON = 32
CONTACT = 0.5
"""Rendered contact above this counts as contact."""


@dataclass(frozen=True)
class FitBenchConfig:
    """What is fitted."""

    kind: str = "microwave"
    """microwave, cabinet or drawer."""
    views: int = 12
    """Posed pictures around it."""
    resolution: int = 160
    """Side of the pictures in pixels."""
    tracks: int = 500
    """Points of the flow."""
    seed: int = 0
    """Of everything random."""


def run(config: FitBenchConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Fit the grid backend on one thread and compare it with the truth.

    Returns:
        `chamfer_percent` of the diagonal, `psnr` in dB and `contact_iou` on six held-out views, `depth_error_percent` of
        the diagonal there, `axis_error_deg` and `flow_error_percent` of the decoded flow, `cpu_seconds`.
    """
    config = config or FitBenchConfig()
    if config.kind not in ("microwave", "cabinet", "drawer"):
        raise AfieldError(f"There is no furniture of kind '{config.kind}'; choose microwave, cabinet or drawer.")
    item = Furniture(kind=config.kind, seed=config.seed)
    observation, handles = draw_elsewhere(
        photograph_furniture, item, ring_cameras(item, config.views, config.resolution)
    )
    held_out, held_handles = draw_elsewhere(
        photograph_furniture, item, ring_cameras(item, 7, config.resolution, distance=3.2, elevation=32.0)[:6]
    )
    descriptors, _, _ = describe_views(observation, extractor_by_name("dinov2-s-embedded"), progress=progress)
    truth, _ = surface_points(item, 20_000, config.seed)
    labels = Labels(tuple(handles), descriptors, 0.0, true_flow(item, config.tracks, config.seed))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fitted = fit_affordance(observation, labels, FitConfig(seed=config.seed), progress=progress)
    finally:
        torch.set_num_threads(threads)
    diagonal = float((truth.amax(dim=0) - truth.amin(dim=0)).norm())
    return {
        "chamfer_percent": round(100 * chamfer(zero_crossings(fitted), truth) / diagonal, 3),
        **compare_views(fitted, held_out, held_handles, diagonal),
        **compare_flow(fitted, true_flow(item, 300, config.seed + 1), diagonal),
        "cpu_seconds": fitted.summary["cpu_seconds"],
        "cpu_seconds_static": fitted.summary["cpu_seconds_static"],
        "kind": config.kind,
        "views": config.views,
    }


def true_flow(item: Furniture, count: int, seed: int) -> Flow:
    """Where surface points go while the joint opens; all are visible."""
    start, moves = surface_points(item, count, seed)
    steps = []
    for step in range(1, HORIZON + 1):
        motion = torch.from_numpy(joint_motion(item, item.travel * step / HORIZON)).float()
        steps.append(torch.where(moves[:, None], start @ motion[:3, :3].T + motion[:3, 3] - start, 0.0))
    return Flow(start, torch.stack(steps, dim=1), torch.ones(len(start), HORIZON))


def zero_crossings(fitted: Fitted) -> Float[Tensor, "k 3"]:
    """Where the signed distance changes its sign along the edges of its grid, in metres: points on the surface."""
    grid = fitted.field.distance
    size = grid.shape[0]
    found = []
    for axis in (0, 1, 2):
        low, high = grid.narrow(axis, 0, size - 1), grid.narrow(axis, 1, size - 1)
        place = ((low < 0) != (high < 0)).nonzero()
        share = (low / (low - high))[tuple(place.T)]
        points = place.float()
        points[:, axis] += share
        found.append(points.flip(-1))  # the grid is stored z, y, x
    return torch.cat(found) / (size - 1) * 2 * fitted.scale - fitted.scale + fitted.center


def chamfer(first: Float[Tensor, "n 3"], second: Float[Tensor, "m 3"]) -> float:
    """Mean of the two mean distances to the other's nearest point, in metres."""
    a, b = first.numpy(), second.numpy()
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


def render_view(fitted: Fitted, view: View, chunk: int = 8192) -> Rendered:
    """The whole picture that a view's camera would see; depth in metres."""
    height, width = view.depth.shape
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack((column, row), dim=-1).reshape(-1, 2).float()
    parts = [
        render(fitted.field, camera_rays(view.camera, pixels[i : i + chunk], fitted.center, fitted.scale))
        for i in range(0, len(pixels), chunk)
    ]
    names = ("opacity", "depth", "color", "normal", "descriptor", "contact")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Rendered(**{**joined, "depth": joined["depth"] * fitted.scale})


def compare_views(
    fitted: Fitted, observation: Observation, handles: list[Bool[np.ndarray, "_h _w"]], diagonal: float
) -> dict[str, float]:
    """Colour, depth and contact on views that were not fitted."""
    error, depth_error, both, either, seen = [], [], 0, 0, 0
    for view, handle in zip(observation.views, handles, strict=True):
        assert view.mask is not None, "photographs have masks"
        found, mask = render_view(fitted, view), torch.from_numpy(view.mask).reshape(-1)
        color = torch.from_numpy(view.color).reshape(-1, 3).float() / 255
        error.append((found.color - color)[mask].square().mean())
        depth = torch.from_numpy(view.depth).reshape(-1)
        solid = mask & (found.opacity > 0.5)
        depth_error.append((found.depth / found.opacity.clamp_min(1e-6) - depth)[solid].abs().mean())
        contact, truth = (found.contact > CONTACT), torch.from_numpy(handle).reshape(-1)
        both, either = both + int((contact & truth).sum()), either + int((contact | truth).sum())
        seen += int(truth.sum())
    return {
        "psnr": round(float(-10 * torch.stack(error).mean().log10()), 2),
        "depth_error_percent": round(float(100 * torch.stack(depth_error).mean()) / diagonal, 3),
        "contact_iou": round(both / max(1, either), 3),
    }


def compare_flow(fitted: Fitted, flow: Flow, diagonal: float) -> dict[str, float]:
    """How far decoded displacements are from the truth, on points that were not fitted."""
    with torch.no_grad():
        found, visible = fitted.field.flow(fitted.to_canonical(flow.start))
    far = (found * fitted.scale - flow.displacement).norm(dim=-1)
    moving = flow.displacement[:, -1].norm(dim=-1) > 1e-3
    return {
        "flow_error_percent": round(float(100 * far[moving].mean()) / diagonal, 3),
        "flow_error_still_percent": round(float(100 * far[~moving].mean()) / diagonal, 3),
        "visibility_error": round(float((visible - flow.visible).abs().mean()), 4),
    }
