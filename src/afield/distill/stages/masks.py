"""Fourth stage: which pixels are the object, from a box in one frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool

from afield.artifacts import load_artifact, save_artifact
from afield.errors import AfieldError
from afield.perception.masks import Box, mask_from_box, propagate_mask
from afield.perception.video import Video


@dataclass(frozen=True)
class ObjectMasks:
    """The object in all frames."""

    masks: Bool[np.ndarray, "t h w"]

    def save(self, folder: Path) -> None:
        """Write it."""
        save_artifact(folder, "video-masks", {"masks": torch.from_numpy(self.masks)}, {})

    @classmethod
    def load(cls, folder: Path) -> ObjectMasks:
        """Read what `save` has written."""
        return cls(load_artifact(folder, "video-masks", ("masks",))[0]["masks"].numpy())


def masks_from_box(
    video: Video, box: Box | None, frame: int, hidden: Bool[np.ndarray, "t h w"], *, progress: bool = True
) -> ObjectMasks:
    """GrabCut in the box, carried through the video by flow.

    Args:
        video: the frames.
        box: left, top, right, bottom in pixels of the original video.
        frame: the frame in which it was drawn.
        hidden: where hands are.
        progress: show a progress bar.

    Raises:
        AfieldError: there is no box, or no object in it.
    """
    if box is None:
        raise AfieldError(
            f"Stage masks: which object is meant? Give --box LEFT TOP RIGHT BOTTOM in pixels of frame {video.read[frame]}, or "
            "masks with --object-masks."
        )
    scale = video.size[0] / video.full_size[0]
    left, top, right, bottom = (side * scale for side in box)
    try:
        first = without_holes(mask_from_box(video.frames[frame], (left, top, right, bottom)))
    except AfieldError as error:
        raise AfieldError(f"Stage masks: {error}") from error
    return ObjectMasks(propagate_mask(video.frames, first, frame, hidden, progress=progress))


def without_holes(mask: Bool[np.ndarray, "h w"], largest: float = 0.03) -> Bool[np.ndarray, "h w"]:
    """Fill what is enclosed by the mask and smaller than a share of it: a handle of another colour belongs to the object."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    filled = mask.copy()
    height, width = mask.shape
    for number in range(1, count):
        left, top, w, h, area = (int(value) for value in stats[number])
        inside = left > 0 and top > 0 and left + w < width and top + h < height
        if inside and area < largest * mask.sum():
            filled[labels == number] = True
    return filled
