"""An ordinary video as frames: mp4, mov or whatever OpenCV decodes, or a folder of pictures."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from afield.errors import AfieldError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FEWEST = 12
"""Frames below which there is no time for a hand to come, hold and move."""
DARK = 12
"""Grey values of 255 below which a frame counts as black."""


@dataclass(frozen=True)
class Video:
    """Frames of equal size."""

    frames: UInt8[np.ndarray, "n h w 3"]
    """RGB."""
    times: Float[np.ndarray, "n"]
    """Seconds since the first frame; uneven where the frame rate varies."""
    name: str
    full_size: tuple[int, int]
    """Width and height before they were reduced."""
    read: tuple[int, ...]
    """Which frames of the file these are."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames here."""
        return self.frames.shape[2], self.frames.shape[1]

    def nearest(self, number: int) -> int:
        """Which of these frames is nearest to one of the file, of which some may have been left out."""
        return int(np.abs(np.array(self.read) - number).argmin())

    def backwards(self) -> Video:
        """The same video from its end to its beginning; `read` still says which frames of the file these are."""
        return replace(
            self,
            frames=np.ascontiguousarray(self.frames[::-1]),
            times=self.times[-1] - self.times[::-1],
            read=self.read[::-1],
        )


def read_video(path: Path, *, longest: int = 640, most: int = 120, progress: bool = True) -> Video:
    """Read a video or a folder of pictures, reduced to what the stages can use.

    Args:
        path: a file, or a folder whose pictures are taken in the order of their names.
        longest: larger frames are reduced until their longer side has so many pixels.
        most: of a longer video so many frames are taken, evenly in time.
        progress: show a progress bar.

    Raises:
        AfieldError: there is no video, it cannot be decoded, is too short, or black throughout.
    """
    path = Path(path)
    if not path.exists():
        raise AfieldError(f"There is no video {path}.")
    return as_video(path, *(_read_folder if path.is_dir() else _read_file)(path, longest, most, progress))


def as_video(path: Path, frames: list[np.ndarray], times: list[float], read: list[int], full: tuple[int, int]) -> Video:
    """Frames that were read from somewhere, if a demonstration can be in them.

    Raises:
        AfieldError: there are too few, or most are black.
    """
    if len(frames) < FEWEST:
        raise AfieldError(
            f"{path} has {len(frames)} frame{'s' * (len(frames) != 1)}; a demonstration needs at least {FEWEST}: some without "
            "a hand, then a hand that comes, holds and moves something."
        )
    stack = np.stack(frames)
    bright = np.array([np.percentile(frame[::4, ::4], 99) for frame in stack])
    if (bright < DARK).mean() > 0.5:
        raise AfieldError(
            f"{path} is black in {(bright < DARK).sum()} of {len(stack)} frames; nothing can be seen in it."
        )
    seconds = np.array(times, float) - times[0]
    return Video(stack, seconds, path.stem if path.is_file() else path.name, full, tuple(read))


Read = tuple[list[np.ndarray], list[float], list[int], tuple[int, int]]


def _read_file(path: Path, longest: int, most: int, progress: bool) -> Read:
    """Decode twice: once to count, for what a file says about its length is often wrong, and once to keep."""
    counter = _open(path)
    stamps: list[float] = []
    while counter.grab():
        stamps.append(counter.get(cv2.CAP_PROP_POS_MSEC) / 1000.0)
        if len(stamps) > 200_000:
            raise AfieldError(f"{path} has more than {200_000} frames; cut out the demonstration first.")
    rate = counter.get(cv2.CAP_PROP_FPS) or 30.0
    counter.release()
    if not stamps:
        raise AfieldError(f"{path} holds no frame that can be decoded; it may be damaged, or not a video.")
    if any(b <= a for a, b in itertools.pairwise(stamps)):  # some containers carry no time stamps
        stamps = [index / rate for index in range(len(stamps))]
    wanted = _even(stamps, most)
    capture, frames, full = _open(path), [], (0, 0)
    chosen = set(wanted)
    for index in tqdm(range(wanted[-1] + 1), desc="reading", unit="frame", disable=not progress, leave=False):
        if index not in chosen:
            if not capture.grab():
                break
            continue
        ok, frame = capture.read()
        if not ok:
            break
        full = (frame.shape[1], frame.shape[0])
        frames.append(reduced(frame, longest))
    capture.release()
    return frames, [stamps[index] for index in wanted[: len(frames)]], wanted[: len(frames)], full


def pictures_in(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> list[Path]:
    """Pictures in the order of the numbers in their names: frame2 comes before frame10."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in suffixes)
    return sorted(files, key=lambda file: numbered(file.name))


def numbered(name: str) -> list[tuple[int, str]]:
    """A name as something to sort by: the numbers in it count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_folder(path: Path, longest: int, most: int, progress: bool) -> Read:
    files = pictures_in(path)
    if not files:
        raise AfieldError(f"The folder {path} holds no pictures ({', '.join(PICTURES)}).")
    wanted = _even([float(index) for index in range(len(files))], most)
    frames: list[np.ndarray] = []
    full = (0, 0)
    for index in tqdm(wanted, desc="reading", unit="frame", disable=not progress, leave=False):
        frame = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)
        if frame is None:
            raise AfieldError(f"The frame {files[index]} cannot be decoded; it may be damaged.")
        size = (frame.shape[1], frame.shape[0])
        if frames and size != full:
            raise AfieldError(
                f"The frame {files[index].name} has {size[0]}x{size[1]} pixels, but those before have {full[0]}x{full[1]}."
            )
        full = size
        frames.append(reduced(frame, longest))
    return frames, [index / 15.0 for index in wanted], wanted, full


def _open(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise AfieldError(f"{path} cannot be opened as a video; it may be damaged, empty, or of an unknown kind.")
    return capture


def _even(stamps: list[float], most: int) -> list[int]:
    """At most `most` indices, evenly in time, so that a varying frame rate does not bend the motion."""
    if len(stamps) <= most:
        return list(range(len(stamps)))
    wanted = np.linspace(stamps[0], stamps[-1], most)
    return sorted(set(np.abs(np.array(stamps)[None] - wanted[:, None]).argmin(axis=1).tolist()))


def reduced(frame: UInt8[np.ndarray, "h w 3"], longest: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """A frame of OpenCV (BGR) as RGB, with at most so many pixels on its longer side."""
    height, width = frame.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        frame = cv2.resize(
            frame, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
        )
    return np.ascontiguousarray(frame[..., ::-1])
