"""`afield bench fit`: how well and how fast an affordance function is fitted to an object of known geometry and motion."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from afield.benchmark.align_bench import same_instance
from afield.capture.articulated import ArticulatedObject
from afield.capture.furniture import (
    BODY,
    HANDLE,
    JOINT,
    Furniture,
    handle_box,
    joint_motion,
    photograph_furniture,
    ring_cameras,
    surface_points,
)
from afield.capture.opengl import draw_elsewhere
from afield.decoding import joint_from_motions, relative_motions
from afield.distill import FitConfig, Fitted, Flow, Labels, fit_affordance
from afield.distill.judge import judge_views
from afield.distill.labels import describe_views
from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.features import extractor_by_name
from afield.skills import DescriptorBasis, Skill

EXTRACTOR = "dinov2-s-embedded"
HORIZON = 32
POINTS = 200_000
"""On either surface for the chamfer distance. Two such samples of one microwave are .15% of its diagonal apart."""


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
    neus_rays: int = 64
    """Rays on which the paper's networks are timed."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True)
class Case:
    """An object to be fitted, and what is known about it."""

    item: Furniture
    observation: Observation
    labels: Labels
    held_out: tuple[View, ...]
    handles: tuple[Bool[np.ndarray, "_h _w"], ...]
    """Where the handle is seen in the views that are not fitted."""
    truth: Float[Tensor, "m 3"]
    """Points on the true surface, in metres."""
    basis: DescriptorBasis
    """How pictures are described."""

    @property
    def diagonal(self) -> float:
        """Of the true bounding box, in metres."""
        return float((self.truth.amax(dim=0) - self.truth.amin(dim=0)).norm())


