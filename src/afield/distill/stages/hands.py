"""First stage: where the acting hand is in every frame, and which frames are free of hands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from afield.artifacts import load_artifact, save_artifact
from afield.errors import AfieldError
from afield.perception.hands import Hand, HandDetector, hand_mask
from afield.perception.moving_hands import HandJudge, moving_hands, prolonged

LINK = 0.7
"""Hands of neighbouring frames are the same one if they are closer than this share of their size."""
BREAK = 3
"""Frames that a hand may be missing before it counts as gone."""
SHORT = 6
"""A hand seen in fewer frames is taken for a mistake of the detector."""
BRIDGE = 30
"""Frames over which a hand that the detector lost is guessed to be on the straight way between."""
MARGIN = 3
"""Frames before and after a hand is found that do not count as free: its fingers may be at the edge of the picture."""
FEWEST_FREE = 3
"""Free frames at one end of a video that count as a time without hands."""


@dataclass(frozen=True)
class HandTrack:
    """The acting hand in all frames."""

    landmarks: Float[np.ndarray, "t 21 2"]
    """Pixels; 0 where there is no hand."""
    depth: Float[np.ndarray, "t 21"]
    """How much farther away than the wrist each landmark is, in pixels."""
    state: Int[np.ndarray, "t"]
    """2 where the hand was found, 1 where it was lost between two finds and is guessed, 0 where there is none."""
    masks: Bool[np.ndarray, "t h w"]
    """Pixels of all hands."""

    @property
    def free(self) -> Bool[np.ndarray, "t"]:
        """Frames in which surely no hand is seen."""
        near = cv2.dilate((self.state > 0).astype(np.uint8)[:, None], np.ones((2 * MARGIN + 1, 1), np.uint8))[:, 0] > 0
        return ~near & ~self.masks.any(axis=(1, 2))

    @property
    def size(self) -> Float[np.ndarray, "t"]:
        """Extent of the hand in pixels; 0 where there is none."""
        return np.ptp(self.landmarks, axis=1).max(axis=-1)

    @property
    def middle(self) -> Float[np.ndarray, "t 2"]:
        """Median of knuckles and fingers where the hand was found, NaN elsewhere."""
        middle = np.median(self.landmarks[:, 1:], axis=1)
        return np.where((self.state == 2)[:, None], middle, np.nan)

    def backwards(self) -> HandTrack:
        """The same track in a video that is seen from its end."""
        names = ("landmarks", "depth", "state", "masks")
        return HandTrack(*(np.ascontiguousarray(getattr(self, name)[::-1]) for name in names))

    def tips(self, frame: int) -> Float[np.ndarray, "5 2"]:
        """The fingertips, thumb first."""
        return self.landmarks[frame, [4, 8, 12, 16, 20]]

    def save(self, folder: Path) -> None:
        """Write it."""
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            for name in ("landmarks", "depth", "state", "masks")
        }
        save_artifact(folder, "video-hands", tensors, {"frames_with_hand": int((self.state > 0).sum())})

    @classmethod
    def load(cls, folder: Path) -> HandTrack:
        """Read what `save` has written."""
        tensors, _ = load_artifact(folder, "video-hands", ("landmarks", "depth", "state", "masks"))
        return cls(*(tensors[name].numpy() for name in ("landmarks", "depth", "state", "masks")))


def begins_in_contact(free: Bool[np.ndarray, "t"]) -> bool:
    """Whether a hand is there from the beginning on and gone in the end: such a video is worked through backwards.

    A hand that holds something may be found a few frames late, so fewer than three free frames are none.
    """
    before, after = (int(np.argmin(run)) if not run.all() else len(run) for run in (free, free[::-1]))
    return before < FEWEST_FREE <= after


def find_hands(frames: UInt8[np.ndarray, "t h w 3"], detector: HandDetector, *, progress: bool = True) -> HandTrack:
    """Detect hands, join them over time, drop what comes and goes, and draw their masks.

    Where nothing is detected long enough, hands are looked for in what moves against the background. Where the detector loses
    the acting hand, it is looked for beside where it was.

    Raises:
        AfieldError: no hand, or no frame without one.
    """
    chains = [chain for chain in link(detector.detect(frames, progress=progress)) if len(chain) >= SHORT]
    if not chains and isinstance(detector, HandJudge):
        chains = [chain for chain in link(moving_hands(frames, detector, progress=progress)) if len(chain) >= SHORT]
    if not chains:
        raise AfieldError(
            "Stage hands: no hand was found in the video; film so that fingers can be seen, or give masks with --hand-masks."
        )
    length, (height, width) = len(frames), frames.shape[1:3]
    masks = np.zeros((length, height, width), bool)
    landmarks, state = np.zeros((length, 21, 2), np.float32), np.zeros(length, np.int64)
    depth = np.zeros((length, 21), np.float32)
    main = max(chains, key=len)
    if isinstance(detector, HandJudge):
        main.update(prolonged(frames, detector, main, {frame for chain in chains for frame in chain}))
    acting = [main] + [chain for chain in chains if not set(chain) & set(main)]
    for chain in sorted(acting, key=len):
        for frame, hand in chain.items():
            landmarks[frame], depth[frame], state[frame] = hand.landmarks, hand.depth, 2
    _bridge(landmarks, depth, state)
    for frame in tqdm(range(length), desc="hand masks", unit="frame", disable=not progress, leave=False):
        for chain in chains:
            if frame in chain:
                masks[frame] |= hand_mask(frames[frame], chain[frame])
        if state[frame] == 1:
            masks[frame] |= hand_mask(frames[frame], Hand(landmarks[frame], depth[frame], 0.0, 0.0))
    return HandTrack(landmarks, depth, state, masks)


def hands_from_masks(masks: Bool[np.ndarray, "t h w"]) -> HandTrack:
    """A hand track from masks alone: the hand's outline stands for its landmarks, its end farthest from the border for the tips.

    Raises:
        AfieldError: all masks are empty.
    """
    if not masks.any():
        raise AfieldError("Stage hands: all hand masks are empty; white pixels must mark the hand.")
    landmarks = np.zeros((len(masks), 21, 2), np.float32)
    state = np.zeros(len(masks), np.int64)
    height, width = masks.shape[1:]
    for frame, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        if len(rows) < 30:
            continue
        points = np.stack((columns, rows), axis=-1).astype(np.float32)
        border = np.minimum(
            np.minimum(points[:, 0], width - 1 - points[:, 0]), np.minimum(points[:, 1], height - 1 - points[:, 1])
        )
        wrist = points[border.argmin()]
        far = np.linalg.norm(points - wrist, axis=1)
        ends = points[far >= np.quantile(far, 0.97)]
        landmarks[frame] = points[np.linspace(0, len(points) - 1, 21).astype(int)]
        landmarks[frame, 0] = wrist
        landmarks[frame, [4, 8, 12, 16, 20]] = ends[np.linspace(0, len(ends) - 1, 5).astype(int)]
        state[frame] = 2
    if not state.any():
        raise AfieldError("Stage hands: no hand mask has 30 white pixels or more; white must mark the whole hand.")
    return HandTrack(landmarks, np.zeros((len(masks), 21), np.float32), state, masks)


def link(found: Sequence[Sequence[Hand]]) -> list[dict[int, Hand]]:
    """Join the hands of neighbouring frames: for every hand its frames."""
    chains: list[dict[int, Hand]] = []
    for frame, hands in enumerate(found):
        for hand in hands:
            size = float(np.ptp(hand.landmarks, axis=0).max())
            best, nearest = None, LINK * size
            for chain in chains:
                last = max(chain)
                if not 0 < frame - last <= BREAK:
                    continue
                far = float(np.linalg.norm(chain[last].landmarks.mean(axis=0) - hand.landmarks.mean(axis=0)))
                if far < nearest:
                    best, nearest = chain, far
            if best is None:
                chains.append({frame: hand})
            else:
                best[frame] = hand
    return chains


def _bridge(
    landmarks: Float[np.ndarray, "t 21 2"], depth: Float[np.ndarray, "t 21"], state: Int[np.ndarray, "t"]
) -> None:
    """Guess the hand in the gaps between finds."""
    known = np.flatnonzero(state == 2)
    for first, last in itertools.pairwise(known):
        if 1 < last - first <= BRIDGE:
            for frame in range(first + 1, last):
                share = (frame - first) / (last - first)
                landmarks[frame] = (1 - share) * landmarks[first] + share * landmarks[last]
                depth[frame] = (1 - share) * depth[first] + share * depth[last]
                state[frame] = 1
