"""A box or a click that was given in one frame, in another one in which the object lies as it did."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from afield.errors import AfieldError
from afield.perception.masks import Box, mask_from_box
from afield.perception.propagation import Prompt

EDGE = 0.1
"""Each side of a box goes as the nearest tenth of the object does: near sides go farther than far ones."""
AROUND = 2
"""Pixels around a click that tell where it goes."""
FEWEST = 50
"""Pixels of an object that tell where its sides go; if fewer are found, all of the box does."""


def carry_prompt(frames: UInt8[np.ndarray, "t h w 3"], prompt: Prompt) -> Prompt:
    """The same prompt in the last of some frames, by dense flow from each to the next.

    A box goes along with what GrabCut takes for the object in it. What lies behind the object goes another way while the
    camera moves, and so do its own far and near sides: each side of the box follows that part of the object.

    Args:
        frames: RGB, without hands; the prompt was given in the first.
        prompt: in pixels of these frames.

    Raises:
        AfieldError: it has left the picture.
    """
    height, width = frames.shape[1:3]
    if prompt.box is not None:
        mask = _object_in(frames[0], prompt.box)
    else:
        assert prompt.click is not None, "one of the two was given"
        column, row = (round(value) for value in prompt.click)
        mask = np.zeros((height, width), bool)
        mask[max(0, row - AROUND) : row + AROUND + 1, max(0, column - AROUND) : column + AROUND + 1] = True
    rows, columns = np.nonzero(mask)
    start = np.stack((columns, rows), axis=-1).astype(np.float32)
    way = _followed(frames, start) - start
    if prompt.click is not None:
        x, y = prompt.click + np.median(way, axis=0)
        carried = Prompt(click=(float(x), float(y)))
    else:
        assert prompt.box is not None
        low, high = np.quantile(start, EDGE, axis=0), np.quantile(start, 1 - EDGE, axis=0)
        near = (start[:, 0] <= low[0], start[:, 1] <= low[1], start[:, 0] >= high[0], start[:, 1] >= high[1])
        sides = zip(prompt.box, near, (0, 1, 0, 1), strict=True)
        left, top, right, bottom = (side + float(np.median(way[some, axis])) for side, some, axis in sides)
        carried = Prompt(box=(left, top, right, bottom))
    try:
        return carried.inside((width, height))
    except AfieldError as error:
        raise AfieldError("what was marked has left the picture") from error


def _object_in(frame: UInt8[np.ndarray, "h w 3"], box: Box) -> Bool[np.ndarray, "h w"]:
    """Where the object in a box is, or else all of the box."""
    try:
        mask = mask_from_box(frame, box)
    except AfieldError:
        mask = np.zeros(frame.shape[:2], bool)
    if mask.sum() < FEWEST:
        left, top, right, bottom = (max(0, round(side)) for side in box)
        mask[top : bottom + 1, left : right + 1] = True
    return mask


def _followed(frames: UInt8[np.ndarray, "t h w 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Where pixels of the first frame are in the last."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = gray[0].shape
    for before, after in itertools.pairwise(gray):
        way = flow.calc(before, after, np.zeros((height, width, 2), np.float32))
        columns, rows = np.round(points).astype(int).T
        points = points + way[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return points
