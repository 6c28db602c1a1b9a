"""Masks of the object of interest from boxes that a person drew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from afield.errors import AfieldError
from afield.observation import Observation, View

Number = float | int
Box = tuple[Number, Number, Number, Number]
"""Left, top, right, bottom in pixels."""

SOLID = 0.012
"""What rises more than this many metres above the background belongs to the object for sure."""
FLAT = 0.003
"""What rises less than this many metres belongs to the background for sure."""
GROWTH = 0.15
"""A box that was carried over from other views is grown by this share, for they saw only their side of the object."""
RIM = 3.0
"""... and by this many pixels, for the masks' rims are not carried over."""
ROUNDS = 3
"""How often boxes are carried over: what the first round finds in the other views shows more sides of the object."""
WORK_SIZE = 256
"""GrabCut runs on a picture in which the box has at most this many pixels a side; more is slow and not better."""


def mask_from_box(
    color: UInt8[np.ndarray, "h w 3"],
    box: Box,
    *,
    relief: Float[np.ndarray, "h w"] | None = None,
    iterations: int = 5,
) -> Bool[np.ndarray, "h w"]:
    """The object in a box, by GrabCut: what is outside the box teaches what background looks like.

    Args:
        color: RGB picture.
        box: left, top, right, bottom in pixels; it must hold the whole object and a little around it.
        relief: how far each pixel rises above the background in metres, NaN where unknown; without it color decides
            alone, and takes shadows and tables of the object's color for the object.
        iterations: of GrabCut.

    Returns:
        The largest connected piece of foreground.

    Raises:
        AfieldError: the box does not overlap the picture, or holds nothing that differs from its surroundings.
    """
    height, width = color.shape[:2]
    left, top, right, bottom = _borders(box, width, height)
    if right - left < 4 or bottom - top < 4:
        raise AfieldError(
            f"The box {tuple(box)} covers less than 4x4 pixels of a {width}x{height} picture; give left, top, right, "
            "bottom in pixels."
        )
    around = _surroundings(left, top, right, bottom)
    part_top, part_left = around[0].start, around[1].start
    part = color[around]
    scale = min(1.0, WORK_SIZE / max(right - left, bottom - top))
    small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    rows = slice(int((top - part_top) * scale), int(np.ceil((bottom - part_top) * scale)))
    columns = slice(int((left - part_left) * scale), int(np.ceil((right - part_left) * scale)))
    labels[rows, columns] = cv2.GC_PR_FGD
    if relief is not None:
        rise = cv2.resize(relief[around], small.shape[1::-1], interpolation=cv2.INTER_NEAREST)[rows, columns]
        inside = labels[rows, columns]
        inside[rise < FLAT] = cv2.GC_BGD
        inside[rise > SOLID] = cv2.GC_FGD
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
    masked = {view.name: _with_box_mask(view, boxes[view.name]) for view in observation.views if view.name in boxes}
    others = [view for view in observation.views if view.name not in boxes]
    for _ in range(ROUNDS if others else 0):
        points = torch.cat([_masked_points(view) for view in masked.values()])
        if len(points) == 0:
            raise AfieldError(f"No pixel in the boxes of '{observation.name}' has depth; check the depth images.")
        masked |= {view.name: _with_box_mask(view, _projected_box(view, points)) for view in others}
    return replace(observation, views=tuple(masked[name] for name in names))


def crop_to_workspace(observation: Observation, workspace: Sequence[float]) -> Observation:
    """Erase the depth of everything outside a box of the world.

    Args:
        observation: any views.
        workspace: lowest and highest corner in metres: x0, y0, z0, x1, y1, z1.

    Raises:
        AfieldError: the corners are the wrong way round, or nothing is left.
    """
    low, high = torch.tensor(workspace[:3]), torch.tensor(workspace[3:])
    if len(workspace) != 6 or not bool((low < high).all()):
        raise AfieldError(f"A workspace is x0 y0 z0 x1 y1 z1 in metres with x0 < x1 and so on, not {tuple(workspace)}.")
    views = []
    for view in observation.views:
        rows, columns = np.nonzero(view.depth > 0)
        pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
        points = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]))
        outside = ((points < low) | (points > high)).any(dim=-1).numpy()
        depth = view.depth.copy()
        depth[rows[outside], columns[outside]] = 0.0
        views.append(replace(view, depth=depth))
    if not any((view.depth > 0).any() for view in views):
        raise AfieldError(
            f"No depth of '{observation.name}' lies in the workspace {tuple(workspace)}; check its frame."
        )
    return replace(observation, views=tuple(views))


