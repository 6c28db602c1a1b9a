"""The hand as a witness of how the part goes that it moves.

Screens mirror the room, sleeves cover half of a lid, and a closed lid looks like the case below it: wrong joints can explain
pictures of the part alone. But the hand goes with what it moves: some spot of the part, where the hand was before the motion
began, stays in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from afield.perception.cameras import CameraPath

SPOTS = 40
"""Places of the object that the hand may hold, at most."""
REACH = 0.5
"""Of the hand's size: a spot that it holds is so near to its middle."""
FEWEST = 20
"""Where fewer places are that near, the nearest ones are taken."""


@dataclass(frozen=True)
class HandWitness:
    """Where the hand was, and what it may have held."""

    path: CameraPath
    middle: Float[np.ndarray, "t 2"]
    """Pixels; NaN where the hand is not seen."""
    size: Float[np.ndarray, "t"]
    """Its extent in pixels."""
    spots: Float[np.ndarray, "s 3"]
    """Places of the object at rest, in the world, that the hand was at until about when the motion began."""

    @classmethod
    def of(
        cls,
        path: CameraPath,
        middle: Float[np.ndarray, "t 2"],
        size: Float[np.ndarray, "t"],
        points: Float[np.ndarray, "n 3"],
        first: int,
        last: int,
    ) -> HandWitness:
        """From points of the object at rest, and frames between which the hand came to it, both included; hardly later."""
        near = np.full(len(points), np.inf)
        for frame in range(first, last + 1):
            if np.isfinite(middle[frame]).all():
                pixels = path.camera(frame).project(torch.from_numpy(points).float())[0].numpy()
                near = np.minimum(near, np.linalg.norm(pixels - middle[frame], axis=1) / max(float(size[frame]), 1.0))
        if not np.isfinite(near).any():
            return cls(path, middle, size, np.zeros((0, 3)))
        reach = max(REACH, float(np.sort(near)[min(FEWEST, len(near)) - 1]))
        held = np.flatnonzero(near <= reach)
        held = held[np.linspace(0, len(held) - 1, min(SPOTS, len(held))).astype(int)]
        return cls(path, middle, size, points[held].astype(float))

    def agreement(self, frame: int, poses: Float[np.ndarray, "a 4 4"]) -> Float[np.ndarray, "s a"]:
        """How well motions of the part take each spot to where the hand is: 1 at its middle, 0 from its rim on, or if unseen."""
        if not len(self.spots) or not np.isfinite(self.middle[frame]).all():
            return np.zeros((len(self.spots), len(poses)))
        moved = np.einsum("aij,sj->sai", poses[:, :3, :3], self.spots) + poses[None, :, :3, 3]
        pixels = self.path.camera(frame).project(torch.from_numpy(moved.reshape(-1, 3)).float())[0].numpy()
        off = np.linalg.norm(pixels.reshape(*moved.shape[:2], 2) - self.middle[frame], axis=-1)
        return 1.0 - np.minimum((off / max(REACH * float(self.size[frame]), 1.0)) ** 2, 1.0)

    def agreed(self, frames: Int[np.ndarray, "f"], motion: Float[np.ndarray, "f 4 4"]) -> Float[np.ndarray, "s"]:
        """The same for one motion of every frame, summed over the frames."""
        parts = [self.agreement(int(frame), pose[None])[:, 0] for frame, pose in zip(frames, motion, strict=True)]
        return np.sum(parts, axis=0)

    def only(self, spot: int) -> HandWitness:
        """The same with one spot."""
        return HandWitness(self.path, self.middle, self.size, self.spots[spot : spot + 1])