def run(config: FitBenchConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Fit the grid backend on one thread, with and without depth, and compare it with the truth.

    Returns:
        The figures of `compare` for posed pictures with depth and masks; under `color_only` those of the same pictures
        without depth, as the paper has them; `neus_seconds_per_iteration` of the paper's networks; how well and how fast
        the fitted object is found again, see `align_bench.same_instance`.
    """
    config = config or FitBenchConfig()
    case = build(config, progress=progress)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fits = [
            fit_affordance(case.observation, case.labels, FitConfig(seed=config.seed, depth=depth), progress=progress)
            for depth in (True, False)
        ]
        neus = neus_seconds(case, config.neus_rays, progress=progress)
    finally:
        torch.set_num_threads(threads)
    depth, color = (compare(fitted, case, config.seed) for fitted in fits)
    found = same_instance(_skill(fits[0], case), _as_object(case.item), seed=config.seed)
    return {**depth, "color_only": color, **neus, **found, "kind": config.kind, "views": config.views}


def _skill(fitted: Fitted, case: Case) -> Skill:
    floor = float(-fitted.center[2] / fitted.scale)
    words = f"open the {case.item.kind}"
    return Skill(case.item.kind, words, fitted.field, fitted.center, fitted.scale, case.basis, floor)


def _as_object(item: Furniture) -> ArticulatedObject:
    handle = (f"{BODY}_{HANDLE}", f"{BODY}_stem0", f"{BODY}_stem1")
    return ArticulatedObject(
        item.kind, item.kind, f"{BODY}_{JOINT}", item.travel, furniture=asdict(item), handle=handle
    )


def build(config: FitBenchConfig, *, progress: bool = True) -> Case:
    """Photograph and describe the object.

    Raises:
        AfieldError: there is no furniture of that kind.
    """
    if config.kind not in ("microwave", "cabinet", "drawer"):
        raise AfieldError(f"There is no furniture of kind '{config.kind}'; choose microwave, cabinet or drawer.")
    item = Furniture(kind=config.kind, seed=config.seed)
    observation, handles = draw_elsewhere(
        photograph_furniture, item, ring_cameras(item, config.views, config.resolution)
    )
    held_out, held_handles = draw_elsewhere(
        photograph_furniture, item, ring_cameras(item, 7, config.resolution, distance=3.2, elevation=32.0)[:6]
    )
    descriptors, mean, axes = describe_views(observation, extractor_by_name(EXTRACTOR), progress=progress)
    truth, _ = surface_points(item, POINTS, config.seed)
    labels = Labels(tuple(handles), descriptors, 0.0, true_flow(item, config.tracks, config.seed))
    basis = DescriptorBasis(EXTRACTOR, mean, axes)
    return Case(item, observation, labels, held_out.views, tuple(held_handles), truth, basis)


def compare(fitted: Fitted, case: Case, seed: int = 0) -> dict[str, Any]:
    """How well a function knows its object.

    Returns:
        `chamfer_percent` of the diagonal; `psnr` in dB, `contact_iou` and `depth_error_percent` of the diagonal on views
        that were not fitted; `axis_error_deg` and `flow_error_percent` of the decoded flow, `cpu_seconds`.
    """
    found, _ = fitted.field.surface(POINTS, torch.Generator().manual_seed(seed))
    judged = judge_views(fitted.field, fitted.center, fitted.scale, case.held_out, case.handles)
    return {
        "chamfer_percent": round(100 * chamfer(fitted.from_canonical(found), case.truth) / case.diagonal, 3),
        "psnr": judged["psnr"],
        "contact_iou": judged["contact_iou"],
        "depth_error_percent": round(100 * judged["depth_error"] / case.diagonal, 3),
        **compare_flow(fitted, case.item, true_flow(case.item, 300, seed + 1), case.diagonal),
        "cpu_seconds": fitted.summary["cpu_seconds"],
        "cpu_seconds_static": fitted.summary["cpu_seconds_static"],
    }


def neus_seconds(case: Case, rays: int, steps: int = 2, *, progress: bool = True) -> dict[str, float]:
    """CPU seconds of a static iteration of the paper's networks, measured on fewer rays and scaled to its 512.

    All but the optimizer's part of an iteration grows with the rays, so that what is printed is a little too much.
    """
    labels = Labels(case.labels.contact, case.labels.descriptors, case.labels.floor)
    config = FitConfig.published(rays=rays)
    spent = []
    for count in (0, steps):
        begin = time.process_time()
        fit_affordance(case.observation, labels, replace(config, steps=count), progress=progress)
        spent.append(time.process_time() - begin)
    scale = FitConfig.published().rays / rays
    return {
        "neus_seconds_per_iteration": round((spent[1] - spent[0]) / steps * scale, 2),
        "neus_rays_measured": float(rays),
    }


def true_flow(item: Furniture, count: int, seed: int) -> Flow:
    """Where surface points go while the joint opens; all are visible."""
    start, moves = surface_points(item, count, seed)
    return Flow.of_joint(start, moves, lambda share: joint_motion(item, share * item.travel), HORIZON)


def chamfer(first: Float[Tensor, "n 3"], second: Float[Tensor, "m 3"]) -> float:
    """Mean of the two mean distances to the other's nearest point, in metres."""
    a, b = first.numpy(), second.numpy()
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


def compare_flow(fitted: Fitted, item: Furniture, flow: Flow, diagonal: float) -> dict[str, float]:
    """How far decoded displacements are from the truth, on points that were not fitted, and where they say the joint is."""
    with torch.no_grad():
        found, visible = fitted.field.flow(fitted.to_canonical(flow.start))
    found = found * fitted.scale
    far = (found - flow.displacement).norm(dim=-1)
    moving = flow.displacement[:, -1].norm(dim=-1) > 1e-3
    return {
        "flow_error_percent": round(float(100 * far[moving].mean()) / diagonal, 3),
        "flow_error_still_percent": round(float(100 * far[~moving].mean()) / diagonal, 3),
        "visibility_error": round(float((visible - flow.visible).abs().mean()), 4),
        "axis_error_deg": round(axis_error(item, flow.start, found, visible), 2),
    }


def axis_error(item: Furniture, start: Float[Tensor, "q 3"], moved: Float[Tensor, "q h 3"], visible: Tensor) -> float:
    """Angle in degrees between the true axis of the joint and that which `decoding.py` reads out of the flow at the handle."""
    handle = torch.from_numpy(handle_box(item)[0]).float()
    joint = joint_from_motions(relative_motions(start, moved, visible, handle))
    axis = torch.from_numpy(item.axis[1]).float()
    return math.degrees(math.acos(float((joint.axis @ axis).clamp(-1.0, 1.0))))
