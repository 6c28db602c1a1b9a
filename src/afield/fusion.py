"""From an observation to a scene: back-projection, table removal, pruning, down-sampling, features fused over views."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.crops import view_features
from afield.perception.features import FeatureExtractor
from afield.scene import FeatureSource, Plane, Scene, Views, estimate_normals, farthest_points, find_plane, inliers

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Lowest and highest corner in metres, world frame."""

MINIMUM = 100
"""Fewer points than this are no scene."""
SEEN_THROUGH = 0.03
"""Depths that differ by more than this share contradict each other; sensor noise stays below it."""
DOUBTFUL = 0.05
"""A warning if the other views see through more than this share of a view's points."""


@dataclass(frozen=True)
class SceneConfig:
    """How a scene is made from an observation."""

    points: int = 2048
    """Number of points that are kept."""
    mask: Literal["auto", "always", "never"] = "auto"
    """Use the views' masks: where all views have one (auto), always, or never."""
    workspace: Box | None = None
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
    span: float = 0.45
    """Side of the feature crops in metres at the scene's distance."""
    neighbours: int = 12
    """How many neighbours decide whether a point is an outlier."""
    outlier: float = 3.0
    """A point whose neighbours are farther than the median by this many deviations is an outlier."""
    visible: float = 0.01
    """A point is seen by a view if the view's depth agrees with its own to this many metres."""
    disagreement: float = 0.1
    """If the other views see through more than this share of a view's points, a camera is wrong: that is an error."""


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
    sight = _sight(observation, points, normals, config)
    per_view = view_features(observation, sight.pixels, points, extractor, config.span, cache=cache, progress=progress)
    features = functional.normalize((per_view * sight.weight[..., None]).sum(dim=0), dim=-1)
    source = FeatureSource(extractor.name, extractor.layer, extractor.resolution, config.span)
    views = Views(per_view.half(), sight.weight)
    return Scene(points, features, colors, normals, source, cloud.table, observation.name, views)


