"""Fourth stage: which pixels are the object, from a box or a click in one frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from afield.artifacts import load_artifact, save_artifact
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath
from afield.perception.carried_prompt import carry_prompt
from afield.perception.masks import Box, mask_from_box
from afield.perception.propagation import MaskPropagator, Prompt, without_holes
from afield.perception.video import Video

SURROUNDED = 0.065
"""What lies between parts of the mask that are at most twice this share of its size apart may belong to it."""
STANDS = 0.08
"""Share of the object's height that something must rise above the table to belong to it."""
SURELY = 0.15
"""... and to belong to it whatever it looks like."""
KEPT = 0.8
"""If less of what surely stands there is in the mask, the colours of the object have misled, and depth decides with them."""
DEEP = 1.2
"""How much deeper than wide or high things are at most."""


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


def find_masks(
    video: Video,
    prompt: Prompt,
    frame: int,
    hidden: Bool[np.ndarray, "t h w"],
    propagator: MaskPropagator,
    depth: Float[np.ndarray, "h w"] | None = None,
    path: CameraPath | None = None,
    *,
    drawn: int | None = None,
    progress: bool = True,
) -> ObjectMasks:
    """The object that a prompt means, in all frames.

    Args:
        video: the frames.
        prompt: a box or a click, in pixels of the original video.
        frame: the frame in which the object is looked for, from which it is followed.
        hidden: where hands are.
        propagator: finds the object in the other frames.
        depth: of that frame, if it is known.
        path: cameras that it belongs to.
        drawn: the frame in which the prompt was given, if it is another one; none between them may show a hand.
        progress: show a progress bar.

    Raises:
        AfieldError: there is no prompt, or it means no object.
    """
    if prompt.box is None and prompt.click is None:
        raise AfieldError(
            f"Stage masks: which object is meant? Give --box LEFT TOP RIGHT BOTTOM or --click X Y in pixels of frame "
            f"{video.read[frame]}, or masks with --object-masks."
        )
    try:
        own = prompt.inside(video.full_size).scaled(video.size[0] / video.full_size[0])
        if drawn is not None:
            own = _carried(video, own, drawn, frame)
        better = (
            None if depth is None or path is None else Relief(video.frames[frame], own.box, depth, path, frame).better
        )
        masks = propagator.masks(video.frames, own, frame, hidden, better, progress=progress)
    except AfieldError as error:
        raise AfieldError(f"Stage masks: {error}") from error
    if not masks[frame].any():
        raise AfieldError(
            f"Stage masks: no object was found in frame {video.read[frame]}; give a box closer around it, or --object-masks."
        )
    return ObjectMasks(masks)


def _carried(video: Video, prompt: Prompt, drawn: int, frame: int) -> Prompt:
    step = 1 if drawn <= frame else -1
    try:
        return carry_prompt(video.frames[np.arange(drawn, frame + step, step)], prompt)
    except AfieldError as error:
        raise AfieldError(
            f"from frame {video.read[drawn]} to {video.read[frame]}, in which the object is looked for, {error}; give the box or "
            "the click in a nearer one (--prompt-frame)."
        ) from error


@dataclass(frozen=True)
class Relief:
    """What the depth of a frame knows of the object in it."""

    color: UInt8[np.ndarray, "h w 3"]
    box: Box | None
    depth: Float[np.ndarray, "h w"]
    path: CameraPath
    frame: int

    def better(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """A mask that was drawn by colours, mended where depth says otherwise."""
        if self.box is not None:
            stands = standing(self.depth, self.path, self.frame, self.box)
            if (mask & stands).sum() < KEPT * stands.sum():
                relief = np.where(stands, 1.0, np.nan).astype(np.float32)
                mask = without_holes(mask_from_box(self.color, self.box, relief=relief))
        return with_handles(mask, self.depth, self.path, self.frame)


def standing(depth: Float[np.ndarray, "h w"], path: CameraPath, frame: int, box: Box) -> Bool[np.ndarray, "h w"]:
    """What in a box surely stands on the table, and is not a wall behind it.

    Args:
        depth: of the frame.
        path: cameras; the world's z is 0 on the table.
        frame: which one.
        box: left, top, right, bottom in pixels, close around an object that is hardly deeper than it is wide or high.
    """
    left, top, right, bottom = (max(0, int(side)) for side in box)
    inside = np.zeros(depth.shape, bool)
    inside[top : bottom + 1, left : right + 1] = True
    front = float(np.median(depth[max(0, bottom - 3) : bottom + 1, left : right + 1]))
    near = inside & (depth < front * (1 + DEEP * max(right - left, bottom - top) / path.focal))
    if not near.any():
        return near
    above = _heights(depth, path, frame)
    tall = near & (above > SURELY * float(np.quantile(above[near], 0.97)))
    # Depth runs over the border of what is near by some pixels.
    return cv2.erode(tall.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0


def _heights(depth: Float[np.ndarray, "h w"], path: CameraPath, frame: int) -> Float[np.ndarray, "h w"]:
    """How high above the table every pixel's point lies."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    pixels = torch.from_numpy(np.stack((columns, rows), axis=-1).reshape(-1, 2)).float()
    points = path.camera(frame).backproject(pixels, torch.from_numpy(depth.reshape(-1)).float())
    return points[:, 2].numpy().reshape(depth.shape)


def with_handles(
    mask: Bool[np.ndarray, "h w"], depth: Float[np.ndarray, "h w"], path: CameraPath, frame: int
) -> Bool[np.ndarray, "h w"]:
    """Fill what the mask surrounds on most sides where it stands above the table and no farther away than the object around it.

    A handle of another colour breaks the outline of a door that is seen aslant, so that it is no hole.

    Args:
        mask: of the object.
        depth: of the same frame.
        path: cameras; the world's z is 0 on the table.
        frame: which one the mask belongs to.
    """
    reach = max(2, round(SURROUNDED * float(np.sqrt(mask.sum()))))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    room = cv2.copyMakeBorder(mask.astype(np.uint8), reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(room, cv2.MORPH_CLOSE, kernel)[reach:-reach, reach:-reach] > 0
    above = _heights(depth, path, frame)
    top = float(np.quantile(above[mask], 0.97))
    around = cv2.dilate(np.where(mask, depth, 0).astype(np.float32), np.ones((2 * reach + 1, 2 * reach + 1)))
    return mask | (closed & (above > STANDS * top) & (depth < 1.02 * around))
