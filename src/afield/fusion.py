"""From an observation to a scene: back-projection, table removal, pruning, down-sampling, and features fused over views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.crops import view_features
from afield.perception.features import FeatureExtractor
from afield.scene import FeatureSource, Plane, Scene, farthest_points


@dataclass(frozen=True)
class SceneConfig:
    """How a scene is made from an observation."""

    points: int = 2048
    """Number of points that are kept."""
    mask: Literal["auto", "always", "never"] = "auto"
    """Use the views' masks: where all views have one (auto), always, or never."""
    workspace: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """Lowest and highest corner of the box that counts, in metres; None keeps everything."""
    remove_table: bool = True
    """Find the supporting plane and remove it and everything below it."""
    table_clearance: float = 0.008
    """Points lower than this above the table are removed, in metres."""
    ceiling: float = 0.6
    """Points higher than this above the table are removed, in metres."""
    voxel: float = 0.003
    """Side of the voxels that merge the views' points, in metres."""
    edge: float = 0.03
    """A pixel next to a depth step larger than this is mixed from two surfaces and is dropped, in metres."""
    span: float = 0.3
    """Side of the feature crops in metres at the scene's distance."""
    neighbours: int = 12
    """How many neighbours decide whether a point is an outlier."""
    outlier: float = 3.0
    """A point whose neighbours are farther than the median by this many deviations is an outlier."""
    visible: float = 0.01
    """A point is seen by a view if the view's depth agrees with its own to this many metres."""


