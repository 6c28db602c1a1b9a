"""A closer look at a small part of a frame: its depth at full resolution, with borders where the colours have them.

The plane sweep over whole frames (`depth.py`) compares squares, so a handle a few pixels wide grows into the door behind it. Here
single pixels are compared, and what they say is averaged with neighbours of the same colour only (the guided filter; Rhemann et
al. 2011, "Fast cost-volume filtering").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from afield.observation import Camera
from afield.perception.depth import between_planes, relative_pose, semi_global

PLANES = 96
RADIUS = 6
"""Pixels to each side over which what pixels say is averaged."""
ALIKE = 1e-3
"""Variance of colours (0 to 1) below which neighbours count as the same surface."""
MOST_COLOR, MOST_SLOPE = 0.06, 0.02
"""Differences of colour, and of brightness from pixel to pixel, that count as unrelated."""
COLOR_SHARE = 0.3
"""Of a difference; slopes, which do not mind the light, are the rest."""
SEEING = 0.8
"""Share of the other frames, the best at each pixel, that count: the others may not see it."""
STEP_COST, JUMP_COST = 0.02, 0.2

Window = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside."""


def closer_depth(
    color: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    others: Sequence[tuple[UInt8[np.ndarray, "h w 3"], Camera]],
    window: Window,
    near: float,
    far: float,
    *,
    progress: bool = True,
) -> Float[np.ndarray, "rows columns"]:
    """Depth of every pixel of a window, from other frames of the same size in which nothing has moved.

    Args:
        color: the frame.
        camera: its camera.
        others: other frames and their cameras.
        window: where depth is wanted.
        near: smallest depth looked for, along the optical axis, in the units of the cameras' places.
        far: largest depth looked for.
        progress: show a progress bar.

    Returns:
        Depth in the same units, everywhere: where no plane agrees, that of the one which disagrees least.
    """
    left, top, right, bottom = window
    size = (right - left, bottom - top)
    inverse = np.linspace(1 / far, 1 / near, PLANES)
    own = _described(color)[top:bottom, left:right]
    average = guided_filter(np.ascontiguousarray(own[..., :3]), RADIUS, ALIKE)
    shift = np.array([[1.0, 0, left], [0, 1, top], [0, 0, 1]])
    to_ray = np.linalg.inv(camera.intrinsics.double().numpy()) @ shift
    sources = [
        (_described(picture), other.intrinsics.double().numpy(), *relative_pose(camera, other))
        for picture, other in others
    ]
    count = max(1, round(SEEING * len(sources)))
    volume = np.empty((PLANES, size[1], size[0]), np.float32)
    for index in tqdm(range(PLANES), desc="closer look", unit="plane", disable=not progress, leave=False):
        costs = []
        for picture, intrinsics, rotation, between in sources:
            homography = intrinsics @ (rotation + np.outer(between, [0, 0, 1]) * inverse[index]) @ to_ray
            costs.append(_difference(own, _warped(picture, homography, size)))
        volume[index] = average(np.sort(np.stack(costs), axis=0)[:count].mean(axis=0))
    smooth = semi_global(volume, STEP_COST, JUMP_COST)
    return (1 / between_planes(smooth, smooth.argmin(axis=0), inverse)).astype(np.float32)


def guided_filter(
    guide: Float[np.ndarray, "h w 3"], radius: int, alike: float
) -> Callable[[Float[np.ndarray, "h w"]], Float[np.ndarray, "h w"]]:
    """A filter that averages an image over squares, but not across the borders of a colour image (He et al. 2010).

    Args:
        guide: the colour image, 0 to 1.
        radius: of the squares, in pixels to each side.
        alike: variance of colours below which neighbours are averaged.

    Returns:
        A function of an image of the same size.
    """

    def box(image: np.ndarray) -> np.ndarray:
        """Mean over the window around every pixel."""
        return cv2.boxFilter(image, -1, (2 * radius + 1, 2 * radius + 1))

    mean = box(guide)
    products = (guide[..., :, None] * guide[..., None, :]).reshape(*guide.shape[:2], 9)
    spread = np.dstack([box(np.ascontiguousarray(products[..., k])) for k in range(9)]).reshape(*guide.shape[:2], 3, 3)
    spread = spread - mean[..., :, None] * mean[..., None, :] + alike * np.eye(3, dtype=np.float32)
    inverse = np.linalg.inv(spread)

    def smooth(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """In each square the image is a linear function of the colours; every pixel takes the mean of its squares."""
        level = box(image)
        together = box(guide * image[..., None]) - mean * level[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, together)
        offset = level - (slope * mean).sum(axis=-1)
        return (box(slope) * guide).sum(axis=-1) + box(offset)

    return smooth


def _described(color: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 5"]:
    """Colours from 0 to 1, and how the brightness changes to the right and downwards."""
    values = color.astype(np.float32) / 255
    gray = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    slopes = [cv2.Sobel(gray, -1, dx, dy, ksize=1) / 2 for dx, dy in ((1, 0), (0, 1))]
    return np.dstack((values, *slopes))


def _warped(
    picture: Float[np.ndarray, "h w 5"], homography: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> Float[np.ndarray, "rows columns 5"]:
    """A description as the window sees it on a plane; `warpPerspective` takes four channels at most."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    halves = (picture[..., :3], picture[..., 3:])
    parts = [
        cv2.warpPerspective(half, homography, size, flags=flags, borderMode=cv2.BORDER_REPLICATE) for half in halves
    ]
    return np.dstack(parts)


def _difference(
    own: Float[np.ndarray, "rows columns 5"], other: Float[np.ndarray, "rows columns 5"]
) -> Float[np.ndarray, "rows columns"]:
    """From 0 (the same) to 1."""
    off = np.abs(own - other)
    color = np.minimum(off[..., :3].mean(axis=-1) / MOST_COLOR, 1)
    slope = np.minimum(off[..., 3:].mean(axis=-1) / MOST_SLOPE, 1)
    return COLOR_SHARE * color + (1 - COLOR_SHARE) * slope
