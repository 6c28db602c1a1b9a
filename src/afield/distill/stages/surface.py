"""Fifth stage: the object's surface in the reference frame, pixel by pixel.

The depth maps before are coarse and made for whole frames. Once it is known which pixels are the object, frames from before the
hand comes are compared again there, at full resolution and at about the distances that it has in the coarse map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from afield.artifacts import load_artifact, save_artifact
from afield.perception.cameras import CameraPath
from afield.perception.closer import Window, closer_depth
from afield.perception.video import Video

LOOKS = 9
"""Frames before the hand comes that are compared with the reference frame."""
MARGIN = 10
"""Pixels around the object that are looked at too, so that its border is seen as one."""
KNOWN, ROOM = (0.02, 0.98), 0.07
"""Quantiles of the object's coarse depth between which it is looked for, and the share by which that range is made wider."""
FEWEST = 100
"""Pixels of the object with depth without which there is nothing to look closer at."""


def object_surface(
    video: Video,
    path: CameraPath,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    reference: int,
    *,
    progress: bool = True,
) -> Float[np.ndarray, "h w"]:
    """Depth of the reference frame, finer on the object.

    Args:
        video: the frames.
        path: their cameras.
        mask: the object in the reference frame.
        depth: of that frame, from a coarse sweep; 0 is unknown.
        reference: the last frame before the hand comes.
        progress: show a progress bar.

    Returns:
        The same depth outside of the object, along the optical axis, in the units of the camera path.
    """
    others = [i for i in np.unique(np.linspace(0, reference, LOOKS + 1).astype(int)).tolist() if i != reference]
    solid = mask & (depth > 0)
    if solid.sum() < FEWEST or len(others) < 2:
        return depth
    rows, columns = np.nonzero(solid)
    height, width = mask.shape
    window: Window = (
        max(0, int(columns.min()) - MARGIN),
        max(0, int(rows.min()) - MARGIN),
        min(width, int(columns.max()) + 1 + MARGIN),
        min(height, int(rows.max()) + 1 + MARGIN),
    )
    near, far = np.quantile(depth[solid], KNOWN)
    sources = [(video.frames[i], path.camera(i)) for i in others]
    limits = ((1 - ROOM) * float(near), (1 + ROOM) * float(far))
    closer = closer_depth(video.frames[reference], path.camera(reference), sources, window, *limits, progress=progress)
    inside = (slice(window[1], window[3]), slice(window[0], window[2]))
    finer = depth.copy()
    finer[inside] = np.where(mask[inside], closer, depth[inside])
    return finer


def save_surface(depth: Float[np.ndarray, "h w"], folder: Path) -> None:
    """Write it."""
    save_artifact(folder, "video-surface", {"depth": torch.from_numpy(depth)}, {})


def load_surface(folder: Path) -> Float[np.ndarray, "h w"]:
    """Read what `save_surface` has written."""
    return load_artifact(folder, "video-surface", ("depth",))[0]["depth"].numpy()
