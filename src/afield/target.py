"""What the robot sees of the object it is to act on: surface points with descriptors, empty space, the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from afield.errors import AfieldError
from afield.observation import Observation, View
from afield.perception.crops import Crop, object_square
from afield.perception.features import FeatureExtractor, extract_with_progress
from afield.scene import estimate_normals, find_plane
from afield.skills import DescriptorBasis

LEAST = 60
"""Seen points below which nothing can be aligned."""
CLEAR = 0.015
"""So far in front of a measured surface space is known to be empty, in metres."""


@dataclass(frozen=True)
class Target:
    """What is seen of one object, in the world frame (+Z up)."""

    points: Float[Tensor, "n 3"]
    """On its visible surface, in metres, in random order."""
    descriptors: Float[Tensor, "n d"]
    """In the skill's descriptor basis."""
    normals: Float[Tensor, "n 3"]
    """Unit vectors towards the camera's side."""
    free: Float[Tensor, "m 3"]
    """Points known to be empty: in front of what the cameras saw, in random order."""
    eyes: Float[Tensor, "v 3"]
    """Where the cameras are; the first one sees most of the object."""
    seen_by: Int[Tensor, "n"]
    """Which of them sees each point."""
    others: Float[Tensor, "k 3"]
    """What is seen around the object that is not the object, in random order."""
    table: float | None = None
    """Height of the plane it stands on; None if there is none below it."""

    def thinned(self, count: int) -> Target:
        """With `count` of its points and as many of the empty ones."""
        return replace(
            self,
            points=self.points[:count],
            descriptors=self.descriptors[:count],
            normals=self.normals[:count],
            seen_by=self.seen_by[:count],
            free=self.free[:count],
            others=self.others[:count],
        )


