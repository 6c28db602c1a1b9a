"""Sixth stage: points of the object in three dimensions through time, and how its moving part moves.

Where a frame has no depth of its own, a moving point is lifted by the rigid motion of the part that it belongs to: its place
before the motion is known from many frames, so that the pixels of a few dozen points fix the part's pose in any frame (PnP).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.optimize import least_squares
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from afield.artifacts import load_artifact, save_artifact
from afield.distill.stages.hands import HandTrack
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath
from afield.perception.direct import Surface, make_surface
from afield.perception.given_tracks import GivenTracks
from afield.perception.hand_witness import HandWitness
from afield.perception.joint_search import HAND, find_joint, follow_joint, moving_part, refine_joint, simplest
from afield.perception.screw import fit_screw
from afield.perception.tracks import PointTracker, PointTracks
from afield.perception.video import Video

CLOSE = 2.0
"""Pixels within which a point obeys a motion."""
MOVED = 4.0
"""Pixels by which a point must have left its place to count as moving."""
NEIGHBOURS = 7
"""Points that vote on whether a point between them moves."""
MOMENTS = 8
"""Frames in which the pictures are compared while a joint is searched for; twice as many refine it."""
SURFACE = 2500
"""Points of the object that are compared."""
SMALLEST = 200
"""Pixels, two or more away from the border, without which an object is too small to be followed."""
FEWEST = 8
"""Points without which there is no motion of a part."""
TELLING = 25.0
"""Joints that explain less change in the pictures are not believed where corners have been followed: in the rendered
videos they explain 28 to 422 (summed over squares and moments), 54 and more where they are right; in small drawn ones with
little texture 11."""


@dataclass(frozen=True)
class ObjectTracks:
    """Points of the object; `reference` is the frame in which they were chosen."""

    pixels: Float[np.ndarray, "t q 2"]
    seen: Bool[np.ndarray, "t q"]
    points: Float[np.ndarray, "q 3"]
    """Where they are in the reference frame, in the world."""
    moving: Bool[np.ndarray, "q"]
    """They belong to the part that moves."""
    motion: Float[np.ndarray, "t 4 4"]
    """How the part has moved since the reference frame, in the world."""
    fit: Float[np.ndarray, "t"]
    """Mean distance in pixels between the moving points and where the motion puts them; negative where it is a guess."""
    reference: int

    def at(self, frame: int) -> Float[np.ndarray, "q 3"]:
        """Where the points are in a frame, in the world."""
        moved = self.points @ self.motion[frame, :3, :3].T + self.motion[frame, :3, 3]
        return np.where(self.moving[:, None], moved, self.points)

    def save(self, folder: Path) -> None:
        """Write it."""
        names = ("pixels", "seen", "points", "moving", "motion", "fit")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in names}
        save_artifact(folder, "video-tracks", tensors, {"reference": self.reference})

    @classmethod
    def load(cls, folder: Path) -> ObjectTracks:
        """Read what `save` has written."""
        names = ("pixels", "seen", "points", "moving", "motion", "fit")
        tensors, header = load_artifact(folder, "video-tracks", names, ("reference",))
        return cls(*(tensors[name].numpy() for name in names), reference=int(header["reference"]))


def track_object(
    video: Video,
    path: CameraPath,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    reference: int,
    hands: HandTrack,
    tracker: PointTracker,
    *,
    count: int = 500,
    progress: bool = True,
) -> ObjectTracks:
    """Follow points of the object, tell moving ones from still ones, and estimate the motion of the moving part.

    Args:
        video: the frames.
        path: their cameras.
        mask: the object in the reference frame.
        depth: of the reference frame; 0 is unknown.
        reference: the last frame before the hand comes.
        hands: points behind them are not seen; where they hold the part they help to tell how it goes, and how far.
        tracker: follows pixels.
        count: points.
        progress: show progress bars.

    Raises:
        AfieldError: nothing of the object moves as a rigid part.
    """
    solid = mask & (depth > 0)
    inner_part(solid)
    given = isinstance(tracker, GivenTracks)
    start = tracker.inside(solid, reference, count) if given else choose_points(video.frames[reference], solid, count)
    found = tracker.track(video.frames, start, reference, progress=progress)
    seen = found.seen & ~_covered(found, hands.masks)
    alone = list(range(reference + 1))
    points = refine_depth(path, PointTracks(found.pixels, seen), depth, reference, alone)
    moments = acting_frames(hands, reference, MOMENTS)
    surface = make_surface(video.frames, path, mask, depth, reference, hands.masks, count=SURFACE)
    witness = HandWitness.of(path, hands.middle, hands.size, surface.points, reference + 1, int(moments[0]))
    joint = joint_motion(video, path, mask, depth, reference, hands, surface, moments, witness, progress)
    try:
        corners = corner_motion(path, found, seen, points, reference, hands, progress)
    except AfieldError:
        if joint is None:
            raise
        corners = None
    believed = joint is not None
    if joint is not None and corners is not None:
        told = joint.pictures >= TELLING
        believed = told and joint.score >= sum(_explained(surface, corners[2], moments, witness))
    if corners is not None and not believed:
        points, moving, motion, fit = corners
    else:
        assert joint is not None, "one of both is there"
        moving, motion, fit = joint.moving(found.pixels[reference]), joint.motion, joint.fit
    return ObjectTracks(
        found.pixels, seen, points.astype(np.float32), moving, motion.astype(np.float32), fit, reference
    )


@dataclass(frozen=True)
class _JointMotion:
    """What a joint found in the pictures says about every frame and point."""

    surface: Surface
    member: Bool[np.ndarray, "n"]
    motion: Float[np.ndarray, "t 4 4"]
    fit: Float[np.ndarray, "t"]
    pictures: float
    """How much of what has changed in the pictures it explains."""
    score: float
    """The same and how much of the way of the hand."""

    def moving(self, pixels: Float[np.ndarray, "q 2"]) -> Bool[np.ndarray, "q"]:
        """Whether pixels of the reference frame belong to what moves, as most points of the surface around them do."""
        near = KDTree(self.surface.pixels).query(pixels, k=min(5, len(self.member)))[1].reshape(len(pixels), -1)
        return self.member[near].mean(axis=1) > 0.5


def acting_frames(hands: HandTrack, reference: int, count: int) -> Int[np.ndarray, "f"]:
    """Frames, spread evenly, in which the hand may have moved the object, and a few after it has gone."""
    there = np.flatnonzero(hands.state > 0)
    there = there[there > reference]
    first, last = (int(there.min()), int(there.max())) if len(there) else (reference + 1, len(hands.state) - 1)
    last = min(last + 4, len(hands.state) - 1)
    return np.unique(np.linspace(first + 0.3 * (last - first), last, count).astype(int))


def joint_motion(
    video: Video,
    path: CameraPath,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    reference: int,
    hands: HandTrack,
    surface: Surface,
    moments: Int[np.ndarray, "f"],
    witness: HandWitness,
    progress: bool,
) -> _JointMotion | None:
    """The hinge or slide under which the pictures make most sense, followed through the video; None if nothing moves so."""
    found = find_joint(video.frames, path, mask, depth, reference, hands.masks, moments, witness, progress=progress)
    joint = simplest(found)
    if joint is None:
        return None
    count = len(video.frames)
    often = acting_frames(hands, reference, 2 * MOMENTS)
    member = moving_part(surface, joint, moments, joint.amounts)
    agreed = witness.agreed(moments, joint.motion(joint.amounts))
    held = witness.only(int(agreed.argmax())) if agreed.max(initial=0.0) > 0 else None
    amounts = np.zeros(count)
    for _ in range(3):
        if member.sum() < FEWEST:
            return None
        chosen = np.flatnonzero(member)
        amounts = follow_joint(surface, joint, chosen, reference, count, held)
        joint = refine_joint(surface, replace(joint, amounts=amounts[often]), often, chosen)
        member = moving_part(surface, joint, often, joint.amounts)
    amounts = follow_joint(surface, joint, np.flatnonzero(member), reference, count, held)
    motion = joint.motion(amounts)
    pictures, agreed = _explained(surface, motion, moments, witness)
    if pictures <= 0:
        return None
    return _JointMotion(surface, member, motion, np.zeros(count, np.float32), pictures, pictures + agreed)


def _explained(
    surface: Surface, motion: Float[np.ndarray, "t 4 4"], moments: Int[np.ndarray, "f"], witness: HandWitness
) -> tuple[float, float]:
    """How much of what has changed in the pictures a motion explains, summed over squares, and of the way of the hand."""
    gain = np.sum([surface.gain(int(frame), motion[frame][None].astype(float))[0] for frame in moments], axis=0)
    agreed = HAND * len(gain) * witness.agreed(moments, motion[moments].astype(float)).max(initial=0.0)
    return float(np.maximum(gain, 0).sum()), float(agreed)


def corner_motion(
    path: CameraPath,
    found: PointTracks,
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    reference: int,
    hands: HandTrack,
    progress: bool,
) -> tuple[Float[np.ndarray, "q 3"], Bool[np.ndarray, "q"], Float[np.ndarray, "t 4 4"], Float[np.ndarray, "t"]]:
    """Points, which of them move, motion and fit from tracked corners alone, whatever way the part goes.

    Raises:
        AfieldError: nothing moves as a rigid part.
    """
    points = points.copy()
    moving = moving_points(path, found.pixels, seen, points, reference)
    motion, fit = part_motion(path, found.pixels, seen, points, moving, reference, progress)
    screw = fit_screw(
        path, found.pixels[:, moving], seen[:, moving], points[moving], motion, fit >= 0, reference, hands.middle
    )
    if screw is not None:
        points[moving] = screw[1]
        motion = np.stack([screw[0].motion(frame) for frame in range(len(motion))])
    moving = spread_membership(path, found.pixels, seen, points, moving, motion)
    return points, moving, motion, fit


def inner_part(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """What of a mask is two pixels or more away from its border.

    Raises:
        AfieldError: hardly anything, so that there is nothing to follow.
    """
    inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    if inner.sum() < SMALLEST:
        raise AfieldError(
            "Stage tracks: the object is too small in the picture, or has no depth; film closer, or give --depth."
        )
    return inner


def choose_points(color: np.ndarray, mask: Bool[np.ndarray, "h w"], count: int) -> Float[np.ndarray, "n 2"]:
    """Corners inside the mask, away from its border, and an even grid where there are too few.

    Raises:
        AfieldError: the mask is too small.
    """
    inner = inner_part(mask)
    spacing = max(3.0, 0.7 * float(np.sqrt(inner.sum() / count)))
    gray = cv2.cvtColor(color, cv2.COLOR_RGB2GRAY)
    corners = cv2.goodFeaturesToTrack(gray, count, 0.002, spacing, mask=inner)
    chosen = np.zeros((0, 2), np.float32) if corners is None else corners[:, 0]
    rows, columns = np.nonzero(inner)
    grid = np.stack((columns, rows), axis=-1).astype(np.float32)
    step = max(1, round(len(grid) / count))
    grid = grid[np.random.default_rng(0).permutation(len(grid))[: len(grid) // step]]
    if len(chosen) < count and len(grid):
        far = KDTree(chosen).query(grid)[0] > spacing if len(chosen) else np.ones(len(grid), bool)
        chosen = np.concatenate((chosen, grid[far][: count - len(chosen)]))
    return chosen.astype(np.float32)


def refine_depth(
    path: CameraPath, tracks: PointTracks, depth: Float[np.ndarray, "h w"], reference: int, alone: list[int]
) -> Float[np.ndarray, "q 3"]:
    """World points of the reference frame's pixels, their depth adjusted until they fit their tracks before the hand comes."""
    pixels = tracks.pixels[reference]
    column, row = np.round(pixels).astype(int).T
    rough = depth[row.clip(0, depth.shape[0] - 1), column.clip(0, depth.shape[1] - 1)]
    camera = path.camera(reference)
    factors = np.linspace(0.94, 1.06, 49)
    cost = np.zeros((len(factors), len(pixels)))
    weight = np.zeros(len(pixels))
    for frame in alone[:: max(1, len(alone) // 10)]:
        weight += tracks.seen[frame]
        for index, factor in enumerate(factors):
            points = camera.backproject(torch.from_numpy(pixels).float(), torch.from_numpy(rough * factor).float())
            found = path.camera(frame).project(points)[0].numpy()
            off = np.linalg.norm(found - tracks.pixels[frame], axis=1)
            cost[index] += tracks.seen[frame] * np.minimum(off, 3.0) ** 2
    # What the picture around a point says about its depth counts as one frame in which it is 1% off.
    cost += 0.2 * ((factors - 1) / 0.01)[:, None] ** 2
    best = np.where(weight >= 3, factors[cost.argmin(axis=0)], 1.0)
    return camera.backproject(torch.from_numpy(pixels).float(), torch.from_numpy(rough * best).float()).double().numpy()


def residual(
    path: CameraPath,
    pixels: Float[np.ndarray, "q 2"],
    points: Float[np.ndarray, "q 3"],
    motion: Float[np.ndarray, "4 4"],
    frame: int,
) -> Float[np.ndarray, "q"]:
    """Distance in pixels between tracks and where points that have moved by `motion` are seen."""
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    return path.distance(pixels, moved, frame)


def moving_points(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    reference: int,
) -> Bool[np.ndarray, "q"]:
    """The largest set of points that has left its place and has done so as one rigid thing, in any frame.

    Raises:
        AfieldError: there is none.
    """
    best = np.zeros(len(points), bool)
    for frame in range(reference + 4, len(pixels), 3):
        off = residual(path, pixels[frame], points, np.eye(4), frame)
        gone = np.flatnonzero(seen[frame] & (off > MOVED))
        if len(gone) < FEWEST:
            continue
        pose = _pnp(path, frame, points[gone], pixels[frame, gone], None, seed=frame)
        if pose is None:
            continue
        obeys = seen[frame] & (residual(path, pixels[frame], points, pose, frame) < CLOSE) & (off > MOVED)
        if obeys.sum() > best.sum():
            best = obeys
    if best.sum() < FEWEST:
        raise AfieldError(
            "Stage tracks: nothing of the object moves as one rigid part while a hand is there; check the box, film closer or "
            "with more light, or put paper with some pattern on plain surfaces."
        )
    return best


def part_motion(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    moving: Bool[np.ndarray, "q"],
    reference: int,
    progress: bool,
) -> tuple[Float[np.ndarray, "t 4 4"], Float[np.ndarray, "t"]]:
    """Motion of the part in every frame; where it is not seen it is guessed between its neighbours."""
    count = len(pixels)
    motion, fit = np.repeat(np.eye(4)[None], count, axis=0), np.full(count, -1.0)
    fit[: reference + 1] = 0.0
    guess = np.eye(4)
    for frame in tqdm(range(reference + 1, count), desc="motion", unit="frame", disable=not progress, leave=False):
        here = np.flatnonzero(seen[frame] & moving)
        if len(here) < FEWEST:
            continue
        pose = _pnp(path, frame, points[here], pixels[frame, here], guess, seed=frame)
        if pose is None:
            continue
        off = residual(path, pixels[frame, here], points[here], pose, frame)
        if (off < CLOSE).sum() < max(FEWEST - 2, 0.3 * len(here)):
            continue
        motion[frame], fit[frame], guess = pose, off[off < CLOSE].mean(), pose
    known = np.flatnonzero(fit >= 0)
    for first, last in itertools.pairwise(known):
        for frame in range(first + 1, last):
            motion[frame] = _between(motion[first], motion[last], (frame - first) / (last - first))
    motion[known[-1] + 1 :] = motion[known[-1]]
    return motion, fit.astype(np.float32)


def spread_membership(
    path: CameraPath,
    pixels: Float[np.ndarray, "t q 2"],
    seen: Bool[np.ndarray, "t q"],
    points: Float[np.ndarray, "q 3"],
    moving: Bool[np.ndarray, "q"],
    motion: Float[np.ndarray, "t 4 4"],
) -> Bool[np.ndarray, "q"]:
    """Which points move: those whose tracks fit the motion better than standing still; unclear ones follow their neighbours."""
    stay, go, votes = np.zeros(len(points)), np.zeros(len(points)), np.zeros(len(points))
    for frame in range(len(pixels)):
        still = residual(path, pixels[frame], points, np.eye(4), frame)
        gone = residual(path, pixels[frame], points, motion[frame], frame)
        expected = residual(
            path, path.camera(frame).project(torch.from_numpy(points).float())[0].numpy(), points, motion[frame], frame
        )
        tells = seen[frame] & (expected > 2 * CLOSE)
        stay += tells * np.minimum(still, 8.0)
        go += tells * np.minimum(gone, 8.0)
        votes += tells
    mean_stay, mean_go = stay / np.maximum(votes, 1), go / np.maximum(votes, 1)
    clear = (votes >= 4) & (np.minimum(mean_stay, mean_go) < CLOSE) & (np.abs(mean_stay - mean_go) > 1.0)
    member = np.where(clear, mean_go < mean_stay, moving)
    if clear.sum() >= FEWEST:
        # A track that stuck to a streak of the surface looks still: what most of the neighbours do is believed.
        _, near = KDTree(points[clear]).query(points, k=min(NEIGHBOURS, int(clear.sum())))
        member = member[clear][near].reshape(len(points), -1).mean(axis=1) > 0.5
    return member if member.sum() >= 3 else moving


def _pnp(
    path: CameraPath,
    frame: int,
    points: Float[np.ndarray, "k 3"],
    pixels: Float[np.ndarray, "k 2"],
    guess: Float[np.ndarray, "4 4"] | None,
    seed: int,
) -> Float[np.ndarray, "4 4"] | None:
    """The motion that puts points where they are seen in a frame, robustly; None where there is none."""
    camera = path.camera(frame)
    matrix, world_camera = camera.intrinsics.double().numpy(), camera.T_world_camera.double().numpy()
    camera_world = np.linalg.inv(world_camera)
    options = {"reprojectionError": CLOSE, "iterationsCount": 400}
    cv2.setRNGSeed(seed)
    pixels = pixels.astype(np.float64)
    candidates = []
    ok, turn, shift, inliers = cv2.solvePnPRansac(points, pixels, matrix, None, flags=cv2.SOLVEPNP_SQPNP, **options)
    if ok and inliers is not None and len(inliers) >= 6:
        candidates.append((turn, shift))
    if guess is not None:
        begin = camera_world @ guess
        candidates.append((cv2.Rodrigues(begin[:3, :3])[0], begin[:3, 3:].copy()))
    best, score = None, np.inf
    for turn, shift in candidates:
        pose = _refine(points, pixels, matrix, turn, shift)
        moved = points @ pose[:3, :3].T + pose[:3, 3]
        seen_at = moved[:, :2] / moved[:, 2:] @ matrix[:2, :2].T + matrix[:2, 2]
        cost = float(np.minimum(np.linalg.norm(seen_at - pixels, axis=1), 2 * CLOSE).sum())
        if cost < score and (moved[:, 2] > 0).all():
            best, score = pose, cost
    return None if best is None else world_camera @ best


def _refine(
    points: Float[np.ndarray, "k 3"],
    pixels: Float[np.ndarray, "k 2"],
    matrix: Float[np.ndarray, "3 3"],
    turn: np.ndarray,
    shift: np.ndarray,
) -> Float[np.ndarray, "4 4"]:
    """Least squares with a loss that forgives outliers."""

    def off(pose: Float[np.ndarray, "6"]) -> Float[np.ndarray, "m"]:
        """By how many pixels the points miss under a pose: a rotation vector and a shift."""
        moved = Rotation.from_rotvec(pose[:3]).apply(points) + pose[3:]
        away = np.maximum(moved[:, 2:], 1e-3)
        return (moved[:, :2] / away @ matrix[:2, :2].T + matrix[:2, 2] - pixels).ravel()

    start = np.concatenate((turn.ravel(), shift.ravel()))
    answer = least_squares(off, start, loss="soft_l1", f_scale=1.0, max_nfev=30).x
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(answer[:3]).as_matrix(), answer[3:]
    return pose


def _between(first: Float[np.ndarray, "4 4"], last: Float[np.ndarray, "4 4"], share: float) -> Float[np.ndarray, "4 4"]:
    turn = Rotation.from_matrix(first[:3, :3].T @ last[:3, :3]).as_rotvec()
    pose = np.eye(4)
    pose[:3, :3] = first[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    pose[:3, 3] = (1 - share) * first[:3, 3] + share * last[:3, 3]
    return pose


def _covered(tracks: PointTracks, hands: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t q"]:
    """Points that lie on a hand."""
    kernel = np.ones((9, 9), np.uint8)
    height, width = hands.shape[1:]
    covered = np.zeros(tracks.seen.shape, bool)
    for frame, mask in enumerate(hands):
        if mask.any():
            wide = cv2.dilate(mask.astype(np.uint8), kernel) > 0
            column, row = np.round(tracks.pixels[frame]).astype(int).T
            covered[frame] = wide[row.clip(0, height - 1), column.clip(0, width - 1)]
    return covered