def build_view_features(
    observation: Observation,
    scene: Scene,
    extractor: FeatureExtractor,
    config: SceneConfig | None = None,
    *,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[Float[Tensor, "v n c"], Bool[Tensor, "v n"]]:
    """The features of a scene's points view by view, before fusion, for a refinement that learns from them.

    Args:
        observation: what the scene was built from.
        scene: its points and normals are used.
        extractor: the one that described the scene.
        config: the one with which the scene was built.
        cache: folder for image features; the user's cache folder if None.
        progress: show a progress bar.

    Returns:
        Unit features of every point in every view, and whether the view really sees the point. Where it does not, the
        features are those of whatever lies in front.
    """
    config = config or SceneConfig()
    sight = _sight(observation, scene.points, scene.normals, config)
    features = view_features(
        observation, sight.pixels, scene.points, extractor, config.span, cache=cache, progress=progress
    )
    return features, sight.seen


@dataclass(frozen=True)
class Cloud:
    """A fused cloud before down-sampling and features."""

    points: Float[Tensor, "m 3"]
    """Metres, world frame."""
    colors: Float[Tensor, "m 3"]
    """RGB, 0 to 1."""
    normals: Float[Tensor, "m 3"]
    """Unit vectors towards the cameras."""
    table: Plane | None
    """The supporting plane, where one was seen."""


@dataclass(frozen=True)
class _Part:
    """Points with colors and the camera center that saw each of them."""

    points: Float[Tensor, "n 3"]
    colors: Float[Tensor, "n 3"]
    centers: Float[Tensor, "n 3"]

    def select(self, keep: Bool[Tensor, "n"]) -> _Part:
        """Those points alone."""
        return _Part(self.points[keep], self.colors[keep], self.centers[keep])


def fuse_cloud(observation: Observation, config: SceneConfig, *, seed: int = 0) -> Cloud:
    """One clean cloud of the objects of interest from all views.

    Raises:
        AfieldError: a mask is empty, the table was not found, or fewer than 100 points are left.
    """
    masked = _use_masks(observation, config)
    everything = [_back_project(view, config) for view in observation.views]
    _check_agreement(observation, everything, config)
    if masked:
        parts = [_back_project(view, config, view.mask) for view in observation.views]
        around = [_back_project(view, config, None if view.mask is None else ~view.mask) for view in observation.views]
        table = _find_table(observation, around, config, seed, needed=False)
    else:
        parts = everything
        table = _find_table(observation, everything, config, seed, needed=config.remove_table)
    cloud = _Part(*(torch.cat([getattr(part, name) for part in parts]) for name in ("points", "colors", "centers")))
    keep = _inside(cloud.points, config.workspace)
    if table is not None and config.remove_table:
        height = table.height(cloud.points)
        keep &= (height > config.table_clearance) & (height < config.ceiling)
    cloud = _merge_voxels(cloud.select(keep), config.voxel)
    cloud = cloud.select(_confirmed(observation.views, cloud.points, config.visible))
    if len(cloud.points) > config.neighbours:
        cloud = cloud.select(inliers(cloud.points, config.neighbours, config.outlier))
    if len(cloud.points) < MINIMUM:
        raise AfieldError(
            f"Only {len(cloud.points)} points of '{observation.name}' are left after masks, workspace, table removal "
            f"and pruning; at least {MINIMUM} are needed. Check depth units, masks and workspace with `afield capture "
            "check`."
        )
    return Cloud(cloud.points, cloud.colors, estimate_normals(cloud.points, cloud.centers), table)


def _confirmed(views: Sequence[View], points: Float[Tensor, "n 3"], tolerance: float) -> Bool[Tensor, "n"]:
    """Points that no more views see through than see; the rest sees through a flying pixel of one view."""
    through = _seen_through(views, points, 2 * tolerance).sum(dim=0)
    seen = torch.zeros(len(points), dtype=torch.long)
    for view in views:
        pixel, depth = view.camera.project(points)
        seen += (_look_up(view, pixel, depth) - depth).abs() < tolerance
    return through <= seen.clamp_min(1)


@dataclass(frozen=True)
class _Sight:
    """How the views see a set of points."""

    pixels: list[Float[Tensor, "n 2"]]
    seen: Bool[Tensor, "v n"]
    weight: Float[Tensor, "v n"]


def _sight(
    observation: Observation, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], config: SceneConfig
) -> _Sight:
    """Where the points lie in each view, which views see them, and how much each view's word counts.

    The weight is the cosine between normal and viewing direction where the view's depth agrees with the point's, else
    zero; it sums to one over the views. A point that no view confirms takes the view whose depth comes closest.
    """
    seen, pixels, weights = [], [], []
    for view in observation.views:
        pixel, depth = view.camera.project(points)
        measured = _look_up(view, pixel, depth)
        facing = functional.normalize(view.camera.position - points, dim=-1)
        cosine = (facing * normals).sum(dim=-1).clamp_min(0.05)
        gap = torch.where(measured > 0, (measured - depth).abs(), torch.inf)
        seen.append(gap < config.visible)
        weights.append(torch.where(gap < config.visible, cosine, 1e-6 / (1.0 + gap) + 1e-9))
        pixels.append(pixel)
    weight = torch.stack(weights)
    return _Sight(pixels, torch.stack(seen), weight / weight.sum(dim=0, keepdim=True))


def _use_masks(observation: Observation, config: SceneConfig) -> bool:
    missing = [view.name for view in observation.views if view.mask is None]
    if config.mask == "always" and missing:
        raise AfieldError(f"'{observation.name}': the views {missing} have no mask, but masks were asked for.")
    if config.mask == "never" or missing:
        return False
    if not any(bool(view.mask.any()) for view in observation.views if view.mask is not None):
        raise AfieldError(f"All masks of '{observation.name}' are empty: no pixel belongs to the object.")
    return True


def _back_project(view: View, config: SceneConfig, mask: Bool[np.ndarray, "h w"] | None = None) -> _Part:
    """Points of every depth pixel of a view, in the mask if there is one, that does not lie beside a depth step."""
    depth = view.depth
    good = depth > 0
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > config.edge
        low, high = [slice(None)] * 2, [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        good[tuple(low)] &= ~step
        good[tuple(high)] &= ~step
    if mask is not None:
        good &= mask
    rows, columns = np.nonzero(good)
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(depth[rows, columns]).float())
    colors = torch.from_numpy(view.color[rows, columns]).float() / 255
    return _Part(points, colors, view.camera.position.expand(len(points), 3))


