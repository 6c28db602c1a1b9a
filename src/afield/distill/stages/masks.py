"""Fourth stage: which pixels are the object, from a box or a click in one frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from afield.artifacts import load_artifact, save_artifact
from afield.errors import AfieldError
from afield.perception.propagation import MaskPropagator, Prompt
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


def find_masks(
    video: Video,
    prompt: Prompt,
    frame: int,
    hidden: Bool[np.ndarray, "t h w"],
    propagator: MaskPropagator,
    *,
    progress: bool = True,
) -> ObjectMasks:
    """The object that a prompt means, in all frames.

    Args:
        video: the frames.
        prompt: a box or a click, in pixels of the original video.
        frame: the frame in which it was given.
        hidden: where hands are.
        propagator: finds the object in the other frames.
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
        masks = propagator.masks(video.frames, own, frame, hidden, progress=progress)
    except AfieldError as error:
        raise AfieldError(f"Stage masks: {error}") from error
    if not masks[frame].any():
        raise AfieldError(
            f"Stage masks: no object was found in frame {video.read[frame]}; give a box closer around it, or --object-masks."
        )
    return ObjectMasks(masks)
