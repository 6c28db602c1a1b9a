"""Crops of one metric scale, so that a thing looks equally large to the extractor in every scene."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from afield.observation import Observation, View
from afield.perception.features import FeatureExtractor, extract_with_progress

MARGIN = 0.05
"""Share of a crop at either border that is not used where it can be avoided: the extractor lacks context there."""
OVERLAP = 0.2
"""Share of a crop that its neighbor also shows, at least."""
AROUND = 1.3
"""Side of the square in which an object is described, in sides of its mask's box."""
BACKGROUND = (124, 116, 104)
"""RGB outside the picture: the mean color of ImageNet, which the extractors see as zero."""


@dataclass(frozen=True)
class Crop:
    """A square part of a picture; the top-left corner may lie outside the picture."""

    left: float
    """Left border in pixels (pixel centres at integers, so the first pixel begins at -0.5)."""
    top: float
    """Upper border in pixels."""
    side: float
    """Side in pixels."""

    def cut(self, image: UInt8[np.ndarray, "h w 3"], resolution: int) -> UInt8[np.ndarray, "r r 3"]:
        """The crop, resampled to `resolution` pixels; what lies outside the picture has the mean color of ImageNet."""
        scale = self.side / resolution
        matrix = np.array(
            [[scale, 0.0, self.left + 0.5 * scale], [0.0, scale, self.top + 0.5 * scale]], dtype=np.float64
        )
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC
        if scale > 1:  # warpAffine does not average, so a picture that shrinks is smoothed first
            image = cv2.GaussianBlur(image, (0, 0), 0.5 * scale)
            flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        size = (resolution, resolution)
        return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=BACKGROUND)

    def contains(self, pixels: Float[Tensor, "n 2"]) -> Bool[Tensor, "n"]:
        """Which pixel positions lie in the crop."""
        inner = pixels - torch.tensor([self.left, self.top])
        return ((inner >= 0) & (inner <= self.side)).all(dim=-1)

    def shares(self, mask: Bool[np.ndarray, "h w"], cells: int) -> Float[Tensor, "cells cells"]:
        """Which share of each of `cells` by `cells` equal squares a mask covers; outside of the picture there is none."""
        fine = 4 * cells
        inner = (torch.arange(fine) + 0.5) / fine * self.side
        columns, rows = ((inner + start).round().long() for start in (self.left, self.top))
        inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
        found = torch.from_numpy(mask)[rows.clamp(0, mask.shape[0] - 1)][:, columns.clamp(0, mask.shape[1] - 1)]
        return functional.avg_pool2d((found & inside).float()[None, None], 4)[0, 0]


def object_square(view: View) -> Crop:
    """The square in which an object is described: its mask with `AROUND` it, or the whole picture where there is none.

    What was shown and what is seen elsewhere are both cut out so, and fill their squares alike.
    """
    if view.mask is None or not view.mask.any():
        side = float(max(view.camera.width, view.camera.height))
        middle = np.array([view.camera.width - 1, view.camera.height - 1]) / 2
    else:
        rows, columns = np.nonzero(view.mask)
        low, high = (np.array([f(columns), f(rows)], dtype=float) for f in (np.min, np.max))
        side, middle = AROUND * float((high - low).max() + 1), (low + high) / 2
    left, top = middle - side / 2
    return Crop(float(left), float(top), side)


def cover(pixels: Float[Tensor, "n 2"], side: float) -> list[Crop]:
    """Square crops that cover all pixels.

    Args:
        pixels: positions (x, y) that must lie inside a crop.
        side: side of the crops in pixels.

    Returns:
        One crop around the pixels if they fit, else the fewest rows and columns of overlapping crops; crops without any
        of the pixels are left out.
    """
    low, high = pixels.amin(dim=0), pixels.amax(dim=0)
    starts = []
    for axis in (0, 1):
        extent = float(high[axis] - low[axis])
        reach = max(0.0, extent - (1 - 2 * MARGIN) * side)
        count = 1 + math.ceil(reach / ((1 - OVERLAP) * side))
        center = float(high[axis] + low[axis]) / 2
        offsets = [index / (count - 1) - 0.5 for index in range(count)] if count > 1 else [0.0]
        starts.append([center + offset * reach - side / 2 for offset in offsets])
    crops = [Crop(left, top, side) for top in starts[1] for left in starts[0]]
    return [crop for crop in crops if bool(crop.contains(pixels).any())]


def view_features(
    observation: Observation,
    pixels: list[Float[Tensor, "n 2"]],
    points: Float[Tensor, "n 3"],
    extractor: FeatureExtractor,
    span: float,
    *,
    cache: Path | None = None,
    progress: bool = True,
) -> Float[Tensor, "v n c"]:
    """Unit features of the same n points in every view.

    Args:
        observation: the views.
        pixels: where the points lie in each view.
        points: the points in the world, in metres; they decide the scale of the crops.
        extractor: what describes a crop.
        span: side of a crop in metres at the points' median distance.
        cache: folder of the feature cache.
        progress: show a progress bar.
    """
    plans = [_plan(view, pixel, points, span) for view, pixel in zip(observation.views, pixels, strict=True)]
    images = np.stack(
        [
            crop.cut(view.color, extractor.resolution)
            for view, crops in zip(observation.views, plans, strict=True)
            for crop in crops
        ]
    )
    tokens = extract_with_progress(images, extractor, observation.name, cache=cache, progress=progress)
    maps = iter(tokens.permute(0, 3, 1, 2))
    return torch.stack(
        [_sample([(crop, next(maps)) for crop in crops], pixel) for crops, pixel in zip(plans, pixels, strict=True)]
    )


def _plan(view: View, pixel: Float[Tensor, "n 2"], points: Float[Tensor, "n 3"], span: float) -> list[Crop]:
    distance = float((points - view.camera.position).norm(dim=-1).median())
    side = span * view.camera.fx / distance
    size = torch.tensor([view.camera.width - 1, view.camera.height - 1])
    inside = ((pixel >= 0) & (pixel <= size)).all(dim=-1)
    return cover(pixel[inside] if inside.any() else pixel, side)


def _sample(
    maps: list[tuple[Crop, Float[Tensor, "c rows columns"]]], pixel: Float[Tensor, "n 2"]
) -> Float[Tensor, "n c"]:
    """Unit features at pixels: bilinear within a crop; overlapping crops count by the distance to their borders."""
    total = torch.zeros(len(pixel), maps[0][1].shape[0])
    for crop, tokens in maps:
        inner = (pixel - torch.tensor([crop.left, crop.top])) / crop.side * 2 - 1
        found = functional.grid_sample(
            tokens[None], inner[None, None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, :, 0].T
        border = (1.02 - inner.abs().amax(dim=-1)).clamp_min(1e-4)
        total += functional.normalize(found, dim=-1) * border[:, None]
    return functional.normalize(total, dim=-1)
