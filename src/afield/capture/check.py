"""Does a capture make sense? Wrong units, a tilted world, empty depth and cameras that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float

from afield.observation import Observation, View

DEPTH_RANGE = (0.1, 10.0)
"""Median depth in meters that a table-top capture can have."""
MIN_VALID = 0.2
"""Least share of pixels with depth before a view counts as nearly empty."""
MAX_TILT = 15.0
"""Degrees between the normal of the dominant plane and +z."""
MIN_PLANE_SHARE = 0.2
"""Share of the cloud that a plane must hold before it says anything about the up axis."""
MAX_CONTRADICTION = 0.1
"""Share of points that another camera should see, but looks through."""
MIN_OVERLAP = 0.1
"""Share of a camera's points that some other camera must see as well."""
STANDING = 0.02
"""Meters above the dominant plane from which a point belongs to something that stands on it."""
MIN_STANDING = 30
"""Fewer such points of a view say nothing."""
SAMPLES_PER_VIEW = 6000
"""Pixels of a view that are compared with the other views."""


@dataclass(frozen=True)
class ViewStatistics:
    """Numbers of one view."""

    name: str
    valid_depth: float
    """Share of pixels with depth, 0 to 1."""
    median_depth: float
    """Meters; 0 without depth."""
    near_depth: float
    """Meters, 1st percentile."""
    far_depth: float
    """Meters, 99th percentile."""
    brightness: float
    """Mean of the color image, 0 to 1."""
    mask_share: float | None
    """Share of pixels in the mask; None without a mask."""
    agreement: float
    """Share of the view's points that at least one other camera confirms; 1 for a single view."""
    contradiction: float
    """Share of the view's points in sight of other cameras that these look through, over all points or over those that
    stand on the dominant plane, whichever is larger; 0 for a single view."""


@dataclass(frozen=True)
class CaptureStatistics:
    """Numbers of the whole capture."""

    views: tuple[ViewStatistics, ...]
    plane_normal: tuple[float, float, float] | None
    """Normal of the dominant plane, towards the cameras; None where no plane holds a fifth of the points."""
    plane_share: float
    """Share of the points within 1% of the scene's size of that plane."""
    plane_tilt: float | None
    """Degrees between that normal and +z."""
    plane_height: float | None
    """Height of the plane at the world origin's vertical, in meters; None for a plane that is not level."""
    residual: float | None
    """Median distance in meters between two cameras' depth where they agree; None for a single view."""


@dataclass(frozen=True)
class CaptureCheck:
    """What `check_capture` found."""

    warnings: tuple[str, ...]
    """One sentence each, the gravest first; empty if nothing looks wrong."""
    statistics: CaptureStatistics
    points: Float[np.ndarray, "n 3"] = field(repr=False)
    """Points of all views in the world, in meters, for a picture."""
    colors: Float[np.ndarray, "n 3"] = field(repr=False)
    """Their colors, 0 to 1."""


def check_capture(observation: Observation, *, seed: int = 0) -> CaptureCheck:
    """Measure a capture and warn of what looks wrong.

    Args:
        observation: the capture.
        seed: of the pixels that are compared and of the plane search.
    """
    generator = np.random.default_rng(seed)
    sampled = [_sample(view, generator) for view in observation.views]
    clouds = [points for points, _ in sampled]
    points = np.concatenate(clouds)
    normal, offset, share = _dominant_plane(points, _centers(observation), generator)
    # A plane agrees with itself when it slides within itself, so what stands on it is judged apart.
    standing = [np.ones(len(cloud), bool) if normal is None else cloud @ normal - offset > STANDING for cloud in clouds]
    agreement, contradiction, residual = _compare(observation.views, clouds, standing)
    views = tuple(
        _view_statistics(view, agree, contradict)
        for view, agree, contradict in zip(observation.views, agreement, contradiction, strict=True)
    )
    tilt = None if normal is None else math.degrees(math.acos(float(np.clip(normal[2], -1, 1))))
    statistics = CaptureStatistics(
        views=views,
        plane_normal=None if normal is None else (float(normal[0]), float(normal[1]), float(normal[2])),
        plane_share=share,
        plane_tilt=tilt,
        plane_height=None if normal is None or abs(normal[2]) < 0.5 else float(offset / normal[2]),
        residual=residual,
    )
    warnings = [*_depth_warnings(statistics), *_pose_warnings(observation, statistics), *_image_warnings(statistics)]
    return CaptureCheck(tuple(warnings), statistics, points, np.concatenate([colors for _, colors in sampled]))


def _centers(observation: Observation) -> Float[np.ndarray, "v 3"]:
    return np.stack([view.camera.position.numpy() for view in observation.views]).astype(np.float64)


