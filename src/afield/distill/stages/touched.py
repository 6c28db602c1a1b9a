"""Part of the seventh stage: what of the object the hand touches, as seen in the frame before it came."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from afield.distill.stages.hands import HandTrack
from afield.distill.stages.tracks import ObjectTracks
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath
from afield.perception.held_hand import LENGTHS, HandViews, HeldHand, locate_hand

PIECE = 0.5
"""Pieces of a region that are smaller than this share of the largest are dropped."""
PUSHES = 0.1
"""Least cosine between the way of what is pushed and the line of sight; sideways is neither pushed nor pulled."""
FINGER_RADIUS = 0.007
"""Metres."""
PALM = {(0, 9): 0.095, (5, 17): 0.068}
"""Metres across the palm of a grown-up: all that is told of a hand's size where only its mask is known."""
UPRIGHT = 0.95
"""Quantile of the bones by how long they are seen: of so many some lie across the line of sight."""
BESIDE = 0.012
"""Metres in the picture from the hand's outline to what it touches: a finger's width or less, as it is seen aslant."""
FINGER_BONES = ((2, 3), (3, 4), (6, 7), (7, 8), (10, 11), (11, 12), (14, 15), (15, 16), (18, 19), (19, 20))
"""Landmarks of the two outer bones of each finger, thumb first."""
LEAST_TURN = 0.25
"""Radians that the part must turn for the hand upon it to be seen from sides enough to locate its joints."""
FEWEST_FRAMES, MOST_FRAMES = 4, 12
"""In which the hand is found while it holds the part; more than the most tell nothing new."""
LARGEST = 1.0
"""A located hand is not believed if it is larger than its longest seen bones say, by this factor: they seldom say too little, and
where the part's motion is wrong a hand is located far too large."""
MOST_TURN = 1.2
"""Radians; a located hand that turns farther within its grip is not believed: no wrist does, so the motion must be wrong."""
ALONG = 2.0
"""How much less certain a located hand is along the line of sight than across it."""
SHARE = 0.5
"""Of the way from where its pictures put a hand to where it rests on the object: both are believed alike."""
LEAST_TOUCH = 4e-4
"""Square metres that the fingers of a hand touch at least."""
SMALLEST = 10
"""Pixels; less is no contact region."""


@dataclass(frozen=True)
class Reach:
    """How far from the bones of a hand's fingers, in metres, lies what it touches. Chosen by IoU on rendered videos."""

    grasped: float = 0.033
    """Much of what a hand takes hold of lies behind it, where its fingers close, and their depth is hardly known."""
    outside: float = 1.5
    """What is seen outside of the outline of such a hand counts as so many times that much farther."""
    pushed: float = 0.015
    """A hand that pushes rests on what it touches and does not reach around it."""
    pushed_located: float = 0.022
    """The same where the joints of the hand were located."""