def _with_box_mask(view: View, box: Box) -> View:
    try:
        return view.with_mask(mask_from_box(view.color, box, relief=_relief(view, box)))
    except AfieldError as error:
        raise AfieldError(f"View '{view.name}': {error}") from error


def _borders(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The box in whole pixels within the picture; right and bottom are exclusive."""
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    return left, top, min(width, math.ceil(box[2]) + 1), min(height, math.ceil(box[3]) + 1)


def _surroundings(left: int, top: int, right: int, bottom: int) -> tuple[slice, slice]:
    """Rows and columns of the box with a band of half its size, which is enough background."""
    band_x, band_y = (right - left) // 2 + 8, (bottom - top) // 2 + 8
    return slice(max(0, top - band_y), bottom + band_y), slice(max(0, left - band_x), right + band_x)


def _relief(view: View, box: Box) -> Float[np.ndarray, "h w"] | None:
    """Height of each pixel near the box over the plane through the depth around it; None if that is not flat."""
    left, top, right, bottom = _borders(box, view.camera.width, view.camera.height)
    rows, columns = np.mgrid[_surroundings(left, top, right, bottom)]
    keep = (rows < view.camera.height) & (columns < view.camera.width)
    rows, columns = rows[keep], columns[keep]
    depth = view.depth[rows, columns]
    rows, columns, depth = rows[depth > 0], columns[depth > 0], depth[depth > 0]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(depth).float())
    outside = torch.from_numpy((columns < left) | (columns >= right) | (rows < top) | (rows >= bottom))
    background = points[outside]
    background = background[:: max(1, len(background) // 5000)]
    member = torch.ones(len(background), dtype=torch.bool)
    center, normal = torch.zeros(3), torch.zeros(3)
    for limit in (
        0.1,
        0.03,
        0.01,
        0.01,
        0.01,
    ):  # the first fits are pulled up by other objects, the later ones trim them
        if int(member.sum()) < 50:
            return None
        center = background[member].mean(dim=0)
        normal = torch.linalg.svd(background[member] - center, full_matrices=False)[2][2]
        member = ((background - center) @ normal).abs() < limit
    if float(member.float().mean()) < 0.3:
        return None
    normal = normal * torch.sign((view.camera.position - center) @ normal)
    relief = np.full(view.depth.shape, np.nan, np.float32)
    relief[rows, columns] = ((points - center) @ normal).numpy()
    return relief


def _masked_points(view: View) -> torch.Tensor:
    """World points of the masked pixels; the mask's rim is left out, for its depth is often that of the background."""
    assert view.mask is not None
    inner = cv2.erode(view.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rows, columns = np.nonzero(inner & (view.depth > 0))
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    return view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float())


def _projected_box(view: View, points: torch.Tensor) -> Box:
    pixels, depth = view.camera.project(points)
    pixels = pixels[depth > 0]
    if len(pixels) == 0:
        raise AfieldError(f"The object lies behind the camera of view '{view.name}'; check its pose.")
    low, high = torch.quantile(pixels[:: max(1, len(pixels) // 20_000)], torch.tensor([0.01, 0.99]), dim=0)
    grow = GROWTH * (high - low) + RIM
    left, top = (low - grow).tolist()
    right, bottom = (high + grow).tolist()
    return left, top, right, bottom


def _largest_piece(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


BAND = 3
"""GrabCut decides anew within so many pixels of where the flow has carried a mask's border."""
PROPAGATION_SIZE = 320
"""Frames are reduced to so many pixels on the longer side while a mask is carried through them."""


def propagate_mask(
    frames: UInt8[np.ndarray, "t h w 3"],
    mask: Bool[np.ndarray, "h w"],
    start: int,
    hidden: Bool[np.ndarray, "t h w"],
    *,
    progress: bool = True,
) -> Bool[np.ndarray, "t h w"]:
    """Carry the mask of one frame through the video by dense flow, and let GrabCut redraw its border in every frame.

    Args:
        frames: RGB.
        mask: of the object in frame `start`.
        start: the frame that the mask belongs to.
        hidden: what stands in front of the object, hands above all; the object goes on behind it unseen.
        progress: show a progress bar.

    Returns:
        Where the object is seen in every frame.
    """
    height, width = mask.shape
    scale = min(1.0, PROPAGATION_SIZE / max(height, width))
    if scale < 1:
        frames = np.stack(
            [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
        )
        small = frames.shape[2], frames.shape[1]
        mask = cv2.resize(mask.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0.5
        hidden = np.stack(
            [cv2.resize(one.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST) > 0 for one in hidden]
        )
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    masks = np.zeros(frames.shape[:3], bool)
    masks[start] = mask & ~hidden[start]
    bar = tqdm(total=len(frames) - 1, desc="masks", unit="frame", disable=not progress, leave=False)
    for order in (range(start + 1, len(frames)), range(start - 1, -1, -1)):
        whole = mask
        for index in order:
            before = index - (1 if order.step > 0 else -1)
            unmoved = np.zeros((*mask.shape, 2), np.float32)
            back = _around_hidden(flow.calc(gray[index], gray[before], unmoved), hidden[index] | hidden[before])
            rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
            carried = cv2.remap(
                whole.astype(np.float32),
                columns + back[..., 0],
                rows + back[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            whole = _redraw(frames[index], carried > 0.5, hidden[index])
            masks[index] = whole & ~hidden[index]
            bar.update()
    bar.close()
    if scale < 1:
        return np.stack([cv2.resize(one.astype(np.float32), (width, height)) > 0.5 for one in masks])
    return masks


def _around_hidden(flow: Float[np.ndarray, "h w 2"], hidden: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Behind a hand the object moves as it does beside it, not as the hand does."""
    if not hidden.any():
        return flow
    known = (cv2.dilate(hidden.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0).astype(np.float32)
    size = (0, 0)
    weight = cv2.GaussianBlur(known, size, 25)
    smooth = cv2.GaussianBlur(flow * known[..., None], size, 25) / np.maximum(weight, 1e-6)[..., None]
    return np.where(known[..., None] > 0, flow, smooth).astype(np.float32)


def _redraw(
    color: UInt8[np.ndarray, "h w 3"], carried: Bool[np.ndarray, "h w"], hidden: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The carried mask with a border that follows the picture; behind what hides it the border stays as carried."""
    kernel = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    inner, outer = cv2.erode(carried.astype(np.uint8), kernel), cv2.dilate(carried.astype(np.uint8), kernel)
    rows, columns = np.nonzero(outer)
    if len(rows) < 64 or inner.sum() < 32:
        return carried
    margin = 8
    part = (
        slice(max(0, rows.min() - margin), rows.max() + margin),
        slice(max(0, columns.min() - margin), columns.max() + margin),
    )
    labels = np.where(carried[part], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[outer[part] == 0], labels[inner[part] > 0] = cv2.GC_BGD, cv2.GC_FGD
    if (labels == cv2.GC_BGD).sum() < 32:
        return carried
    cv2.setRNGSeed(0)
    models = (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(np.ascontiguousarray(color[part][..., ::-1]), labels, (0, 0, 1, 1), *models, 1, cv2.GC_INIT_WITH_MASK)
    found = carried.copy()
    decided = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    found[part] = np.where(hidden[part], carried[part], decided)
    return found