def _sample(view: View, generator: np.random.Generator) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """World points and colors of some pixels with depth."""
    rows, columns = np.nonzero(view.depth > 0)
    chosen = generator.permutation(len(rows))[:SAMPLES_PER_VIEW]
    rows, columns = rows[chosen], columns[chosen]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float())
    return points.numpy().astype(np.float64), view.color[rows, columns] / 255.0


def _view_statistics(view: View, agreement: float, contradiction: float) -> ViewStatistics:
    depth = view.depth[view.depth > 0]
    near, median, far = np.percentile(depth, (1, 50, 99)) if depth.size else (0.0, 0.0, 0.0)
    return ViewStatistics(
        name=view.name,
        valid_depth=depth.size / view.depth.size,
        median_depth=float(median),
        near_depth=float(near),
        far_depth=float(far),
        brightness=float(view.color.mean() / 255),
        mask_share=None if view.mask is None else float(view.mask.mean()),
        agreement=agreement,
        contradiction=contradiction,
    )


def _compare(
    views: Sequence[View], clouds: Sequence[Float[np.ndarray, "_ 3"]], standing: Sequence[Bool[np.ndarray, " _"]]
) -> tuple[list[float], list[float], float | None]:
    """Project every view's points into the other cameras: confirmed, hidden behind something, or contradicted.

    A point behind the other camera's surface is merely hidden. A point in front of it contradicts: the other camera
    looks through the place where the point should be.
    """
    if len(views) == 1:
        return [1.0], [0.0], None
    agreement, contradiction, residuals = [], [], []
    for index, cloud in enumerate(clouds):
        confirmed, in_front = np.zeros(len(cloud), bool), np.zeros(len(cloud), bool)
        for other, view in enumerate(views):
            if other == index or not len(cloud):
                continue
            seen, gap, depth = _gap(view, cloud)
            # 1 cm or 1%: what depth cameras and their calibration reach.
            tolerance = np.maximum(0.01, 0.01 * depth)
            close = seen & (np.abs(gap) <= tolerance)
            confirmed |= close
            in_front |= seen & (gap < -2 * tolerance)
            residuals.append(np.abs(gap[close]))
        agreement.append(float(confirmed.mean()) if len(cloud) else 0.0)
        shares = [0.0]
        for part in (np.ones(len(cloud), bool), standing[index]):
            sighted = (confirmed | in_front) & part
            if sighted.sum() >= MIN_STANDING:
                shares.append(float((in_front & ~confirmed & part).sum() / sighted.sum()))
        contradiction.append(max(shares))
    gaps = np.concatenate(residuals) if residuals else np.zeros(0)
    return agreement, contradiction, float(np.median(gaps)) if gaps.size else None


