"""Part of the eighth stage, for a video that begins in contact: the object as it was before, from views of it as it is after."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from afield.distill.stages.tracks import ObjectTracks
from afield.observation import Observation, View

STILL = 0.1
"""With a larger share of points that stay, what the moving part uncovers between them is the inside of the object."""

Mask = Bool[np.ndarray, "_h _w"]


def rewound(
    observation: Observation, contact: tuple[Mask, ...], tracks: ObjectTracks, frame: int
) -> tuple[Observation, tuple[Mask, ...]]:
    """Views whose moving pixels are put where they were in a frame of the tracks; the hand took hold of the object there.

    Pixels follow the tracked points next to them. What the part uncovers has no depth: inside of the outline of an object that
    stays behind it is part of the object, and background elsewhere.

    Args:
        observation: views of the object in the reference frame's state.
        contact: where it is touched, in each of them.
        tracks: which points move, and how.
        frame: of the state that is wanted.
    """
    near = KDTree(tracks.points)
    stays = float((~tracks.moving).mean()) > STILL
    views, regions = [], []
    for view, region in zip(observation.views, contact, strict=True):
        moved, touched = _moved(view, region, near, tracks, tracks.motion[frame].astype(float), stays)
        views.append(moved)
        regions.append(touched)
    return replace(observation, views=tuple(views)), tuple(regions)


def _moved(
    view: View, region: Mask, near: KDTree, tracks: ObjectTracks, motion: Float[np.ndarray, "4 4"], stays: bool
) -> tuple[View, Mask]:
    assert view.mask is not None, "the stages give every view a mask"
    rows, columns = np.nonzero(view.mask & (view.depth > 0))
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
    points = view.camera.backproject(pixels, torch.from_numpy(view.depth[rows, columns]).float()).double().numpy()
    votes = near.query(points, k=min(5, len(tracks.points)))[1].reshape(len(points), -1)
    goes = tracks.moving[votes].mean(axis=1) > 0.5
    rows, columns, points = rows[goes], columns[goes], points[goes]
    left = np.zeros(view.mask.shape, bool)
    left[rows, columns] = True
    # Pixels without depth inside of the part went with it.
    left = (cv2.morphologyEx(left.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0) & view.mask
    color, depth, touched = view.color.copy(), np.where(left, 0, view.depth), region & ~left
    covered = np.zeros_like(left)
    place = torch.from_numpy(points @ motion[:3, :3].T + motion[:3, 3]).float()
    seen, away = (value.numpy() for value in view.camera.project(place))
    order = np.argsort(-away)  # what is nearer is drawn later
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = np.floor(seen[order, 1]).astype(int) + down, np.floor(seen[order, 0]).astype(int) + right
        inside = (row >= 0) & (column >= 0) & (row < left.shape[0]) & (column < left.shape[1]) & (away[order] > 0)
        row, column, own = row[inside], column[inside], order[inside]
        open_to = (depth[row, column] == 0) | (away[own] < 1.01 * depth[row, column])
        row, column, own = row[open_to], column[open_to], own[open_to]
        color[row, column], depth[row, column] = view.color[rows[own], columns[own]], away[own]
        touched[row, column], covered[row, column] = region[rows[own], columns[own]], True
    bare = left & ~covered
    color = cv2.inpaint(color, bare.astype(np.uint8), 3, cv2.INPAINT_TELEA) if bare.any() else color
    mask = (view.mask & ~left) | covered
    if stays:
        mask |= bare & _outline(mask)
    moved = replace(view, color=np.ascontiguousarray(color), depth=depth.astype(np.float32), mask=mask)
    return moved, touched & mask


def _outline(mask: Mask) -> Mask:
    """The convex hull of a mask."""
    rows, columns = np.nonzero(mask)
    whole = np.zeros(mask.shape, np.uint8)
    if len(rows):
        cv2.fillConvexPoly(whole, cv2.convexHull(np.stack((columns, rows), axis=-1).astype(np.int32)), 1)
    return whole > 0
