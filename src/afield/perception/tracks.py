"""Points followed through a video: their pixels in every frame, and whether they are seen there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from afield.errors import AfieldError

WINDOW = 21
LEVELS = 4
TURN_BACK = 1.0
"""A point is lost where following it back to the frame before ends more than so many pixels from where it was."""


@dataclass(frozen=True)
class PointTracks:
    """Pixels (x, y) of n points in t frames."""

    pixels: Float[np.ndarray, "t n 2"]
    seen: Bool[np.ndarray, "t n"]
    """Where a point is not seen its pixel is the last one known."""


@runtime_checkable
class PointTracker(Protocol):
    """Follows points of one frame through all others."""

    def track(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        points: Float[np.ndarray, "n 2"],
        start: int,
        *,
        progress: bool = True,
    ) -> PointTracks:
        """Tracks of the points, which are pixels (x, y) of frame `start`, forwards and backwards in time."""
        ...


@dataclass(frozen=True)
class LucasKanade:
    """Sparse optical flow from frame to frame; what does not come back to its place is lost."""

    turn_back: float = TURN_BACK
    """Pixels."""

    def track(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        points: Float[np.ndarray, "n 2"],
        start: int,
        *,
        progress: bool = True,
    ) -> PointTracks:
        """Tracks of the points; one that was lost once stays lost."""
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        count = len(gray)
        pixels = np.repeat(points[None].astype(np.float32), count, axis=0)
        seen = np.zeros((count, len(points)), bool)
        seen[start] = True
        bar = tqdm(total=count - 1, desc="tracking", unit="frame", disable=not progress, leave=False)
        for order in (range(start + 1, count), range(start - 1, -1, -1)):
            step = 1 if order.step > 0 else -1
            for index in order:
                before = index - step
                found, kept = follow(gray[before], gray[index], pixels[before], self.turn_back)
                seen[index] = seen[before] & kept
                pixels[index] = np.where(seen[index][:, None], found, pixels[before])
                bar.update()
        bar.close()
        return PointTracks(pixels, seen)


def follow(
    first: UInt8[np.ndarray, "h w"],
    second: UInt8[np.ndarray, "h w"],
    points: Float[np.ndarray, "n 2"],
    turn_back: float = TURN_BACK,
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
    """Where points of one frame are in the next, and whether the way back agrees."""
    if len(points) == 0:
        return points.astype(np.float32), np.zeros(0, bool)
    options = {
        "winSize": (WINDOW, WINDOW),
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 0.005),
    }
    start = np.ascontiguousarray(points, np.float32)[:, None]
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(first, second, start, start.copy(), **options)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(second, first, moved, moved.copy(), **options)
    far = np.linalg.norm(back - start, axis=-1)[:, 0]
    height, width = first.shape
    inside = (moved[:, 0] >= 0).all(axis=1) & (moved[:, 0] <= [width - 1, height - 1]).all(axis=1)
    return moved[:, 0], (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (far < turn_back) & inside


def track_everywhere(
    gray: UInt8[np.ndarray, "t h w"],
    masks: Bool[np.ndarray, "t h w"] | None = None,
    *,
    count: int = 900,
    every: int = 4,
    spacing: int = 9,
    progress: bool = True,
) -> PointTracks:
    """Corners all over the video, with new ones wherever and whenever old ones were lost.

    Args:
        gray: the frames.
        masks: where no corner may be, for instance on hands.
        count: corners to keep alive.
        every: frames after which lost ones are replaced.
        spacing: pixels between corners.
        progress: show a progress bar.
    """
    length, height, width = gray.shape
    pixels = np.zeros((length, 0, 2), np.float32)
    seen = np.zeros((length, 0), bool)
    for index in tqdm(range(length), desc="corners", unit="frame", disable=not progress, leave=False):
        free = np.full((height, width), 255, np.uint8)
        if masks is not None:
            free[masks[index]] = 0
        if index > 0:
            alive = np.flatnonzero(seen[index - 1])
            found, kept = follow(gray[index - 1], gray[index], pixels[index - 1, alive])
            column, row = np.round(found[:, 0]).astype(int), np.round(found[:, 1]).astype(int)
            inside = kept & (column >= 0) & (row >= 0) & (column < width) & (row < height)
            inside[inside] = free[row[inside], column[inside]] > 0
            pixels[index, alive[inside]], seen[index, alive[inside]] = found[inside], True
        if index % every == 0 and index + 1 < length:
            for x, y in np.round(pixels[index, seen[index]]).astype(int):
                cv2.circle(free, (int(x), int(y)), spacing, 0, -1)
            room = count - int(seen[index].sum())
            fresh = cv2.goodFeaturesToTrack(gray[index], room, 0.005, spacing, mask=free) if room > 0 else None
            if fresh is not None:
                more = len(fresh)
                pixels = np.concatenate((pixels, np.zeros((length, more, 2), np.float32)), axis=1)
                seen = np.concatenate((seen, np.zeros((length, more), bool)), axis=1)
                pixels[index, -more:], seen[index, -more:] = np.reshape(fresh, (-1, 2)), True
    return PointTracks(pixels, seen)


TRACKERS = ("lucas-kanade", "cotracker")


def tracker_by_name(name: str) -> PointTracker:
    """A tracker by its name.

    Raises:
        AfieldError: there is none of that name, or its package is not installed.
    """
    if name == "lucas-kanade":
        return LucasKanade()
    if name == "cotracker" or name.endswith(".pth"):
        from afield.perception.given_tracks import CoTracker

        return CoTracker(None if name == "cotracker" else Path(name))
    raise AfieldError(
        f"There is no point tracker '{name}'; choose one of {', '.join(TRACKERS)}, weights of CoTracker3 (.pth), or a file with "
        "tracks (.npz, .safetensors)."
    )
