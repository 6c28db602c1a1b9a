"""Masks of the object of interest from boxes that a person drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8

from afield.errors import AfieldError
from afield.observation import Observation, View

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

GROWTH = 0.15
"""A box that was carried over from another view is grown by this share: that view saw only its side of the object."""
WORK_SIZE = 256
"""GrabCut runs on a picture in which the box has at most this many pixels a side; more is slow and not better."""


def mask_from_box(color: UInt8[np.ndarray, "h w 3"], box: Box, *, iterations: int = 5) -> Bool[np.ndarray, "h w"]:
    """The object in a box, by GrabCut: what is outside the box teaches what background looks like.

    Args:
        color: RGB picture.
        box: left, top, right, bottom in pixels; it must hold the whole object and a little around it.
        iterations: of GrabCut.

    Returns:
        The largest connected piece of foreground.

    Raises:
        AfieldError: the box does not overlap the picture, or holds nothing that differs from its surroundings.
    """
    height, width = color.shape[:2]
    left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    right, bottom = min(width, int(np.ceil(box[2])) + 1), min(height, int(np.ceil(box[3])) + 1)
    if right - left < 4 or bottom - top < 4:
        raise AfieldError(
            f"The box {tuple(box)} covers less than 4x4 pixels of a {width}x{height} picture; give left, top, right, "
            "bottom in pixels."
        )
    # A band of half the box's size around it is enough background.
    band_x, band_y = (right - left) // 2 + 8, (bottom - top) // 2 + 8
    part_left, part_top = max(0, left - band_x), max(0, top - band_y)
    part = color[part_top : bottom + band_y, part_left : right + band_x]
    scale = min(1.0, WORK_SIZE / max(right - left, bottom - top))
    small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    rows = slice(int((top - part_top) * scale), int(np.ceil((bottom - part_top) * scale)))
    columns = slice(int((left - part_left) * scale), int(np.ceil((right - part_left) * scale)))
    labels[rows, columns] = cv2.GC_PR_FGD
    if (labels == cv2.GC_BGD).sum() < 16:
        raise AfieldError(f"The box {tuple(box)} covers the whole {width}x{height} picture; leave some background.")
    cv2.setRNGSeed(0)  # GrabCut draws its first color clusters at random
    unused, models = (0, 0, 1, 1), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(small[..., ::-1].copy(), labels, unused, *models, iterations, cv2.GC_INIT_WITH_MASK)
    foreground = _largest_piece((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
    if foreground.sum() < 16:
        raise AfieldError(
            f"Nothing in the box {tuple(box)} differs from what is around it; draw it closer to the object."
        )
    mask = np.zeros((height, width), bool)
    size = (part.shape[1], part.shape[0])
    whole = cv2.resize(foreground.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    mask[part_top : part_top + size[1], part_left : part_left + size[0]] = whole
    return mask


def mask_observation(observation: Observation, boxes: Mapping[str, Box]) -> Observation:
    """Masks for all views from a box in one or more of them.

    A view without a box gets one by projecting the points that are masked in the other views.

    Args:
        observation: one object on a background that looks different.
        boxes: view name to box.

    Raises:
        AfieldError: no box, a box for a view that does not exist, or a box without an object.
    """
    names = [view.name for view in observation.views]
    unknown = sorted(set(boxes) - set(names))
    if unknown or not boxes:
        raise AfieldError(
            f"Boxes were given for {unknown or 'no view'}, but the views of '{observation.name}' are "
            f"{', '.join(names)}."
        )
    masked = {
        name: _with_box_mask(view, boxes[name])
        for name, view in zip(names, observation.views, strict=True)
        if name in boxes
    }
    points = torch.cat([_masked_points(view) for view in masked.values()])
    if len(points) == 0:
        raise AfieldError(f"No pixel in the boxes of '{observation.name}' has depth; check the depth images.")
    for view in observation.views:
        if view.name not in masked:
            masked[view.name] = _with_box_mask(view, _projected_box(view, points))
    return replace(observation, views=tuple(masked[name] for name in names))


def _with_box_mask(view: View, box: Box) -> View:
    try:
        return view.with_mask(mask_from_box(view.color, box))
    except AfieldError as error:
        raise AfieldError(f"View '{view.name}': {error}") from error


def _masked_points(view: View) -> torch.Tensor:
    """World points of the masked pixels; the mask's rim is left out, for its depth is often that of the background."""
    assert view.mask is not None
    inner = cv2.erode(view.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    rows, columns = np.nonzero(inner & (view.depth > 0))
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    return view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float())


def _projected_box(view: View, points: torch.Tensor) -> Box:
    pixels, depth = view.camera.project(points)
    pixels = pixels[depth > 0]
    if len(pixels) == 0:
        raise AfieldError(f"The object lies behind the camera of view '{view.name}'; check its pose.")
    low, high = torch.quantile(pixels[:: max(1, len(pixels) // 20_000)], torch.tensor([0.01, 0.99]), dim=0)
    grow = GROWTH * (high - low)
    left, top = (low - grow).tolist()
    right, bottom = (high + grow).tolist()
    return left, top, right, bottom


def _largest_piece(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
