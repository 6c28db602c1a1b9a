"""Seventh stage: when the hand first touches and lets go, and where, as seen in the frame before it came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from afield.artifacts import load_artifact, save_artifact
from afield.distill.stages.hands import HandTrack
from afield.distill.stages.touched import Found, touched
from afield.distill.stages.tracks import ObjectTracks
from afield.errors import AfieldError
from afield.perception.cameras import CameraPath

STARTED = 1.0
"""The part moves once its points have left their places by so many pixels more than before."""
FEWEST_SEEN = 4
"""Moving points that tell how far they have gone."""
GOES_ON = 3
"""Frames: a part begins to move at most so many before its points have gone by `STARTED` farther; until then they only slip."""
STAYS = 4.0, 0.06
"""Pixels, or a share of its size if that is more, by which a hand that has touched may be away from its place upon the object."""
SOON = 3
"""Frames: people move things about a fifth of a second after touching them."""
BEFORE = 6
"""So many frames before the motion are looked through for the four in which the hand is stillest."""


@dataclass(frozen=True)
class Contact:
    """When and where."""

    free_frame: int
    """The last frame before the hand comes, to which `region` belongs."""
    contact_frame: int
    motion_frame: int
    """In which the part has begun to move."""
    release_frame: int
    region: Bool[np.ndarray, "h w"]

    def save(self, folder: Path) -> None:
        """Write it."""
        names = ("free_frame", "contact_frame", "motion_frame", "release_frame")
        header = {name: getattr(self, name) for name in names}
        save_artifact(folder, "video-contact", {"region": torch.from_numpy(self.region)}, header)

    @classmethod
    def load(cls, folder: Path) -> Contact:
        """Read what `save` has written."""
        names = ("free_frame", "contact_frame", "motion_frame", "release_frame")
        tensors, header = load_artifact(folder, "video-contact", ("region",), names)
        return cls(*(int(header[name]) for name in names), region=tensors["region"].numpy())


def find_contact(
    path: CameraPath,
    hands: HandTrack,
    tracks: ObjectTracks,
    mask: Bool[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
    *,
    backwards: bool = False,
) -> Contact:
    """The frames of first contact and release, and the region that is touched.

    The part's motion says when contact must have been made; going back from there, contact begins where the hand came to its
    place on the object. Release is where the hand leaves the part again.

    Args:
        path: cameras.
        hands: the acting hand.
        tracks: points of the object and the motion of its part.
        mask: the object in the reference frame of the tracks.
        depth: of that frame.
        backwards: whether the video is seen from its end.

    Raises:
        AfieldError: the part never begins to move, or no hand is near it when it does.
    """
    reference = tracks.reference
    onset = motion_onset(path, tracks)
    if hands.state[onset] == 0:
        near = np.flatnonzero(hands.state > 0)
        raise AfieldError(
            f"Stage contact: the object begins to move in frame {onset}, but a hand is seen in frames {near.min()} to "
            f"{near.max()} only; give masks with --hand-masks."
        )
    contact = first_touch(path, hands, tracks, onset)
    release = find_release(path, hands, tracks, onset)
    found = Found(path, hands, tracks, mask, depth, backwards)
    region = touched(found, (contact, release))
    return Contact(reference, contact, onset, release, region)


def motion_onset(path: CameraPath, tracks: ObjectTracks) -> int:
    """The first of three frames in which the moving points have left their places.

    Points that slip a little when a hand comes before them and then stay have not begun to move; where they never go farther,
    they have.

    Raises:
        AfieldError: they never leave.
    """
    off = _distance_from_rest(path, tracks)
    before = np.nanmedian(off[max(0, tracks.reference - 10) : tracks.reference + 1])
    moved = off > before + STARTED
    left = [frame for frame in range(tracks.reference + 1, len(off) - 2) if moved[frame : frame + 3].all()]
    if not left:
        raise AfieldError(
            "Stage contact: the object does not begin to move in the video; check the box or the object masks."
        )
    farther = np.flatnonzero((off > off[left[0]] + STARTED) & (np.arange(len(off)) > left[0]))
    return max(left[0], int(farther[0]) - GOES_ON) if len(farther) else left[0]


def _distance_from_rest(path: CameraPath, tracks: ObjectTracks) -> Float[np.ndarray, "t"]:
    """Median distance in pixels of the moving points from where they would be seen had nothing moved.

    Where too few are seen, it is taken to change evenly.
    """
    frames = np.arange(len(tracks.pixels))
    known = (tracks.seen & tracks.moving).sum(axis=1) >= FEWEST_SEEN
    if not known.any():
        return np.zeros(len(frames))
    off = []
    for frame in frames[known]:
        here = tracks.seen[frame] & tracks.moving
        found = path.camera(int(frame)).project(torch.from_numpy(tracks.points[here]).float())[0].numpy()
        off.append(np.median(np.linalg.norm(found - tracks.pixels[frame, here], axis=1)))
    return np.interp(frames, frames[known], off)


def first_touch(path: CameraPath, hands: HandTrack, tracks: ObjectTracks, onset: int) -> int:
    """The frame from which on the hand rests where it is upon the part before that begins to move.

    Its place is asked and not its speed: landmarks of a hand that rests may jump by more than a hand moves that comes near.
    In the first frame in which it is there it has just come, so the second one counts.
    """
    first = tracks.reference + 1
    place = hand_place(path, hands, tracks, onset)
    known = _found(hands, place, first)
    rest = _stillest(place, known[(known >= onset - BEFORE) & (known <= onset)])
    if not len(rest):
        return max(first, onset - SOON)
    away = _away_from(place, known, rest)
    before = np.flatnonzero((away > _stays(hands, known)) & (known < rest[0]))
    there = known[before[-1] + 1 :] if len(before) else known
    return int(min(there[min(1, len(there) - 1)], onset))


def find_release(path: CameraPath, hands: HandTrack, tracks: ObjectTracks, onset: int) -> int:
    """The last frame of contact: once the part has come to rest, the hand stays at its place upon it until it leaves."""
    still = _last_motion(tracks, hands, onset)
    place = hand_place(path, hands, tracks, onset)
    known = _found(hands, place, still - 1)
    rest = known[known <= still + SOON]
    end = still
    if len(rest):
        # After a motion the hand's place upon the part is known less well than before it.
        left = np.flatnonzero((_away_from(place, known, rest) > 2 * _stays(hands, known)) & (known > still))
        end = int(np.flatnonzero(hands.state > 0).max())
        if len(left):
            end = int(known[left[0] - 1]) if left[0] > 0 else still
    return min(max(end, onset + 2), len(path) - 1)


def _stays(hands: HandTrack, frames: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """Pixels by which a resting hand may be away from its place."""
    return np.maximum(STAYS[0], STAYS[1] * hands.size[frames])


def _found(hands: HandTrack, place: Float[np.ndarray, "t 2"], first: int) -> Int[np.ndarray, "k"]:
    """The frames from `first` on in which the hand was found."""
    return np.flatnonzero((hands.state == 2) & np.isfinite(place[:, 0]) & (np.arange(len(place)) >= first))


def _stillest(place: Float[np.ndarray, "t 2"], frames: Int[np.ndarray, "k"], count: int = 4) -> Int[np.ndarray, "c"]:
    """The `count` successive frames between which the hand moves least; all of them if there are no more."""
    windows = [frames[i : i + count] for i in range(max(1, len(frames) - count + 1))]
    return min(windows, key=lambda some: float(_away_from(place, some, some, smooth=False).sum()))


def _away_from(
    place: Float[np.ndarray, "t 2"], frames: Int[np.ndarray, "k"], rest: Int[np.ndarray, "r"], *, smooth: bool = True
) -> Float[np.ndarray, "k"]:
    """How far the hand is in some frames from its median place in those of rest; smoothed, the median of three frames."""
    if not len(frames):
        return np.zeros(0)
    away = np.linalg.norm(place[frames] - np.median(place[rest], axis=0), axis=1)
    if smooth:
        away[1:-1] = np.median((away[:-2], away[1:-1], away[2:]), axis=0)
    return away


def hand_place(path: CameraPath, hands: HandTrack, tracks: ObjectTracks, onset: int) -> Float[np.ndarray, "t 2"]:
    """Where the hand is in pixels beside the spot of the part that it will touch; NaN where there is no hand."""
    place = np.full((len(path), 2), np.nan)
    spot = _spot(path, hands, tracks, onset)
    for frame in np.flatnonzero(hands.state > 0):
        moved = tracks.motion[frame, :3, :3] @ spot + tracks.motion[frame, :3, 3]
        seen = path.camera(int(frame)).project(torch.from_numpy(moved[None]).float())[0][0].numpy()
        place[frame] = np.median(hands.landmarks[frame, 1:], axis=0) - seen
    return place


def _spot(path: CameraPath, hands: HandTrack, tracks: ObjectTracks, frame: int) -> Float[np.ndarray, "3"]:
    """The moving point that the fingertips are nearest to in a frame, before the motion, in the world."""
    points = tracks.at(frame)[tracks.moving]
    seen = path.camera(frame).project(torch.from_numpy(points).float())[0].numpy()
    middle = hands.tips(frame).mean(axis=0)
    return tracks.points[tracks.moving][np.linalg.norm(seen - middle, axis=1).argmin()].astype(float)


def _last_motion(tracks: ObjectTracks, hands: HandTrack, onset: int) -> int:
    """The last frame, while a hand is there, in which the part goes on by more than a fiftieth of its whole way."""
    points = tracks.points[tracks.moving]
    count = len(tracks.motion)
    place = np.stack([points @ pose[:3, :3].T + pose[:3, 3] for pose in tracks.motion])
    step = np.zeros(count)
    step[1:] = np.linalg.norm(np.diff(place, axis=0), axis=-1).mean(axis=1)
    whole = step[onset:].sum()
    going = [frame for frame in range(onset, count) if hands.state[frame] > 0 and step[frame] > 0.02 * whole]
    return going[-1] if going else onset
