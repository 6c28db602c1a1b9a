"""Masks of the object of interest from boxes that a person drew, or from a click upon it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from afield.errors import AfieldError
from afield.observation import Observation, View

Number = float | int
Box = tuple[Number, Number, Number, Number]
"""Left, top, right, bottom in pixels."""
Click = tuple[Number, Number]
"""Column and row of a pixel that belongs to the object."""

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
REACHES = (0.06, 0.1, 0.15, 0.2, 0.27, 0.35)
"""How large an object around a click may be: these shares of the picture's longer side are tried as its radius."""
SMALLER = 0.88
"""Of the masks around a click the smallest is taken whose outline is at least so clear as this share of the clearest."""


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


def mask_from_click(color: UInt8[np.ndarray, "h w 3"], click: Click, *, iterations: int = 5) -> Bool[np.ndarray, "h w"]:
    """The object that a pixel belongs to, by GrabCut in discs of several sizes around it; a click says less than a box.

    What lies far outside of a disc teaches what background looks like. Of the answers the one with the clearest outline is
    taken, and of several about as clear the smallest.

    Args:
        color: RGB picture.
        click: column and row of a pixel of the object, best in its middle.
        iterations: of GrabCut.

    Returns:
        The connected piece of foreground around the click.

    Raises:
        AfieldError: the click is outside of the picture, or nothing there differs from its surroundings.
    """
    height, width = color.shape[:2]
    if not (0 <= click[0] < width and 0 <= click[1] < height):
        raise AfieldError(
            f"The click {tuple(click)} lies outside of the {width}x{height} picture; give column and row."
        )
    scale = min(1.0, WORK_SIZE / max(height, width))
    small = cv2.resize(color, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    column = min(small.shape[1] - 1, int(click[0] * scale))
    row = min(small.shape[0] - 1, int(click[1] * scale))
    rows, columns = np.mgrid[: small.shape[0], : small.shape[1]]
    far = np.hypot(columns - column, rows - row) / max(small.shape[:2])
    found: list[tuple[float, Bool[np.ndarray, "_h _w"]]] = []
    for reach in REACHES:
        labels = np.where(far < reach, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        labels[far > 1.5 * reach], labels[far < 0.02] = cv2.GC_BGD, cv2.GC_FGD
        if (labels == cv2.GC_BGD).sum() < 16:
            continue
        cv2.setRNGSeed(0)
        models = (np.zeros((1, 65)), np.zeros((1, 65)))
        cv2.grabCut(small[..., ::-1].copy(), labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
        _, pieces = cv2.connectedComponents(
            np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8), connectivity=4
        )
        piece = pieces == pieces[row, column]
        if piece.sum() >= 16 and not piece.all():
            found.append((_clearness(small, piece, far > 1.5 * reach - 0.01), piece))
    best = max((clear for clear, _ in found), default=0.0)
    if best <= 0:
        raise AfieldError(
            f"Nothing around the click {tuple(click)} differs from what is farther away; give a box instead."
        )
    chosen = min((piece for clear, piece in found if clear >= SMALLER * best), key=np.sum)
    return cv2.resize(chosen.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def _clearness(color: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], end: Bool[np.ndarray, "h w"]) -> float:
    """Mean slope of the colours along the outline of a mask; what of it lies where the search ended counts nothing."""
    lab = cv2.GaussianBlur(cv2.cvtColor(color, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1.0)
    slope = np.sqrt(sum(np.square(cv2.Sobel(lab, cv2.CV_32F, *order)).sum(axis=-1) for order in ((1, 0), (0, 1))))
    rim = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    rim[[0, -1]] = rim[:, [0, -1]] = False  # the picture's border is no outline of anything
    return float(np.where(end, 0.0, slope)[rim].mean()) if rim.any() else 0.0


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