@dataclass(frozen=True)
class Found:
    """What the stages before have found."""

    path: CameraPath
    hands: HandTrack
    """The acting hand."""
    tracks: ObjectTracks
    """How the part moves."""
    mask: Bool[np.ndarray, "h w"]
    """The object in the reference frame of the tracks."""
    depth: Float[np.ndarray, "h w"]
    """Of that frame; 0 is unknown."""
    backwards: bool = False
    """Whether the video is seen from its end, so that what is pushed comes near."""

    def with_hand(self, frame: int) -> int:
        """The frame nearest to a given one in which the hand was found."""
        known = np.flatnonzero(self.hands.state == 2)
        return int(known[np.abs(known - frame).argmin()])

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the object in the reference frame."""
        rows, columns = np.nonzero(self.mask & (self.depth > 0))
        return rows, columns

    def surface(self) -> Float[np.ndarray, "n 3"]:
        """The points of these pixels in the world, before anything has moved."""
        rows, columns = self.pixels()
        pixels = torch.from_numpy(np.stack((columns, rows), axis=-1)).float()
        depth = torch.from_numpy(self.depth[rows, columns]).float()
        return self.path.camera(self.tracks.reference).backproject(pixels, depth).double().numpy()

    def seen_in(self, frame: int) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
        """Where they are in the picture of a frame, and how far away."""
        seen, away = self.path.camera(frame).project(torch.from_numpy(self.surface()).float())
        return seen.numpy(), away.numpy()

    def outside_hand(self, frame: int) -> Float[np.ndarray, "n"]:
        """How far they are seen outside of the hand of a frame, in metres at the hand; 0 if its outline is unknown."""
        mask = self.hands.masks[frame]
        columns, rows = np.round(self.seen_in(frame)[0]).astype(int).T
        if not mask.any():
            return np.zeros(len(rows))
        off = np.asarray(distance_transform_edt(~mask)) / pixels_per_meter(self.hands, frame)
        (bottom, right), inside = np.array(off.shape) - 1, (rows >= 0) & (columns >= 0)
        inside &= (rows <= bottom) & (columns <= right)
        return np.where(inside, off[rows.clip(0, bottom), columns.clip(0, right)], np.inf)

    def region(self, chosen: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "h w"]:
        """A mask of the chosen ones without specks and pieces much smaller than the largest."""
        rows, columns = self.pixels()
        region = np.zeros(self.mask.shape, np.uint8)
        region[rows[chosen], columns[chosen]] = 1
        region = cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(region)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        return np.isin(pieces, 1 + np.flatnonzero(sizes >= PIECE * sizes.max(initial=0)))


def touched(found: Found, held: tuple[int, int], reach: Reach | None = None) -> Bool[np.ndarray, "h w"]:
    """Pixels of the reference frame that are near the fingers.

    Where the part turns, the joints of the hand upon it are located from all frames from contact to release. A hand that
    pushes is where it was located; if it takes hold of something, distances from there and in the frame of first contact
    are averaged. Where it cannot be located, or touches nothing there, the frame of first contact has to do.

    What is not seen behind a hand that pushes, or close beside it, is not touched. Of fingers that reach over a rim hardly
    anything is seen: where those of one frame touch less than fingers do, all that lies beside the hand counts. If that is
    nothing or the outline is unknown, a hand that pushes is taken for one that grasps.

    Args:
        found: of the video so far.
        held: frames of first contact and of release.
        reach: of the fingers.

    Raises:
        AfieldError: the hand touches nothing of the object.
    """
    reach = reach or Reach()
    frame = found.with_hand(held[0])
    in_frame, located = far_in_frame(found, frame), far_from_located(found, held)
    outside = found.outside_hand(frame)
    beside, pushes = outside < BESIDE, pushed(found, held)

    def grasped(far: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        return far + reach.outside * outside < reach.grasped

    outlined = bool(found.hands.masks[frame].any() and found.hands.depth[frame].any())
    fingers = LEAST_TOUCH * pixels_per_meter(found.hands, frame) ** 2 if outlined else SMALLEST
    tries = [((in_frame < reach.pushed) & beside if pushes else grasped(in_frame), fingers)]
    if located is not None:
        near = (located < reach.pushed_located) & beside if pushes else grasped((in_frame + located) / 2)
        tries.insert(0, (near, SMALLEST))
    if outlined:
        tries.append((beside, SMALLEST))
    if pushes:
        tries.append((grasped(in_frame), SMALLEST))
    for chosen, least in tries:
        region = found.region(chosen)
        if region.sum() >= least:
            return region
    raise AfieldError(
        f"Stage contact: the fingers do not meet the object in frame {frame}; check the box, or give --hand-masks."
    )


def pushed(found: Found, held: tuple[int, int]) -> bool:
    """Whether the hand pushes: from contact to release what it touches goes away from the camera.

    The hand is seen, so it is between the camera and the part, and the camera is taken to be on the person's side.
    """
    frame = found.with_hand(held[0])
    near = KDTree(found.seen_in(frame)[0]).query(found.hands.tips(frame))[1]
    spot = np.median(found.surface()[near], axis=0)
    motion = found.tracks.motion[held[0] : held[1] + 1].astype(float)
    way = (motion[:, :3, :3] @ spot + motion[:, :3, 3] - spot).mean(axis=0) * (-1 if found.backwards else 1)
    sight = spot - found.path.camera(frame).position.double().numpy()
    return bool(way @ sight > PUSHES * np.linalg.norm(way) * np.linalg.norm(sight))


def believed(hand: HeldHand, views: HandViews) -> bool:
    """Whether a located hand turns within its grip as a wrist can, and is no larger than it looks."""
    return float(np.linalg.norm(hand.turn)) < MOST_TURN and hand.metre < LARGEST * views.metre


def hand_views(found: Found, held: tuple[int, int]) -> HandViews | None:
    """The hand as the part sees it while it is held; None where that would tell nothing about the depth of its joints.

    That is where the part hardly turns, where the hand is found too seldom, and where a mask alone is known of it.
    """
    path, hands = found.path, found.hands
    known = np.array([frame for frame in range(held[0], held[1] + 1) if hands.state[frame] == 2])
    if len(known) < FEWEST_FRAMES or not hands.depth[known].any():
        return None
    chosen = known[np.unique(np.linspace(0, len(known) - 1, MOST_FRAMES).round().astype(int))]
    motion = found.tracks.motion.astype(float)
    turns = Rotation.from_matrix(motion[held[0], :3, :3].T @ motion[:, :3, :3]).magnitude()
    if turns[chosen].max() < LEAST_TURN:
        return None
    first = int(chosen[0])
    seen, away = found.seen_in(first)
    near = _depth_near(hands, first, seen, away)
    metre = near * pixels_per_meter(hands, first) / path.focal
    if not (metre > 0 and np.isfinite(hands.depth[chosen]).all()):
        return None
    camera_world = np.linalg.inv(path.T_world_camera[chosen].double().numpy())
    return HandViews(
        landmarks=hands.landmarks[chosen].astype(float) - [(path.width - 1) / 2, (path.height - 1) / 2],
        depth=hands.depth[chosen].astype(float),
        camera_part=camera_world @ motion[chosen],
        turned=turns[chosen] / turns[chosen].max(),
        focal=path.focal,
        away=near,
        metre=metre,
    )


def far_from_located(found: Found, held: tuple[int, int]) -> Float[np.ndarray, "n"] | None:
    """Metres from the fingers' bones of a hand that is located from contact to release; None if there is none to be believed.

    Its joints are surer across the line of sight than along it. Along it the hand is moved half of the way to where a finger
    would rest on what is seen of the object: fingers that push do, those behind a handle do not.
    """
    views = hand_views(found, held)
    hand = None if views is None else locate_hand(views)
    if views is None or hand is None or not believed(hand, views):
        return None
    surface = found.surface()
    bones = np.concatenate([np.linspace(hand.joints[a], hand.joints[b], 6) for a, b in FINGER_BONES])
    eye = found.path.camera(held[0]).position.double().numpy()
    sight = bones.mean(axis=0) - eye
    sight /= np.linalg.norm(sight)
    across = np.linalg.svd(sight[None])[2][1:]
    distance = float(((bones - eye) @ sight).mean())

    def beheld(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """In metres of the hand: where it is seen, at the distance of the hand, and how far away it is."""
        away = (points - eye) @ sight
        return np.column_stack(((points - eye) @ across.T * (distance / away)[:, None], away)) / hand.metre

    bones = bones + SHARE * _resting_depth(beheld(bones), beheld(surface)) * hand.metre * sight
    shorter = np.eye(3) - (1 - 1 / ALONG) * np.outer(sight, sight)
    return np.asarray(KDTree(bones @ shorter).query(surface @ shorter)[0]) / hand.metre


def far_in_frame(found: Found, frame: int) -> Float[np.ndarray, "n"]:
    """Metres from the fingers' bones of the hand as one frame shows it.

    The landmarks have depth relative to each other only, so the hand is moved along the optical axis until its fingers, as
    thick as they are, rest on the object.
    """
    hands = found.hands
    seen, away = found.seen_in(frame)
    # Everything in metres of the hand: across the picture, and in depth, where the object has the units of the camera path.
    scale = pixels_per_meter(hands, frame)
    depths = away * (found.path.focal / scale) / _depth_near(hands, frame, seen, away)
    surface = np.column_stack((seen / scale, depths))
    joints = np.column_stack((hands.landmarks[frame], hands.depth[frame])) / scale
    bones = np.concatenate([np.linspace(joints[a], joints[b], 6) for a, b in FINGER_BONES])
    bones[:, 2] += _resting_depth(bones, surface)
    return np.asarray(KDTree(bones).query(surface)[0])


def _depth_near(hands: HandTrack, frame: int, seen: Float[np.ndarray, "n 2"], away: Float[np.ndarray, "n"]) -> float:
    """Depth of the object where the fingertips are, in the units of the camera path: as far away as the hand."""
    near = KDTree(seen).query(hands.tips(frame))[1]
    return float(np.median(away[near]))


def _resting_depth(bones: Float[np.ndarray, "b 3"], surface: Float[np.ndarray, "n 3"]) -> float:
    """By how much the bones can go away from the camera until one of them rests on the surface, in metres."""
    far, nearest = KDTree(surface[:, :2]).query(bones[:, :2])
    over = far < 2 * FINGER_RADIUS
    if not over.any():
        return float(np.median(surface[:, 2]) - np.median(bones[:, 2]))
    room = surface[np.asarray(nearest)[over], 2] - FINGER_RADIUS - bones[over, 2]
    return float(np.quantile(room, 0.1))


def pixels_per_meter(hands: HandTrack, frame: int) -> float:
    """How large a metre at the hand is in the picture: bones are alike, and seen from their ends they only get shorter."""
    near = [f for f in range(max(0, frame - 6), min(len(hands.state), frame + 7)) if hands.state[f] == 2]
    bones, quantile = (LENGTHS, UPRIGHT) if hands.depth[near].any() else (PALM, 0.9)
    seen = [
        np.linalg.norm(hands.landmarks[near, a] - hands.landmarks[near, b], axis=1) / length
        for (a, b), length in bones.items()
    ]
    return float(np.quantile(seen, quantile)) if near else 1.0
