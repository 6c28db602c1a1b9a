"""Hands that the palm detector misses, looked for where something moves against the background, or where the hand just was.

The landmark network knows a hand that comes from the side if it is shown the right square. Shown every square it also finds hands
in patterned paper. What moves over a scene that stands still is an arm, what it holds, and their shadows: few squares enough.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from afield.perception.hands import Hand, Region, region_of_hand

REACH = 2
"""Frames from one to the other that are compared."""
SHRUNK = 320
"""Pixels of the longer side of the frames that are compared."""
MOVES = 0.006
"""Of the longer side, in so many frames: what goes farther against the background moves."""
SMALLEST = 0.01
"""Of the picture: a smaller thing that moves is not searched for a hand."""
FRAMES = 12
"""In which hands are searched for, those with the most motion in as many stretches of the video."""
TURNS = tuple(math.radians(angle) for angle in (-45.0, -22.5, 0.0, 22.5, 45.0))
"""By which a hand may lean from the direction in which its arm comes in."""
SIZES = (2.0, 3.0, 4.0)
"""Of the square, in widths of the arm."""
PLACES = 30
"""At most so many of something that moves are searched, evenly spread."""
FOLLOWED = 0.7
"""Least score of a hand from which others are followed."""
GOES = 2
"""Frames in which a hand must move against the background; a pattern in the paper of a table never does."""
NEARBY = tuple((turn, size) for turn in (0.0, -0.3, 0.3) for size in (1.0, 0.8, 1.25))
"""How the square of a hand is turned (radians) and resized to find it again, and to look at it more than once."""


@runtime_checkable
class HandJudge(Protocol):
    """Knows a hand when it is shown one."""

    def landmarks(self, frame: UInt8[np.ndarray, "h w 3"], region: Region) -> Hand | None:
        """The landmarks of the hand in a region; None where there is none."""
        ...


def moving_hands(frames: UInt8[np.ndarray, "t h w 3"], judge: HandJudge, *, progress: bool = True) -> list[list[Hand]]:
    """At most one hand a frame: those found where something moves, and followed from there."""
    motion = against_background(frames, progress=progress)
    found: dict[int, Hand] = {}
    for index in tqdm(telling_frames(motion), desc="moving hands", unit="frame", disable=not progress, leave=False):
        if index in found:
            continue
        hand = _best(judge, frames[index], regions_of_motion(motion[index], frames.shape[1:3]))
        if hand is None or hand.score < FOLLOWED:
            continue
        chain = followed(frames, judge, index, hand)
        if really_moves(motion, chain, frames.shape[1:3]):
            found = chain | found
    steady = {
        index: steadied(frames[index], judge, found[index])
        for index in tqdm(found, desc="steadying", unit="frame", disable=not progress, leave=False)
    }
    return [[steady[index]] if index in steady else [] for index in range(len(frames))]


def _best(judge: HandJudge, frame: UInt8[np.ndarray, "h w 3"], regions: list[Region]) -> Hand | None:
    """The surest hand in any of the regions."""
    hands = [hand for region in regions if (hand := judge.landmarks(frame, region)) is not None]
    return max(hands, key=lambda hand: hand.score, default=None)


def against_background(frames: UInt8[np.ndarray, "t h w 3"], *, progress: bool = True) -> Float[np.ndarray, "t a b"]:
    """How far every pixel goes in two frames apart from the camera's own motion, in shares of the longer side.

    The camera's motion is the homography that most of the dense flow obeys. What only one of both neighbours says, as beside the
    border of what moves, does not count.
    """
    scale = SHRUNK / max(frames.shape[1:3])
    size = (round(scale * frames.shape[2]), round(scale * frames.shape[1]))
    gray = [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for frame in frames]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    here = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1).astype(np.float32)
    some = here[4::8, 4::8].reshape(-1, 2)
    cv2.setRNGSeed(0)
    motion = np.zeros((len(gray), size[1], size[0]), np.float32)
    for index, picture in enumerate(tqdm(gray, desc="motion", unit="frame", disable=not progress, leave=False)):
        off = []
        for other in (index - REACH, index + REACH):
            if not 0 <= other < len(gray):
                continue
            there = here + flow.calc(picture, gray[other], np.zeros_like(here))
            camera, _ = cv2.findHomography(some, there[4::8, 4::8].reshape(-1, 2), cv2.RANSAC, 1.5)
            if camera is not None:
                still = cv2.perspectiveTransform(here.reshape(-1, 1, 2), camera).reshape(here.shape)
                off.append(np.linalg.norm(there - still, axis=-1))
        if len(off) == 2:  # at the ends of the video nothing confirms the other
            motion[index] = np.minimum(*off) / SHRUNK
    return motion


def telling_frames(motion: Float[np.ndarray, "t a b"]) -> list[int]:
    """The frame with the most motion in each stretch of the video, those with too little left out."""
    share = (motion > MOVES).mean(axis=(1, 2))
    there = np.flatnonzero(share > SMALLEST)
    return [int(part[share[part].argmax()]) for part in np.array_split(there, FRAMES) if len(part)]


def regions_of_motion(motion: Float[np.ndarray, "a b"], shape: tuple[int, ...]) -> list[Region]:
    """Squares in which the hand of a moving arm may be; none where nothing large moves in from the picture's border.

    Args:
        motion: of one frame, see `against_background`.
        shape: height and width of the frame itself, in whose pixels the squares are.
    """
    moving = cv2.morphologyEx((motion > MOVES).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels, numbers, _ = cv2.connectedComponentsWithStats(moving)
    regions: list[Region] = []
    for label in range(1, count):
        if numbers[label, cv2.CC_STAT_AREA] < SMALLEST * motion.size:
            continue
        blob = labels == label
        rows, columns = np.nonzero(blob)
        edge = (rows < 3) | (columns < 3) | (rows >= blob.shape[0] - 3) | (columns >= blob.shape[1] - 3)
        if not edge.any():
            continue
        pixels = np.stack((columns, rows), axis=-1).astype(float)
        root = pixels[edge].mean(axis=0)
        far = np.linalg.norm(pixels - root, axis=1)
        # Half the width of an arm is how far its middle line is from its border.
        width = 2.0 * float(np.quantile(cv2.distanceTransform(blob.astype(np.uint8), cv2.DIST_L2, 3)[blob], 0.9))
        step = max(2, round(width / 2))
        corner = (rows % step == 0) & (columns % step == 0) & (far > 0.5 * far.max())
        scale = max(shape[:2]) / SHRUNK
        places = pixels[corner]
        for place in places[:: 1 + len(places) // PLACES]:
            along = place - root
            lean = math.atan2(along[0], -along[1])
            center = place * scale
            regions += [Region(center, size * width * scale, lean + turn, center) for turn in TURNS for size in SIZES]
    return regions


def followed(frames: UInt8[np.ndarray, "t h w 3"], judge: HandJudge, start: int, hand: Hand) -> dict[int, Hand]:
    """The same hand in the frames after and before one, as long as it is found."""
    after = _onwards(frames, judge, hand, range(start + 1, len(frames)))
    before = _onwards(frames, judge, hand, range(start - 1, -1, -1))
    return dict(sorted({start: hand, **after, **before}.items()))


def prolonged(
    frames: UInt8[np.ndarray, "t h w 3"], judge: HandJudge, chain: dict[int, Hand], taken: Collection[int]
) -> dict[int, Hand]:
    """A chain of hands with the frames before and after it in which the hand is found beside where it was last.

    Args:
        frames: of the video.
        judge: the landmark network.
        chain: by frame.
        taken: frames in which a hand is known already; there it ends.
    """
    first, last = min(chain), max(chain)
    until = min((frame for frame in taken if frame > last), default=len(frames))
    since = max((frame for frame in taken if frame < first), default=-1)
    after = _onwards(frames, judge, chain[last], range(last + 1, until))
    before = _onwards(frames, judge, chain[first], range(first - 1, since, -1))
    new = {index: steadied(frames[index], judge, hand) for index, hand in (after | before).items()}
    return dict(sorted((chain | new).items()))


def _onwards(
    frames: UInt8[np.ndarray, "t h w 3"], judge: HandJudge, hand: Hand, order: Iterable[int]
) -> dict[int, Hand]:
    """A hand from frame to frame, each time looked for where it was before."""
    found: dict[int, Hand] = {}
    for index in order:
        region = region_of_hand(hand)
        there = judge.landmarks(frames[index], region) or _best(judge, frames[index], _nearby(region))
        if there is None:
            break
        found[index] = hand = there
    return found


def steadied(frame: UInt8[np.ndarray, "h w 3"], judge: HandJudge, hand: Hand) -> Hand:
    """The same hand, its landmarks the median of what squares around it say: seen from the side a single one jumps."""
    looks = [look for region in _nearby(region_of_hand(hand)) if (look := judge.landmarks(frame, region)) is not None]
    points = np.median([look.landmarks for look in [hand, *looks]], axis=0)
    depth = np.median([look.depth for look in [hand, *looks]], axis=0)
    return replace(hand, landmarks=points.astype(np.float32), depth=depth.astype(np.float32))


def _nearby(region: Region) -> list[Region]:
    return [replace(region, turn=region.turn + turn, size=region.size * size) for turn, size in NEARBY]


def really_moves(motion: Float[np.ndarray, "t a b"], chain: dict[int, Hand], shape: tuple[int, ...]) -> bool:
    """Whether most landmarks of a hand move against the background, in more frames than one."""
    goes = 0
    for index, hand in chain.items():
        column, row = np.round(hand.landmarks * (SHRUNK / max(shape[:2]))).astype(int).T
        row, column = row.clip(0, motion.shape[1] - 1), column.clip(0, motion.shape[2] - 1)
        goes += bool(np.median(motion[index, row, column]) > MOVES)
    return goes >= GOES