def _gap(
    view: View, points: Float[np.ndarray, "n 3"]
) -> tuple[np.ndarray, Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Whether the camera has depth where each point falls; how far the point lies behind it; the depth there."""
    pixels, depth = (value.numpy() for value in view.camera.project(torch.from_numpy(points).float()))
    inside = (depth > 1e-6) & (np.abs(pixels) < 1e6).all(axis=1)
    columns, rows = (np.round(np.where(inside, pixels[:, axis], -1)).astype(int) for axis in (0, 1))
    inside &= (columns >= 0) & (rows >= 0) & (columns < view.camera.width) & (rows < view.camera.height)
    measured = np.where(inside, view.depth[np.where(inside, rows, 0), np.where(inside, columns, 0)], 0)
    return measured > 0, depth - measured, measured


def _dominant_plane(
    points: Float[np.ndarray, "n 3"], centers: Float[np.ndarray, "v 3"], generator: np.random.Generator
) -> tuple[Float[np.ndarray, 3] | None, float, float]:
    """Normal (towards the cameras), offset and share of the plane that holds most points (RANSAC, 300 hypotheses)."""
    if len(points) < 50:
        return None, 0.0, 0.0
    cloud = points[generator.permutation(len(points))[:5000]]
    low, high = np.percentile(cloud, (5, 95), axis=0)
    tolerance = 0.01 * float(np.linalg.norm(high - low))
    triples = cloud[generator.integers(len(cloud), size=(300, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals = normals[lengths > 1e-12] / lengths[lengths > 1e-12, None]
    offsets = np.einsum("kd,kd->k", normals, triples[lengths > 1e-12, 0])
    if not len(normals):
        return None, 0.0, 0.0
    counts = (np.abs(cloud @ normals.T - offsets) < tolerance).sum(axis=0)
    best = int(counts.argmax())
    inliers = cloud[np.abs(cloud @ normals[best] - offsets[best]) < tolerance]
    middle = inliers.mean(axis=0)
    normal = np.linalg.svd(inliers - middle, full_matrices=False)[2][2]
    share = len(inliers) / len(cloud)
    if share < MIN_PLANE_SHARE:
        return None, 0.0, share
    normal = normal * (1 if (centers.mean(axis=0) - middle) @ normal > 0 else -1)
    return normal, float(normal @ middle), share


def _depth_warnings(statistics: CaptureStatistics) -> list[str]:
    warnings = []
    empty = [view.name for view in statistics.views if view.valid_depth == 0]
    sparse = [view for view in statistics.views if 0 < view.valid_depth < MIN_VALID]
    if empty:
        warnings.append(f"Empty depth: {', '.join(empty)} without a single measured pixel.")
    if sparse:
        least = min(sparse, key=lambda view: view.valid_depth)
        warnings.append(
            f"Sparse depth: {', '.join(view.name for view in sparse)}; '{least.name}' has depth in only "
            f"{least.valid_depth:.0%} of its pixels."
        )
    for view in statistics.views:
        if view.valid_depth == 0 or DEPTH_RANGE[0] <= view.median_depth <= DEPTH_RANGE[1]:
            continue
        hint = "check the unit of the depth images"
        if DEPTH_RANGE[0] <= view.median_depth / 1000 <= DEPTH_RANGE[1]:
            hint = "millimeters seem to have been read as meters (depth_scale 0.001)"
        elif DEPTH_RANGE[0] <= view.median_depth * 1000 <= DEPTH_RANGE[1]:
            hint = "meters seem to have been read as millimeters (depth_scale 1)"
        warnings.append(
            f"Wrong scale: the median depth of '{view.name}' is {view.median_depth:.4g} m, outside "
            f"{DEPTH_RANGE[0]:g} to {DEPTH_RANGE[1]:g} m; {hint}."
        )
    return warnings


def _pose_warnings(observation: Observation, statistics: CaptureStatistics) -> list[str]:
    warnings = []
    measured = [view.median_depth for view in statistics.views if view.valid_depth > 0]
    centers = _centers(observation)
    if len(centers) > 1 and measured:
        spread = float(np.linalg.norm(centers[:, None] - centers, axis=-1).max())
        depth = float(np.median(measured))
        if spread > 20 * depth or spread < 0.002 * depth:
            warnings.append(
                f"Wrong scale: the cameras are up to {spread:.4g} m apart, but see surfaces {depth:.4g} m away; "
                "poses and depth seem to have different units."
            )
    if statistics.plane_tilt is not None and statistics.plane_tilt > MAX_TILT and statistics.plane_normal is not None:
        axis = _axis_name(statistics.plane_normal)
        warnings.append(
            f"Wrong up axis: the largest plane ({statistics.plane_share:.0%} of the points) faces {axis}, "
            f"{statistics.plane_tilt:.0f} degrees from +z; the world must have +z up."
        )
    bad = [view for view in statistics.views if view.contradiction > MAX_CONTRADICTION]
    if bad:
        worst = max(bad, key=lambda view: view.contradiction)
        warnings.append(
            f"Cameras disagree: other cameras look through {worst.contradiction:.0%} of the points of '{worst.name}'"
            + (f" (also: {', '.join(view.name for view in bad if view is not worst)})" if len(bad) > 1 else "")
            + "; check poses, intrinsics and the camera convention (OpenCV: x right, y down, z forward)."
        )
    lonely = [view for view in statistics.views if view.valid_depth > 0 and view.agreement < MIN_OVERLAP]
    if lonely:
        warnings.append(
            f"Little overlap: less than {MIN_OVERLAP:.0%} of what {', '.join(view.name for view in lonely)} sees is "
            "confirmed by another camera."
        )
    return warnings


def _axis_name(normal: tuple[float, float, float]) -> str:
    index = int(np.abs(normal).argmax())
    if abs(normal[index]) < math.cos(math.radians(MAX_TILT)):
        return f"({normal[0]:.2f}, {normal[1]:.2f}, {normal[2]:.2f})"
    return ("+" if normal[index] > 0 else "-") + "xyz"[index]


def _image_warnings(statistics: CaptureStatistics) -> list[str]:
    warnings = []
    dark = [view.name for view in statistics.views if view.brightness < 0.03]
    if dark:
        warnings.append(f"Black pictures: {', '.join(dark)}.")
    for view in statistics.views:
        if view.mask_share is not None and (view.mask_share == 0 or view.mask_share > 0.95):
            what = "is empty" if view.mask_share == 0 else "covers nearly the whole picture"
            warnings.append(f"Mask: the one of '{view.name}' {what}.")
    if len(statistics.views) == 1:
        warnings.append("Only one view: what it does not see stays unknown, and nothing confirms its calibration.")
    return warnings