def build_scene(
    observation: Observation,
    extractor: FeatureExtractor,
    config: SceneConfig | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> Scene:
    """Describe an observation: points on the objects of interest, each with one feature fused over the views.

    Args:
        observation: views with depth.
        extractor: what describes the pictures.
        config: see `SceneConfig`.
        seed: of the plane search and of the choice of points.
        cache: folder for image features; the user's cache folder if None.
        progress: show a progress bar.

    Returns:
        The scene, with `config.points` points or fewer if fewer were seen.

    Raises:
        AfieldError: empty mask, no plane, too few points.
    """
    config = config or SceneConfig()
    cloud = fuse_cloud(observation, config, seed=seed)
    keep = farthest_points(cloud.points, config.points, seed=seed)
    points, normals, colors = cloud.points[keep], cloud.normals[keep], cloud.colors[keep]
    per_view, weight = point_view_features(
        observation, points, normals, extractor, config, cache=cache, progress=progress
    )
    features = (per_view * weight[..., None]).sum(dim=0)
    features = torch.nn.functional.normalize(features, dim=-1)
    source = FeatureSource(extractor.name, extractor.layer, extractor.resolution, config.span)
    return Scene(points, features, colors, normals, source, cloud.table, observation.name)


@dataclass(frozen=True)
class Cloud:
    """A fused cloud before features."""

    points: Float[Tensor, "m 3"]
    colors: Float[Tensor, "m 3"]
    normals: Float[Tensor, "m 3"]
    table: Plane | None


def fuse_cloud(observation: Observation, config: SceneConfig, *, seed: int = 0) -> Cloud:
    """One clean cloud of the objects of interest from all views.

    Raises:
        AfieldError: a mask is empty, the table was not found, or fewer than 100 points are left.
    """
    masked = _use_masks(observation, config)
    everything = [_back_project(view, config, masked=False) for view in observation.views]
    table = _find_table(observation, everything, config, seed, needed=config.remove_table and not masked)
    parts = [_back_project(view, config, masked=True) for view in observation.views] if masked else everything
    points, colors, centers = (torch.cat([part[i] for part in parts]) for i in range(3))
    keep = _inside(points, config.workspace)
    if table is not None and config.remove_table:
        height = table.height(points)
        keep &= (height > config.table_clearance) & (height < config.ceiling)
    points, colors, centers = points[keep], colors[keep], centers[keep]
    points, colors, centers = _merge_voxels(points, colors, centers, config.voxel)
    if len(points) > config.neighbours:
        inlier = inliers(points, config.neighbours, config.outlier)
        points, colors, centers = points[inlier], colors[inlier], centers[inlier]
    if len(points) < 100:
        raise AfieldError(
            f"Only {len(points)} points of '{observation.name}' are left after masks, workspace, table removal and pruning; "
            "at least 100 are needed. Check depth units, masks and workspace with `afield capture check`."
        )
    return Cloud(points, colors, estimate_normals(points, centers), table)


def point_view_features(
    observation: Observation,
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    extractor: FeatureExtractor,
    config: SceneConfig,
    *,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[Float[Tensor, "v n c"], Float[Tensor, "v n"]]:
    """Features of the points as every view sees them, and how much each view's word counts.

    Returns:
        Unit features per view, and weights that sum to one over the views: the cosine between normal and viewing
        direction where the view's depth agrees with the point, else zero. A point that no view confirms takes the view
        whose depth comes closest.
    """
    seen, pixels = [], []
    for view in observation.views:
        pixel, depth = view.camera.project(points)
        measured, inside = _look_up(view, pixel)
        facing = torch.nn.functional.normalize(view.camera.position - points, dim=-1)
        cosine = (facing * normals).sum(dim=-1).clamp_min(0.05)
        gap = torch.where(inside & (measured > 0), (measured - depth).abs(), torch.inf)
        seen.append(torch.where(gap < config.visible, cosine, 1e-6 / (1.0 + gap)))
        pixels.append(pixel)
    weight = torch.stack(seen)
    weight = weight / weight.sum(dim=0, keepdim=True).clamp_min(1e-12)
    features = view_features(
        observation, pixels, points, extractor, config.span, cache=cache, progress=progress
    )
    return features, weight


def find_plane(
    points: Float[Tensor, "n 3"], *, seed: int = 0, tolerance: float = 0.006, trials: int = 512
) -> tuple[Plane, Bool[Tensor, "n"]] | None:
    """The horizontal plane with most points, by RANSAC.

    Args:
        points: metres, world frame with +Z up.
        seed: of the trials.
        tolerance: distance in metres up to which a point belongs to a plane.
        trials: number of random triples of points.

    Returns:
        The plane, with its normal up, and which points belong to it; None if no plane within 30 degrees of the
        horizontal holds a tenth of the points.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = points[torch.randint(len(points), (min(len(points), 8192),), generator=generator)]
    triple = sample[torch.randint(len(sample), (trials, 3), generator=generator)]
    normal = torch.linalg.cross(triple[:, 1] - triple[:, 0], triple[:, 2] - triple[:, 0])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    normal = normal * torch.where(normal[:, 2:] < 0, -1.0, 1.0)
    offset = (normal * triple[:, 0]).sum(dim=-1)
    count = ((sample @ normal.T - offset).abs() < tolerance).sum(dim=0)
    count = torch.where(normal[:, 2] > 0.866, count, 0)
    best = int(count.argmax())
    if int(count[best]) < 0.1 * len(sample):
        return None
    plane = Plane(normal[best], float(offset[best]))
    for _ in range(3):  # least squares over the plane's own points
        member = plane.height(points).abs() < tolerance
        center = points[member].mean(dim=0)
        _, _, axes = torch.linalg.svd((points[member] - center)[:: max(1, int(member.sum()) // 20000)], full_matrices=False)
        up = axes[2] * torch.sign(axes[2, 2])
        plane = Plane(up, float(up @ center))
    return plane, plane.height(points).abs() < tolerance


def inliers(points: Float[Tensor, "n 3"], neighbours: int, limit: float) -> Bool[Tensor, "n"]:
    """Points whose mean distance to their neighbours is not unusually large."""
    distance, _ = cKDTree(points.numpy()).query(points.numpy(), k=neighbours + 1, workers=-1)
    mean = torch.from_numpy(distance[:, 1:].mean(axis=1))
    median = mean.median()
    deviation = 1.4826 * (mean - median).abs().median() + 1e-9
    return mean < median + limit * torch.maximum(deviation, 0.3 * median)


def estimate_normals(
    points: Float[Tensor, "n 3"], centers: Float[Tensor, "n 3"], neighbours: int = 16
) -> Float[Tensor, "n 3"]:
    """Unit normals from the points' neighbours, turned towards the camera centres that saw them."""
    _, index = cKDTree(points.numpy()).query(points.numpy(), k=min(neighbours, len(points)), workers=-1)
    around = points[torch.from_numpy(index)]
    around = around - around.mean(dim=1, keepdim=True)
    _, axes = torch.linalg.eigh(around.transpose(1, 2) @ around)
    normal = axes[:, :, 0]
    return normal * torch.where(((centers - points) * normal).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)


def _use_masks(observation: Observation, config: SceneConfig) -> bool:
    missing = [view.name for view in observation.views if view.mask is None]
    if config.mask == "always" and missing:
        raise AfieldError(f"'{observation.name}': the views {missing} have no mask, but masks were asked for.")
    if config.mask == "never" or missing:
        return False
    if not any(bool(view.mask.any()) for view in observation.views if view.mask is not None):
        raise AfieldError(f"All masks of '{observation.name}' are empty: no pixel belongs to the object.")
    return True


def _back_project(
    view: View, config: SceneConfig, *, masked: bool
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """World points, colours and the camera centre of every good depth pixel of a view."""
    depth = view.depth
    good = depth > 0
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > config.edge
        low, high = [slice(None)] * 2, [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        good[tuple(low)] &= ~step
        good[tuple(high)] &= ~step
    if masked and view.mask is not None:
        good &= view.mask
    rows, columns = np.nonzero(good)
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(depth[rows, columns]).float())
    colors = torch.from_numpy(view.color[rows, columns]).float() / 255
    return points, colors, view.camera.position.expand(len(points), 3)


def _find_table(
    observation: Observation, parts: list[tuple[Tensor, Tensor, Tensor]], config: SceneConfig, seed: int, *, needed: bool
) -> Plane | None:
    points = torch.cat([part[0] for part in parts])
    points = points[_inside(points, config.workspace)]
    if len(points) < 100:
        raise AfieldError(
            f"'{observation.name}' has only {len(points)} depth pixels (in the workspace); at least 100 are needed."
        )
    found = find_plane(points[:: max(1, len(points) // 200_000)], seed=seed)
    if found is None and needed:
        raise AfieldError(
            f"No horizontal plane holds a tenth of the points of '{observation.name}', so the table cannot be removed; "
            "check that +Z is up, give masks, or switch table removal off."
        )
    return found[0] if found else None


def _inside(points: Float[Tensor, "n 3"], workspace: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Bool[Tensor, "n"]:
    if workspace is None:
        return torch.ones(len(points), dtype=torch.bool)
    low, high = torch.tensor(workspace[0]), torch.tensor(workspace[1])
    return ((points >= low) & (points <= high)).all(dim=-1)


def _merge_voxels(
    points: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"], centers: Float[Tensor, "n 3"], side: float
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"], Float[Tensor, "m 3"]]:
    """The mean point, colour and camera centre of every occupied voxel."""
    if len(points) == 0:
        return points, colors, centers
    cell = torch.floor(points / side).long()
    cell = cell - cell.amin(dim=0)
    size = cell.amax(dim=0) + 1
    key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    _, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)
    merged = []
    for values in (points, colors, centers):
        total = torch.zeros(len(count), 3).index_add_(0, inverse, values)
        merged.append(total / count[:, None])
    return merged[0], merged[1], merged[2]


def _look_up(view: View, pixel: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Depth at the nearest pixel, and whether the pixel lies in the picture."""
    column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
    inside = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height)
    depth = torch.from_numpy(view.depth).float()
    return depth[row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)], inside