def _find_table(
    observation: Observation, parts: list[_Part], config: SceneConfig, seed: int, *, needed: bool
) -> Plane | None:
    points = torch.cat([part.points for part in parts])
    points = points[_inside(points, config.workspace)]
    if len(points) < MINIMUM:
        if not needed:
            return None
        raise AfieldError(
            f"'{observation.name}' has only {len(points)} usable depth pixels in the workspace; at least {MINIMUM} are "
            "needed."
        )
    found = find_plane(points[:: max(1, len(points) // 200_000)], seed=seed)
    if found is None and needed:
        raise AfieldError(
            f"No horizontal plane holds a tenth of the points of '{observation.name}', so the table cannot be removed; "
            "check that +Z is up, give masks, or switch table removal off."
        )
    return found[0] if found else None


def _inside(points: Float[Tensor, "n 3"], workspace: Box | None) -> Bool[Tensor, "n"]:
    if workspace is None:
        return torch.ones(len(points), dtype=torch.bool)
    low, high = torch.tensor(workspace[0]), torch.tensor(workspace[1])
    return ((points >= low) & (points <= high)).all(dim=-1)


def _merge_voxels(part: _Part, side: float) -> _Part:
    """The mean point, color and camera center of every occupied voxel."""
    if len(part.points) == 0:
        return part
    cell = torch.floor(part.points / side).long()
    cell = cell - cell.amin(dim=0)
    size = cell.amax(dim=0) + 1
    key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    _, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)

    def mean(values: Float[Tensor, "n 3"]) -> Tensor:
        """Of the points in each voxel."""
        return torch.zeros(len(count), 3).index_add_(0, inverse, values) / count[:, None]

    return _Part(mean(part.points), mean(part.colors), mean(part.centers))


def _look_up(view: View, pixel: Float[Tensor, "n 2"], depth: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The measured depth at the nearest pixel; 0 where there is none, outside the picture and behind the camera."""
    column, row = pixel[:, 0].round().long(), pixel[:, 1].round().long()
    inside = (column >= 0) & (column < view.camera.width) & (row >= 0) & (row < view.camera.height) & (depth > 0)
    row, column = row.clamp(0, view.camera.height - 1), column.clamp(0, view.camera.width - 1)
    measured = torch.from_numpy(view.depth)[row, column].to(depth)
    return torch.where(inside, measured, 0.0)


def _seen_through(
    views: Sequence[View], points: Float[Tensor, "n 3"], gap: float, relative: float = 0.0
) -> Bool[Tensor, "v n"]:
    """Whether a view measured something clearly behind a point, which then cannot be there.

    Args:
        views: who may see through.
        points: metres, world frame.
        gap: how far behind, in metres ...
        relative: ... plus this share of the depth.
    """
    found = []
    for view in views:
        pixel, depth = view.camera.project(points)
        found.append(_look_up(view, pixel, depth) > (1 + relative) * depth + gap)
    return torch.stack(found)


def _check_agreement(observation: Observation, parts: list[_Part], config: SceneConfig) -> None:
    """Refuse cameras that contradict each other: wrong intrinsics, poses or depth scale."""
    shares = []
    for view, part in zip(observation.views, parts, strict=True):
        others = [other for other in observation.views if other is not view]
        sample = part.points[:: max(1, len(part.points) // 4000)]
        if others and len(sample):
            shares.append((float(_seen_through(others, sample, 0.0, SEEN_THROUGH).float().mean()), view.name))
    share, name = max(shares, default=(0.0, ""))
    message = (
        f"'{observation.name}': {share:.0%} of the points of view '{name}' lie in front of what the other views see "
        "there; intrinsics, camera poses or depth scale may be wrong: see `afield capture check`."
    )
    if share > config.disagreement:
        raise AfieldError(message)
    if share > DOUBTFUL:
        logging.getLogger(__name__).warning(message)