def see_target(
    observation: Observation,
    basis: DescriptorBasis,
    extractor: FeatureExtractor,
    *,
    count: int = 600,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> Target:
    """Look at one object.

    Args:
        observation: one or more views with depth and a mask of the object.
        basis: the skill's.
        extractor: of the same name as the basis'.
        count: surface points, and as many empty ones, over all views.
        seed: of their choice.
        cache: folder of the feature cache.
        progress: show a progress bar.

    Raises:
        AfieldError: no view has a mask with depth under it.
    """
    generator = torch.Generator().manual_seed(seed)
    views = sorted((view for view in observation.views if _pixels(view)), key=_pixels, reverse=True)
    if not views:
        raise AfieldError(
            f"No view of '{observation.name}' shows the object: masks with depth under them are needed "
            "(afield capture mask CAPTURE --box VIEW LEFT TOP RIGHT BOTTOM -o NEW)."
        )
    crops = [object_square(view) for view in views]
    pictures = np.stack([crop.cut(view.color, extractor.resolution) for crop, view in zip(crops, views, strict=True)])
    tokens = extract_with_progress(pictures, extractor, observation.name, cache=cache, progress=progress)
    each = -(-count // len(views))
    parts = [
        _seen(view, crop, basis.project(found), each, generator)
        for view, crop, found in zip(views, crops, tokens, strict=True)
    ]
    points, descriptors, normals = (torch.cat(column) for column in zip(*parts, strict=True))
    if len(points) < LEAST:
        raise AfieldError(
            f"Only {len(points)} pixels of '{observation.name}' have depth on the object; {LEAST} are needed."
        )
    free = torch.cat([_free(view, crop, each, generator) for view, crop in zip(views, crops, strict=True)])
    around = _around(views, points)
    order, empty, pick = (torch.randperm(len(x), generator=generator) for x in (points, free, around))
    seen_by = torch.cat([torch.full((len(part[0]),), index) for index, part in enumerate(parts)])
    eyes = torch.stack([view.camera.position for view in views])
    return Target(
        *(points[order], descriptors[order], normals[order], free[empty]),
        *(eyes, seen_by[order], around[pick[:count]], _table(around, points)),
    )


def _pixels(view: View) -> int:
    """How many pixels show the object and have depth."""
    return 0 if view.mask is None else int((view.mask & (view.depth > 0)).sum())


def _seen(
    view: View, crop: Crop, tokens: Float[Tensor, "rows columns d"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n d"], Float[Tensor, "n 3"]]:
    """Points, descriptors and normals of pixels on the object; the rim, where depth is mixed, is left out."""
    solid = _without_rim(view)
    rows, columns = (torch.from_numpy(x) for x in np.nonzero(solid))
    pixels = torch.stack((columns, rows), dim=-1).float()
    points = view.camera.backproject(pixels, torch.from_numpy(view.depth)[rows, columns].float())
    dense = torch.randperm(len(points), generator=generator)[: 8 * count]
    pixels, points = pixels[dense], points[dense]
    normals = estimate_normals(points, view.camera.position.expand(len(points), 3), 20)
    inner = (pixels[:count] - torch.tensor([crop.left, crop.top])) / crop.side * 2 - 1
    found = functional.grid_sample(
        tokens.permute(2, 0, 1)[None], inner[None, None], padding_mode="border", align_corners=False
    )
    return points[:count], found[0, :, 0].T, normals[:count]


def _without_rim(view: View) -> Bool[np.ndarray, "h w"]:
    """The mask where depth is measured and does not jump between neighbours, if enough is left of it."""
    assert view.mask is not None, "chosen so"
    solid = view.mask & (view.depth > 0)
    low = np.where(view.depth > 0, view.depth, np.inf)
    jump = np.zeros_like(solid)
    for axis in (0, 1):
        for shift in (-1, 1):
            with np.errstate(invalid="ignore"):
                jump |= np.abs(low - np.roll(low, shift, axis)) > 0.03
    clean = solid & ~jump
    return clean if clean.sum() > 0.5 * solid.sum() else solid


def _free(view: View, crop: Crop, count: int, generator: torch.Generator) -> Float[Tensor, "m 3"]:
    """Empty points in front of what is seen, as near and far as the object, in and around its box."""
    assert view.mask is not None, "chosen so"
    depth = torch.from_numpy(view.depth[view.mask & (view.depth > 0)]).float()
    near, far = (float(x) for x in torch.quantile(depth[:: 1 + len(depth) // 100_000], torch.tensor([0.02, 0.98])))
    reach = far - near + 0.1
    pixels = torch.rand(6 * count, 2, generator=generator) * crop.side + torch.tensor([crop.left, crop.top])
    pixels = pixels.round()
    inside = ((pixels >= 0) & (pixels <= torch.tensor([view.camera.width - 1, view.camera.height - 1]))).all(dim=-1)
    pixels = pixels[inside]
    measured = torch.from_numpy(view.depth)[pixels[:, 1].long(), pixels[:, 0].long()]
    ahead = near - 0.3 * reach + torch.rand(len(pixels), generator=generator) * 1.6 * reach
    empty = (measured > 0) & (ahead < measured - CLEAR) & (ahead > 0)
    return view.camera.backproject(pixels[empty], ahead[empty])[:count]


def _around(views: list[View], points: Float[Tensor, "n 3"]) -> Float[Tensor, "k 3"]:
    """What is seen beside the object, up to 30 cm from its box."""
    around = []
    for view in views:
        assert view.mask is not None, "chosen so"
        rows, columns = np.nonzero(~view.mask & (view.depth > 0))
        pick = slice(None, None, max(1, len(rows) // 20_000))
        pixels = torch.from_numpy(np.stack((columns[pick], rows[pick]), axis=1)).float()
        around.append(view.camera.backproject(pixels, torch.from_numpy(view.depth[rows[pick], columns[pick]]).float()))
    place = torch.cat(around)
    low, high = points.amin(dim=0), points.amax(dim=0)
    near = ((place[:, :2] > low[:2] - 0.3) & (place[:, :2] < high[:2] + 0.3)).all(dim=-1)
    return place[near]


def _table(around: Float[Tensor, "k 3"], points: Float[Tensor, "n 3"]) -> float | None:
    """Height of the horizontal plane around the object's feet."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    place = around[around[:, 2] < (low[2] + high[2]) / 2]
    found = find_plane(place) if len(place) > LEAST else None
    if found is None:
        return None
    middle = torch.cat((points.mean(dim=0)[:2], torch.zeros(1)))
    height = -float(found[0].height(middle)) / float(found[0].normal[2])
    return height if abs(height - float(low[2])) < 0.3 * float((high - low).max()) else None
